"Panels without a browser: pure rendering, widgets by their traits, numbers against loops, hostile names, the static form."
import base64, json, re, subprocess, sys
from dataclasses import dataclass, replace
from html.parser import HTMLParser
from pathlib import Path
import pytest, torch
import torch.nn.functional as F
from torch.testing import assert_close
import mhex
from mhex.adapt import attach
from mhex.cnn import SmallResNet
from mhex.error_panel import ErrorPanel
from mhex.image_panel import ImageInspector
from mhex.inspection import cases, choose, marked, pixel_parts, without
from mhex.panels import Axis, Panel, in_range, player, png, static_page, text

ROOT = Path(__file__).resolve().parent.parent
HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror=alert(2)>", "'; alert(3) //", "</style></script><b onclick=\"alert(4)\">", "a\u202egnp.exe & <i>\x00"]


def small(names=("cat", "dog", "owl"), dtype=torch.float32, **kw):
    torch.manual_seed(0)
    return attach(SmallResNet(len(names), in_channels=1, width=8, blocks=(1, 1)).to(dtype), len(names), predict="mean", class_names=list(names), **kw).to(dtype).eval()


def pictures(n=8, size=16, dtype=torch.float32):
    torch.manual_seed(1)
    return F.interpolate(torch.randn(n, 1, 5, 5), size=(size, size), mode="bicubic").to(dtype), torch.arange(n) % 3


@pytest.fixture(scope="module")
def made(): return small(), *pictures()


@pytest.fixture
def panel(made): return ImageInspector(made[0], made[1:])


@dataclass(frozen=True)
class Level:
    level: float = .5
    name: str = "x"


class Square(Panel):
    title, rows, pictures = "Square", [[("picture", "caption")]], ("picture",)
    def check(self, s): return replace(s, level=in_range("level", s.level, 0, 1))
    def render(self, s): return dict(picture=png(torch.full((8, 8), s.level)) if s.level else b"", caption=f"<p>{text(s.name)}</p>")
    def controls(self): return {"": [self.slider("level", "Level", 0., 1., .1), self.button("Fail", lambda: self.update(level=3))]}
    def axes(self, s): return dict(level=Axis("Level", (0., .5, 1.), kind="range"))


# the base

def test_value_moves_the_panel_and_back():
    p = Square(Level())
    p.view
    old = p.parts["picture"].value
    p._controls["level"].value = .8
    assert p.state.level == .8 and p.parts["picture"].value != old
    p.update(level=.1)
    assert p._controls["level"].value == pytest.approx(.1)


def test_refusals_change_nothing_and_are_said():
    p = Square(Level())
    p.view
    before = dict(p.shown)
    with pytest.raises(ValueError, match="level is 2"): p.update(level=2)
    with pytest.raises(TypeError, match="it has level, name"): p.update(lvl=1)
    assert p.state == Level() and p.shown == before
    p.safely(p.update, level=5, name="<b>")
    assert "level is 5" in p._live["said"].value and 'role="alert"' in p._live["said"].value
    p.say("<script>", "note")
    assert "<script>" not in p._live["said"].value and "mx-note" in p._live["said"].value
    with pytest.raises(KeyError): p.safely({}.__getitem__, "a fault of ours is raised as well")


def test_empty_pictures_go():
    p = Square(Level())
    p.view
    p.update(level=0.)
    assert "mx-gone" in p.parts["picture"]._dom_classes
    p.update(level=1.)
    assert "mx-gone" not in p.parts["picture"]._dom_classes


def test_mimebundle():
    got = Square(Level())._repr_mimebundle_()
    assert {"text/plain", "text/html", "application/vnd.jupyter.widget-view+json"} <= got.keys() and "data:image/png;base64," in got["text/html"]


def test_without_anywidget(monkeypatch):
    monkeypatch.setitem(sys.modules, "anywidget", None)
    p = Square(Level())
    p.view
    assert p._live["hands"] is None
    p._controls["level"].value = .2
    assert p.state.level == .2


def test_without_ipywidgets(monkeypatch):
    monkeypatch.setitem(sys.modules, "ipywidgets", None)
    p = Square(Level())
    assert p._repr_mimebundle_().keys() == {"text/plain", "text/html"}
    with pytest.raises(ImportError, match=r"mhex\[notebooks\]"): p.view


def test_light():
    code = "import sys, mhex.panels, mhex.image_panel, mhex.error_panel; print([m for m in ('ipywidgets', 'anywidget', 'IPython', 'fastai') if m in sys.modules])"
    r = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert r.stdout.strip() == "[]", r.stdout + r.stderr


@pytest.mark.parametrize("bad, message", [(dict(frames=[{}]), "expected 3"), (dict(frames=[{"a": "x"}, {"a": "x"}, {"b": "x"}]), "differ in their parts"), (dict(rows=[["a"], ["a"]]), "placed once"),
                                          (dict(theme="blue"), "'auto', 'light' or 'dark'")])
def test_player_refuses(bad, message):
    with pytest.raises(ValueError, match=message): player(dict(v=Axis("V", (0, 1, 2))), **{**dict(frames=[{"a": "x"}] * 3), **bad})


def test_axis_refuses():
    for kw, message in ((dict(values=()), "no values"), (dict(values=(1, 2), texts=("a",)), "1 texts for 2"), (dict(values=(1,), kind="dial"), "'range'"), (dict(values=(1,), start=1), "start is 1")):
        with pytest.raises(ValueError, match=message): Axis("V", **kw)


# the static form

class Page(HTMLParser):
    "Tags, what they load, event attributes, and the text of scripts."
    def __init__(self, html):
        super().__init__()
        self.loads, self.events, self.tags, self.scripts, self.at = [], [], [], [], None
        self.feed(html)
    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.at = dict(attrs).get("type", "js") if tag == "script" else None
        for k, v in attrs:
            if k in ("src", "href", "srcset", "action", "data", "poster"): self.loads.append(v)
            if k.startswith("on"): self.events.append((tag, k, v))
    def handle_data(self, d):
        if self.at: self.scripts.append((self.at, d))
    def handle_endtag(self, tag): self.at = None


def data(page): return json.loads(next(d for t, d in page.scripts if t == "application/json"))


def test_static_file(tmp_path, panel):
    html = panel.to_html(tmp_path / "p.html", target=[0, 2]).read_text()
    page = Page(html)
    assert all(o.startswith("data:image/png;base64,") for o in page.loads) and page.loads
    assert not re.search(r"https?:|url\(|@import|fetch\(|import\(", html) and not page.events and len(page.scripts) == 2
    d = data(page)
    assert d["n"] == [2, 3]
    for f, (t, b) in zip(d["frames"], [(t, b) for t in (0, 2) for b in (0, 1, -1)]):
        want = panel.render(replace(panel.state, target=t, block=b))
        order = [p for row in panel.rows if not isinstance(row, str) for c in row for p in ((c,) if isinstance(c, str) else c)]
        for i, p in enumerate(order): assert d["data"][f[i]] == (base64.b64encode(want[p]).decode() if isinstance(want[p], bytes) else want[p]), p
    assert html == panel.to_html(tmp_path / "q.html", target=[0, 2]).read_text()


def test_static_starts_at_the_state(panel):
    d = data(Page(str(panel.update(block=1, target=2).static(target=[0, 2]))))
    assert d["at"] == [1, 1]


def test_static_refuses(tmp_path, panel):
    with pytest.raises(TypeError, match="no axis 'klass'"): panel.static(klass=[0])
    with pytest.raises(ValueError, match="target holds 7"): panel.static(target=[7])
    with pytest.raises(ValueError, match="at most 2000"): panel.static(axes=dict(strength=Axis("O", [i / 3000 for i in range(3000)])))
    with pytest.raises(FileNotFoundError, match="not a folder"): panel.to_html(tmp_path / "none" / "p.html", axes={})
    assert not list(tmp_path.iterdir())


def test_hostile_names(tmp_path):
    x, _ = pictures(5)
    model = small(HOSTILE)
    p = ImageInspector(model, (x, torch.arange(5)))
    p.cases = replace(p.cases, files=tuple(o + ".png" for o in HOSTILE))
    p.update(target=0, other=1, take="keep", kind="exact", sign="both")
    e = ErrorPanel(p)
    for name, q in (("i", p), ("e", e)):
        for i in range(3):
            q.update(**(dict(place=0) if q is p else dict(row=i, col=1)))
            for k, v in q.shown.items():
                if isinstance(v, bytes): continue
                page = Page(v)
                assert "script" not in page.tags and "<b onclick" not in v and not page.events and "\x00" not in v and "\u202e" not in v, k
                assert all(o.startswith("data:image/png") for o in page.loads), k
        page = Page(q.to_html(tmp_path / f"{name}.html").read_text())
        assert len(page.scripts) == 2 and not page.events and all(o.startswith("data:image/png") for o in page.loads)
        data(page)
    p.view
    assert len({t for t, _ in p._controls["target"].options}) == 6
    alts = p.show(0).update(target=0).alts(p.state)
    assert HOSTILE[0] in alts["first"]  # plain text, escaped where it is written


def test_no_widget_state_in_stored_notebooks():
    for nb in (ROOT / "nbs").rglob("*.ipynb"):
        if "checkpoint" not in str(nb): assert "widgets" not in json.loads(nb.read_text("utf-8"))["metadata"], f"{nb.name}: widget state has random ids; take metadata.widgets out"
    for name in ("46_panels", "47_image_panel", "57_error_panel"):
        p = ROOT / "nbs" / f"{name}.ipynb"
        assert p.stat().st_size < 300_000 and "widget-view" not in "".join(str(c.get("outputs")) for c in json.loads(p.read_text("utf-8"))["cells"])


# the image inspector

def test_render_is_pure(panel):
    for kw in (dict(), dict(kind="exact", sign="both", other=2), dict(block=0, sharpness=.3, take="erase", share=.3), dict(row=3, col=15, colors="viridis", threshold=.4)):
        s = panel.update(**kw).state
        again = ImageInspector(panel.model, pictures())
        assert panel.render(s) == panel.shown == again.render(s)


def test_controls_move_pictures(panel):
    panel.view
    for name, value, part in (("target", 1, "first"), ("block", 0, "first"), ("other", 2, "difference"), ("kind", "exact", "first_said"), ("strength", .3, "first"), ("row", 1, "blocks"),
                              ("place", 3, "picture"), ("take", "erase", "left"), ("share", .5, "left"), ("outcome", "wrong", "picture_said")):
        old, w = panel.parts[part].value, panel._controls[name]
        if w.value == value: continue
        w.value = value
        assert getattr(panel.state, name) == value and panel.parts[part].value != old, name
        assert panel._live["said"].value == ""


def test_click_is_a_pixel(panel):
    panel.view
    panel.safely(panel.picked, "first", dict(part="first", x=.999, y=0.))
    assert (panel.state.row, panel.state.col) == (0, 15) and panel._controls["col"].value == 15 and "Row 0, column 15" in panel.parts["blocks"].value
    panel.safely(panel.picked, "first", dict(part="first", key="ArrowRight"))
    panel.safely(panel.picked, "first", dict(part="first", key="ArrowDown"))
    assert (panel.state.row, panel.state.col) == (1, 15)


def test_filters(made, panel):
    c = panel.cases
    for true in (-1, 0, 1, 2):
        for said in (-1, 1):
            for outcome in ("all", "right", "wrong"):
                want = [i for i in range(8) if true in (-1, int(c.y[i])) and said in (-1, int(c.decoded[i])) and (outcome == "all" or (int(c.decoded[i]) == int(c.y[i])) == (outcome == "right"))]
                assert list(choose(c, true, said, outcome)) == want
    assert choose(c, order="highest loss")[0] == int(F.cross_entropy(c.logits, c.y, reduction="none").argmax())
    assert choose(c, order="least confident")[0] == int(c.probs.amax(1).argmin())
    panel.update(place=4)
    assert panel.update(order="highest loss").state.place == 0  # other filters start at their first sample
    assert "No image fits" in panel.update(confidence=(.9999, 1.)).shown["note"] and panel.shown["first"] == b""
    assert panel.show(5).sample() == 5


@pytest.mark.parametrize("predict", ["last", "mean", "decay", "backbone"])
def test_pixels_add_up(predict):
    "In float64: channels to blocks, blocks to the pixel, pixels to the logit."
    torch.manual_seed(0)
    x = torch.randn(2, 1, 10, 7).double()
    with attach(SmallResNet(3, in_channels=1, width=4, blocks=(1, 1)).double(), 3, predict=predict) as model:
        exp = mhex.explain(model, x)
        total = 0.
        for r in range(10):
            for c in range(7):
                got = pixel_parts(exp, r, c, 2, 1)
                assert_close(sum(got.parts) + got.bias, got.value, atol=1e-10, rtol=0)
                assert_close(got.value, float(exp.map(2, "exact")[1, r, c]), atol=1e-10, rtol=0)
                total += got.value / got.pixels
        assert_close(total, float(exp.logits[1, 2]), atol=1e-10, rtol=0)
        assert got.delta < 1e-10


def test_numbers_of_the_table(panel):
    "What stands in the table is what the functions give."
    panel.update(target=1, row=5, col=6)
    got = pixel_parts(panel.explanation(panel.sample())[0], 5, 6, 1)
    for p in got.parts: assert f"{p:+.2f}".replace("-", "−") in panel.shown["blocks"]
    assert f"{got.logit:+.2f}".replace("-", "−") in panel.shown["blocks"] and "completeness delta" in panel.shown["blocks"]


@pytest.mark.parametrize("how", ["erase", "keep"])
def test_masking_by_hand(made, panel, how):
    model, x, _ = made
    panel.update(kind="exact", sign="both", target=0, take=how, share=.2, fill="zero")
    m = mhex.explain(model, x[:1]).map(0, "exact")[0]
    best = sorted(range(256), key=lambda i: -float(m.flatten()[i]))[:51]
    image = x[:1].clone()
    for i in range(256):
        if (i in best) == (how == "erase"): image[0, 0, i // 16, i % 16] = 0
    assert_close(without(x[:1], marked(m, .2), how, "zero"), image)
    with torch.no_grad(): p = model(image).softmax(1)[0]
    before = mhex.explain(model, x[:1]).probs[0, 0]
    assert f"{before:.0%} → {p[0]:.0%}".replace("%", "\u00a0%") in panel.shown["left_said"]


def test_difference_is_the_map_of_the_difference(made):
    exp = mhex.explain(made[0], made[1])
    assert_close(exp.map(0, "exact") - exp.map(1, "exact"), exp.map(lambda p: p[0] - p[1], "exact"), atol=1e-5, rtol=1e-5)


def test_peer_runs_once(panel, monkeypatch):
    calls = []
    real = sys.modules["mhex.image_panel"].explain_with
    monkeypatch.setattr("mhex.image_panel.explain_with", lambda *a, **k: calls.append(a[0]) or real(*a, **k))
    panel.update(peer="edges")
    panel.update(strength=.5)
    panel.update(block=0)
    assert calls == ["edges"] and re.search(r"\bms\b", panel.shown["peer_said"]) and panel.shown["peer"]
    with pytest.raises(ValueError, match="peer is 'nothing'"): panel.update(peer="nothing")


def test_slow_peer_says_that_it_computes(made, monkeypatch):
    "Methods of many passes say so above the panel while they run, and no longer; what they raise stands there instead"
    model, x, y = made
    panel, seen = ImageInspector(model, (x, y)), []
    panel.view
    real = sys.modules["mhex.image_panel"].explain_with
    def slow(name, *a, **k):
        seen.append(panel._live["said"].value)
        if name == "occlusion": raise RuntimeError("no memory left")
        return real("edges", *a, **k)
    monkeypatch.setattr("mhex.image_panel.explain_with", slow)
    for name in ("rise", "gradcam", "rise"): panel.update(peer=name)
    assert len(seen) == 2 and "computing rise …" in seen[0] and 'role="status"' in seen[0] and seen[1] == "" == panel._live["said"].value
    panel._controls["peer"].value = "occlusion"
    assert "computing occlusion …" in seen[2] and "no memory left" in panel._live["said"].value and panel.state.peer == "rise"


def test_one_forward_serves_all_sliders(panel, monkeypatch):
    calls = []
    h = panel.model.backbone.register_forward_pre_hook(lambda *a: calls.append(1))
    try:
        for kw in (dict(target=1), dict(block=0), dict(sharpness=.2), dict(alpha=.5), dict(row=0, col=0), dict(kind="exact"), dict(other=2), dict(threshold=.3)): panel.update(**kw)
        assert not calls
        panel.update(take="erase")
        assert len(calls) == 1
    finally: h.remove()


def test_model_is_left_alone(made):
    model, x, y = made
    model.train()
    try:
        model(x)
        mine = model.head_logits
        p = ImageInspector(model, (x, y))
        p.update(take="erase", peer="gradcam")
        assert model.training and model.head_logits is mine and all(q.grad is None for q in model.parameters())
    finally: model.eval()


def test_saved_files(tmp_path, panel):
    panel.update(other=2, take="keep")
    out = panel.save(tmp_path / "a" / "b")
    m = json.loads((out / "manifest.json").read_text())
    assert m["state"]["take"] == "keep" and m["class_names"] == ["cat", "dog", "owl"] and m["completeness_delta"] < 1e-4 and m["target_from"] == "predicted"
    assert {p.name for p in out.iterdir()} == {"manifest.json", "maps.npz", "picture.png", "first.png", "second.png", "difference.png", "left.png"}
    with pytest.raises(ValueError, match="folder is empty"): panel.update(folder=" ").save()


def test_explanation_widget(made):
    model, x, y = made
    p = mhex.explain(model, x, target="owl").widget(labels=y)
    assert isinstance(p, ImageInspector) and p.state.target == 2 and len(p.cases) == 8
    with pytest.raises(ValueError, match="exp.widget"): p.update(take="keep")
    assert mhex.explain(model, x).widget(model).update(take="keep").shown["left"]


def test_interpretation_widget():
    from mhex.train import MHEXInterpretation
    model, (x, y) = small(), pictures()
    with torch.no_grad(): logits = model(x)
    interp = MHEXInterpretation(model, [(x[:5], y[:5]), (x[5:], y[5:])], logits, y, ["cat", "dog", "owl"])
    p = interp.widget()
    assert p.show(6).sample() == 6
    assert_close(p.explanation(6)[0].logits[0], logits[6])
    e = interp.widget(errors=True)
    assert (e.counts == interp.confusion_matrix()).all()
    plain = MHEXInterpretation(SmallResNet(3, in_channels=1), [(x, y)], logits, y, ["cat", "dog", "owl"])
    with pytest.raises(ValueError, match="attached model"): plain.widget()


def test_data_set():
    data = mhex.load_data("shapes", size=20)
    model = attach(SmallResNet(data.n_classes, in_channels=data.channels, width=8, blocks=(1, 1)), data.n_classes, class_names=data.class_names)
    p = ImageInspector(model, data, most=6)
    assert len(p.cases) == 6 and "6 images of" in p.subtitle
    assert_close(p.explanation(4)[0].x[0], data.batch("test", [4])[0][0])
    assert p.shown["picture"] != p.update(truth=not p.state.truth).shown["picture"] or p.cases.masks is None
    with pytest.raises(ValueError, match="no split"): ImageInspector(model, data, split="holdout")


@pytest.mark.parametrize("kw, error, message", [
    (dict(target=3), ValueError, "target is 3"), (dict(target="cat"), TypeError, "target is 'cat'"), (dict(block=2), ValueError, "-1 to 1"), (dict(kind="grad"), ValueError, "'paper'"), (dict(sign="up"), ValueError, "'against'"),
    (dict(row=16), ValueError, "rows 0 to 15"), (dict(share=2), ValueError, "0 to 1"), (dict(alpha=0), ValueError, r"\(0,1\]"), (dict(colors="jet"), ValueError, "'viridis'"), (dict(outcome="maybe"), ValueError, "'wrong'"),
    (dict(order="size"), ValueError, "'highest loss'"), (dict(fill="rainbow", take="erase"), ValueError, "masking is"), (dict(place=8), ValueError, "0 to 7"), (dict(klass=1), TypeError, "it has place")])
def test_bad_state(panel, kw, error, message):
    before = panel.state
    with pytest.raises(error, match=message): panel.update(**kw)
    assert panel.state == before


def test_bad_data(made):
    model, x, y = made
    for args, error, message in (((model, "digits"), TypeError, "mhex.load_data"), ((model, (x, y[:3])), ValueError, "3 labels for 8"), ((model, (x[:0], y[:0])), ValueError, "empty"), ((model, (x, y + 1)), ValueError, "0 to 2"),
                                 ((model, (x, y.float())), TypeError, "whole numbers"), ((SmallResNet(3), (x, y)), TypeError, "mhex.attach"), ((model, (x[0], y)), TypeError, "n, c, h, w"), ((model, x, "test", 0), ValueError, "most is 0")):
        with pytest.raises(error, match=message): ImageInspector(*args)
    with pytest.raises(TypeError, match="no 'klass'"): ImageInspector(model, x, klass=1)
    with pytest.raises(ValueError, match="no labels"): ImageInspector(model, x).update(outcome="right")


def test_no_exact_map_is_said():
    "A backbone whose own classifier is no linear function of averaged features: heads' maps still show, and the panel says what there is not."
    model, (x, y) = small(), pictures()
    exp = replace(mhex.explain(model, x), prediction_weights=None, features=None, classifier=None)
    p = ImageInspector(None, exp, labels=y)
    assert "exact" not in p.kinds and "No exact map" in p.shown["blocks"] and p.shown["first"]
    with pytest.raises(ValueError, match="kind is 'exact'"): p.update(kind="exact")


# the error panel

def test_cells_count_and_open(made):
    model, x, y = made
    p = ErrorPanel(model, (x, y))
    for i in range(3):
        for j in range(3): assert p.counts[i, j] == sum(int(a) == i and int(b) == j for a, b in zip(y, p.cases.decoded))
    p.view
    i, j = (int(v) for v in divmod(int(p.counts.argmax()), 3))
    p.update(row=0, col=(j + 1) % 3)
    old = p.parts["matrix"].value
    p.safely(p.picked, "matrix", dict(part="matrix", pick=f"{i},{j}"))
    assert p.parts["matrix"].value != old and (p._controls["row"].value, p._controls["col"].value) == (i, j)
    assert len(p.samples()) == p.counts[i, j] == len(p.inspector.samples(p.inspector.state)) and p.inspector.sample() == p.samples()[0]
    zero = next((i, j) for i in range(3) for j in range(3) if not p.counts[i, j])
    assert "No image" in p.update(row=zero[0], col=zero[1]).shown["examples"] and "No image fits" in p.inspector.shown["note"]


def test_multi_label():
    torch.manual_seed(0)
    x, _ = pictures(10)
    model = attach(SmallResNet(3, in_channels=1, width=8, blocks=(1, 1)), 3, multi_label=True, class_names=["a", "b", "c"])
    y = torch.randint(0, 2, (10, 3)).float()
    y[0] = 0  # none at all
    p = ErrorPanel(model, (x, y))
    with torch.no_grad(): d = (model.eval()(x) > 0)
    for k in range(3):
        for col, (t, q) in enumerate(((1, 1), (1, 0), (0, 1), (0, 0))):
            want = [i for i in range(10) if bool(y[i, k]) == bool(t) and bool(d[i, k]) == bool(q)]
            p.update(row=k, col=col)
            assert p.counts[k, col] == len(want) and sorted(p.samples()) == want and sorted(p.inspector.samples(p.inspector.state)) == want
    assert p.inspector.show(0).shown["picture_said"].count("no label") >= 1
    p.inspector.view
    p.inspector._controls["true"].value = 1
    p.inspector._controls["outcome"].value = "absent"
    p.inspector._controls["true"].value = -1  # the outcome is of one label: refused, said, and put back
    assert "choose it first" in p.inspector._live["said"].value and p.inspector.state.true == 1


def test_error_panel_refuses(made):
    with pytest.raises(ValueError, match="no labels"): ErrorPanel(made[0], made[1])
    with pytest.raises(ValueError, match="row is 3"): ErrorPanel(*made[:1], made[1:]).update(row=3)
