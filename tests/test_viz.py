"Pictures: what is in them, what they refuse, what hostile names do to them and to the report."
import csv, json, re, warnings
from html.parser import HTMLParser
from pathlib import Path

import matplotlib; matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np, pytest, torch
from matplotlib.colors import to_rgba
from PIL import Image
from torch.testing import assert_close

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
import mhex
from mhex.data import load_data
from mhex.report import table_html, write_report
from mhex.train import MHEXInterpretation, mhex_learner
from mhex.viz import (INK, MASK, RIGHT, SIGNED, UNSIGNED, WRONG, is_signed, overlay, plot_classes, plot_explanation, plot_training, read_history, save_explanation,
                      save_figure, to_image)

NAMES = ["cat", "dog", "owl"]


def attached(k=3, names=NAMES, **kw):
    torch.manual_seed(0)
    return mhex.attach(mhex.create_backbone("resnet18_28", k, in_channels=1, width=8, blocks=(2, 1, 1)), k, class_names=names, **kw).eval()


@pytest.fixture(scope="module")
def x(): return torch.nn.functional.interpolate(torch.randn(3, 1, 5, 5, generator=torch.Generator().manual_seed(1)), size=(20, 28), mode="bicubic")


@pytest.fixture(scope="module")
def exp(x): return mhex.explain(attached(predict="mean"), x)


@pytest.fixture(scope="module")
def masks():
    m = torch.zeros(3, 20, 28, dtype=torch.bool)
    for i in range(3): m[i, 3+i:9+i, 4:12+i] = True
    return m


def panels(fig): return [a for a in fig.axes if a.images and a.get_label() != "<colorbar>"]
def bars(fig): return [a for a in fig.axes if a.get_label() == "<colorbar>"]
def shown(ax): return np.asarray(ax.images[0].get_array())
def limits(ax): return ax.images[0].get_clim()
def texts(fig): return [t.get_text() for t in fig.findobj(matplotlib.text.Text) if t.get_text()]
def cross(ax): return [tuple(float(v[0]) for v in l.get_data()) for l in ax.lines if l.get_marker() == "+"]
def outline(ax): return any(np.allclose(c, to_rgba(MASK)) for o in ax.collections for c in o.get_edgecolor())


# ---- images and overlays

def test_to_image():
    x = torch.rand(3, 4, 5, generator=torch.Generator().manual_seed(0))
    np.testing.assert_allclose(to_image((x-.4)/.2, [.4]*3, [.2]*3), x.permute(1, 2, 0), atol=1e-6)
    np.testing.assert_allclose(to_image(x[:1], mean=torch.zeros(1), std=np.ones(1)), x[0][..., None].expand(-1, -1, 3), atol=1e-6)
    far = to_image(x*10-5)
    assert far.min() == 0 and far.max() == 1
    assert np.isfinite(to_image(torch.full((1, 4, 5), 7.))).all()
    np.testing.assert_allclose(to_image(x[:2]), x[:2].mean(0)[..., None].expand(-1, -1, 3), atol=1e-6)  # two channels: their mean


def test_overlay():
    "Nothing to show leaves the picture; the strongest evidence is coloured most; signs have their own sides of the colour map"
    image = np.full((4, 4, 3), .5, dtype=np.float32)
    np.testing.assert_allclose(overlay(image, torch.zeros(4, 4)), image)
    m = torch.zeros(4, 4); m[1, 2] = 2.; m[0, 0] = .1
    got = overlay(image, m)
    change = np.abs(got-image).sum(-1)
    assert np.unravel_index(change.argmax(), change.shape) == (1, 2) and change[0, 0] == 0 == change[3, 3], "a faint trace stays clear"
    m[2, 1] = -2.
    red, blue = overlay(image, m)[1, 2], overlay(image, m)[2, 1]
    assert is_signed(m) and red[0] > red[2] and blue[2] > blue[0]
    np.testing.assert_allclose(overlay(image, m, limit=2.), overlay(image, m))
    assert 0 <= overlay(image, m, alpha=1.).min() and overlay(image, m, alpha=1.).max() <= 1


# ---- plot_explanation

def full_colour(m, kind):
    "Where the scale of an unsigned map ends: evidence is peaked, and 3 % of its pixels may be brighter"
    lo, hi = float(m.min()), float(m.max())
    return max(float(np.quantile(m.numpy(), .97)), lo+.05*(hi-lo)) if kind == "evidence" else hi


@pytest.mark.parametrize("kw, kind", [({}, "evidence"), (dict(kind="paper"), "paper"), (dict(alpha=.8), "paper")], ids=str)
def test_explanation_layout(exp, x, kw, kind):
    fig = plot_explanation(exp, **kw, labels=[int(exp.target[0]), (int(exp.target[1])+1) % 3, int(exp.target[2])], max_blocks=3)
    p = panels(fig)
    assert len(p) == 3*6 and not bars(fig)
    assert [a.get_title() for a in p[:6]] == ["image", exp.block_names[0], exp.block_names[2], exp.block_names[3], f"fused, {kind}", "over the image"]
    assert not any(a.get_title() for a in p[6:]), "headings once, above the first row"
    maps, blocks = (f(**{**kw, "kind": kind}) for f in (exp.map, exp.block_maps))
    for i in range(3):
        row = p[6*i:6*i+6]
        np.testing.assert_allclose(shown(row[0]), to_image(x[i]), atol=1e-6)
        for ax, l in zip(row[1:4], (0, 2, 3)):
            np.testing.assert_allclose(shown(ax), blocks[l][i], atol=1e-6)
            assert ax.get_xlabel() == f"this head {float(exp.head_logits[l, i].softmax(0)[exp.target[i]]):.0%}"
        np.testing.assert_allclose(shown(row[4]), maps[i], atol=1e-6)
        top = full_colour(maps[i], kind)
        assert limits(row[4]) == pytest.approx((float(maps[i].min()), top), abs=1e-6) and row[4].images[0].get_cmap().name == UNSIGNED
        for ax, l in zip(row[1:4], (0, 2, 3)): assert limits(ax) == pytest.approx((float(blocks[l][i].min()), full_colour(blocks[l][i], kind)), rel=1e-5, abs=1e-6)
        np.testing.assert_allclose(shown(row[5]), overlay(to_image(x[i]), maps[i], signed=False, limit=top-float(maps[i].min())), atol=1e-5)


def test_scale_of_a_peaked_map(exp):
    "One pixel far above the rest neither darkens all others nor lifts their noise to full colour"
    from mhex.viz import _top
    m = torch.ones(20, 20); m[3, 4] = 401.
    assert _top(m, "evidence") == 21 and _top(m, "paper") == 401
    m[:3] = torch.arange(60.).reshape(3, 20)+100
    assert 100 < _top(m, "evidence") < 160
    assert _top(torch.full((4, 4), 2.), "evidence") > 2


def test_verdicts(exp):
    best = exp.target.tolist()
    labels = [best[0], (best[1]+1) % 3, best[2]]
    fig = plot_explanation(exp, labels=labels)
    said = [panels(fig)[7*i].xaxis.label for i in range(3)]
    p = [f"{NAMES[k]}, {float(exp.probs[i, k]):.0%}" for i, k in enumerate(best)]
    assert [t.get_text() for t in said] == [f"{p[0]}\n✓ right", f"{p[1]}\n✗ wrong, is {NAMES[labels[1]]}", f"{p[2]}\n✓ right"]
    assert [t.get_color() for t in said] == [RIGHT, WRONG, RIGHT]
    fig = plot_explanation(exp)
    assert [panels(fig)[7*i].get_xlabel() for i in range(3)] == p and "right" not in " ".join(texts(fig)), "nothing is judged without labels"


def test_verdicts_of_several_labels(x):
    exp = mhex.explain(attached(multi_label=True), x)
    labels = torch.zeros(3, 3)
    labels[0, exp.target[0]] = labels[1, (exp.target[1]+1) % 3] = labels[1, (exp.target[1]+2) % 3] = 1
    said = [panels(plot_explanation(exp, labels=labels))[7*i].get_xlabel() for i in range(3)]
    first = min((int(exp.target[1])+1) % 3, (int(exp.target[1])+2) % 3)
    assert said[0].endswith("✓ right") and said[1].endswith(f"✗ wrong, is {NAMES[first]} …") and said[2].endswith("✗ wrong, is none")
    assert said[0].startswith(f"{NAMES[int(exp.target[0])]}, {float(exp.logits[0, exp.target[0]].sigmoid()):.0%}")


@pytest.mark.parametrize("kw, unit", [(dict(kind="exact"), "logits"), (dict(negative=-1.), "raw")])
def test_signed_maps_share_a_symmetric_scale(exp, kw, unit):
    fig = plot_explanation(exp, **kw)
    fused, blocks = exp.map(**kw), exp.block_maps(**kw)
    for i in range(3):
        row, top = panels(fig)[7*i+1:7*i+6], max(float(m[i].abs().max()) for m in [fused, *blocks])
        assert all(limits(a) == pytest.approx((-top, top), rel=1e-5) and a.images[0].get_cmap().name == SIGNED for a in row)
        bar = bars(fig)[i]
        assert bar.get_ylabel() == unit and bar.get_ylim() == pytest.approx((-top, top), rel=1e-5)
        assert [t.get_text() for t in bar.get_yticklabels()] == [f"−{top:.3g}", "0", f"{top:.3g}"]
    if unit == "logits": assert panels(fig)[5].get_xlabel() == "logit "+(f"{float(exp.logits[0, exp.target[0]]):+.2f}").replace("-", "−")


def test_masks_and_peaks(exp, masks):
    other = torch.rand(3, 20, 28, generator=torch.Generator().manual_seed(3))
    fig = plot_explanation(exp, masks=masks, others={"random": other})
    for i in range(3):
        row = panels(fig)[8*i:8*i+8]
        assert [outline(a) for a in row] == [True, False, False, False, False, True, True, True]
        for ax, m in ((row[5], exp.map()[i]), (row[7], other[i])):
            y, x = divmod(int(m.argmax()), 28)
            assert set(cross(ax)) == {(x, y)}
        assert not any(cross(a) for a in row[:5])
    assert panels(fig)[7].get_title() == "random"
    np.testing.assert_allclose(shown(panels(fig)[7]), overlay(to_image(exp.x[0]), other[0], signed=False), atol=1e-5)
    plain = panels(plot_explanation(exp, others={"random": other}))
    assert not any(outline(a) or cross(a) for a in plain), "no mask: nothing to hit"
    for m in (torch.zeros_like(masks), torch.ones_like(masks)): assert not any(outline(a) for a in panels(plot_explanation(exp, masks=m)))


def test_targets(x):
    model = attached()
    fig = plot_explanation(mhex.explain(model, x, torch.tensor([[0, 1], [2, 0], [1, 1]])), 1)
    assert [panels(fig)[7*j].get_xlabel().split(",")[0] for j in (0, 1)] == ["owl", "cat"]
    fig = plot_explanation(mhex.explain(model, x, lambda p: p[0]-p[1]), 0, kind="exact")
    assert panels(fig)[0].get_xlabel() == "target: a function\nof the logits" and not any("head" in t for t in texts(fig))
    fig = plot_explanation(mhex.explain(attached(names=None), x, 2), 0)
    assert panels(fig)[0].get_xlabel().startswith("2, ")


def test_blocks_are_spread(x):
    torch.manual_seed(0)
    exp = mhex.explain(mhex.attach(mhex.create_backbone("resnet18_28", 3, in_channels=1, width=8), 3), x)
    for n, want in ((1, [0]), (2, [0, 7]), (4, [0, 2, 5, 7]), (99, list(range(8)))):
        assert [a.get_title() for a in panels(plot_explanation(exp, 0, max_blocks=n))[1:-2]] == [exp.block_names[i] for i in want]


# ---- plot_classes

def test_classes(exp, x):
    best = exp.logits.argmax(1).tolist()
    fig = plot_classes(exp, None, labels=[best[0], (best[1]+1) % 3, best[2]])
    maps = exp.maps("exact")
    assert len(panels(fig)) == 3*4 and len(bars(fig)) == 3
    for i in range(3):
        row, top = panels(fig)[4*i:4*i+4], float(maps[i].abs().max())
        assert all(limits(a) == pytest.approx((-top, top), rel=1e-5) for a in row[1:])
        for c, ax in enumerate(row[1:]):
            np.testing.assert_allclose(shown(ax), maps[i, c], atol=1e-6)
            number, said = (ax.get_xlabel()+"\n").split("\n")[:2]
            logit = float(exp.logits[i, c])
            assert number == f"{logit:+.2f}, {float(exp.probs[i, c]):.0%}".replace("-", "−") and abs(shown(ax).mean()-logit) < 1e-4, "the mean of a map is the logit below it"
            true = best[i] if i != 1 else (best[1]+1) % 3
            assert said == ", ".join(["predicted"]*(c == best[i])+["true"]*(c == true))
            assert all(s.get_visible() == (c == best[i]) for s in ax.spines.values()), "a frame around the predicted one, and no other"
        assert row[0].get_xlabel().endswith("✗ wrong" if i == 1 else "✓ right")
    assert [a.get_title() for a in panels(fig)[:4]] == ["image", *NAMES]


def test_most_probable_classes(x):
    exp = mhex.explain(attached(7, [f"class {i}" for i in range(7)]), x)
    p = panels(plot_classes(exp, [0, 2], max_classes=3))
    for n, i in enumerate((0, 2)):
        top = sorted(exp.logits[i].topk(3).indices.tolist())
        assert [a.get_title() for a in p[4*n+1:4*n+4]] == [f"class {k}" for k in top], "in the order of the classes, named in every row"
        assert p[4*n].get_xlabel() == "3 of 7 classes"


# ---- what is refused

BAD = [
    ("no explanation", lambda e: plot_explanation(e.x), TypeError, ["exp is Tensor", "mhex.explain"]), ("no explanation, classes", lambda e: plot_classes(None), TypeError, "exp is NoneType"),
    ("index", lambda e: plot_explanation(e, 3), ValueError, ["index holds 3", "3 samples"]), ("no index", lambda e: plot_explanation(e, []), ValueError, "index is empty"),
    ("half an index", lambda e: plot_explanation(e, [.5]), TypeError, ["index holds float", "whole numbers"]), ("float index", lambda e: plot_classes(e, 1.5), TypeError, "index is float"),
    ("kind", lambda e: plot_explanation(e, kind="gradcam"), ValueError, ["kind is 'gradcam'", "exact, paper"]), ("setting", lambda e: plot_explanation(e, sharp=.5), TypeError, "sharp"),
    ("few labels", lambda e: plot_explanation(e, labels=[0]), ValueError, ["labels have shape (1,)", "expected (3,)"]), ("label", lambda e: plot_explanation(e, labels=[0, 1, 3]), ValueError, ["labels run from 0 to 3", "0 to 2"]),
    ("negative label", lambda e: plot_classes(e, labels=[-1, 0, 0]), ValueError, "labels run from -1"), ("column", lambda e: plot_classes(e, labels=torch.zeros(3, 1)), ValueError, "labels have shape (3, 1)"),
    ("names", lambda e: plot_explanation(e, labels=["cat", "dog", "owl"]), TypeError, ["labels are list", "class indices"]), ("masks' size", lambda e: plot_explanation(e, masks=torch.ones(3, 5, 5).bool()), ValueError, ["masks has shape (3, 5, 5)", "(3, 20, 28)"]),
    ("few masks", lambda e: plot_explanation(e, masks=torch.ones(1, 20, 28).bool()), ValueError, "masks has shape (1, 20, 28)"), ("soft masks", lambda e: plot_explanation(e, masks=torch.rand(3, 20, 28)), TypeError, ["masks are torch.float32", "threshold"]),
    ("others' size", lambda e: plot_explanation(e, others={"cam": torch.rand(3, 5, 5)}), ValueError, ["others['cam'] has shape (3, 5, 5)", "(3, 20, 28)"]), ("others", lambda e: plot_explanation(e, others=[e.map()]), TypeError, ["others is list", "name -> maps"]),
    ("NaN", lambda e: plot_explanation(e, others={"cam": e.map()*np.nan}), ValueError, "NaN"), ("no blocks", lambda e: plot_explanation(e, max_blocks=0), ValueError, ["max_blocks is 0", "from 1 up"]),
    ("no classes", lambda e: plot_classes(e, max_classes=0), ValueError, "max_classes is 0"), ("mean alone", lambda e: plot_explanation(e, mean=[.5]), ValueError, "mean and std go together"),
    ("mean of another", lambda e: plot_explanation(e, mean=[.5]*3, std=[.5]*3), ValueError, ["shapes (3,) and (3,)", "1 channels"]), ("one number", lambda e: to_image(e.x[0], .5, .5), ValueError, "a list of 1"),
    ("a batch", lambda e: to_image(e.x), ValueError, ["(3, 1, 20, 28)", "one image"]), ("another size", lambda e: overlay(np.zeros((5, 5, 3)), e.map()[0]), ValueError, ["(20, 28)", "(5, 5)", "size='input'"]),
]


@pytest.mark.parametrize("act, error, says", [r[1:] for r in BAD], ids=[r[0] for r in BAD])
def test_refused(exp, act, error, says):
    with pytest.raises(error) as got: act(exp)
    for s in [says] if isinstance(says, str) else says: assert s in str(got.value)


# ---- files

def test_saved_files_are_reproducible(exp, tmp_path):
    for d in ("a", "b"): save_explanation(exp, tmp_path/d, kind="exact", labels=[0, 1, 2], facts={"seed": 0})
    assert sorted(p.name for p in (tmp_path/"a").iterdir()) == ["classes.png", "explanation.png", "manifest.json", "maps.npz"]
    for p in (tmp_path/"a").iterdir(): assert p.read_bytes() == (tmp_path/"b"/p.name).read_bytes(), p.name
    assert not plt.get_fignums(), "figures that were saved are closed"
    save_figure(plot_explanation(exp), tmp_path/"one.png", dpi=50)
    with Image.open(tmp_path/"one.png") as im: assert im.format == "PNG" and im.info["dpi"] == pytest.approx((50, 50), abs=.1)


@pytest.mark.parametrize("kind", ["paper", "exact", "evidence"])
@pytest.mark.parametrize("choice, blocks", [(dict(blocks=[0]), [0]), (dict(blocks=[-1, 1, 1]), [1, 3]), (dict(layers="early"), [0]), (dict(layers="all"), [0, 1, 2, 3])], ids=str)
def test_saved_choice_of_blocks(exp, tmp_path, kind, choice, blocks):
    "Some blocks only: the map and the picture are of them, and each block's own map is there all the same"
    save_explanation(exp, tmp_path, kind=kind, **choice)
    with np.load(tmp_path/"maps.npz") as saved:
        np.testing.assert_allclose(saved["map"], exp.map(kind=kind, **choice), atol=1e-6)
        assert [k for k in saved if k.startswith("block_")] == [f"block_{i}" for i in range(4)]
    assert json.loads((tmp_path/"manifest.json").read_text())["settings"] == choice
    p = panels(plot_explanation(exp, 0, kind=kind, **choice))
    assert [a.get_title() for a in p] == ["image", *(exp.block_names[i] for i in blocks), f"fused, {kind}", "over the image"]
    np.testing.assert_allclose(shown(p[-2]), exp.map(kind=kind, **choice)[0], atol=1e-6)
    if kind == "exact" and "blocks" in choice:
        want = float(exp.map(kind=kind, size="native", **choice)[0].mean())
        assert p[-2].get_xlabel().split("\n")[0] == ("this head" if len(blocks) == 1 else "these heads") and abs(float(p[-2].get_xlabel().split()[-1].replace("−", "-"))-want) < .06


def test_figure_that_cannot_be_saved_is_closed(exp, tmp_path):
    with pytest.raises(FileNotFoundError, match="is not a folder"): save_figure(plot_explanation(exp), tmp_path/"none"/"x.png")
    assert not plt.get_fignums()


def test_without_an_exact_map(x, tmp_path):
    "The backbone predicts and its classifier cannot be taken apart: said in the manifest, and no picture of classes"
    exp = mhex.explain(attached(mode="probe"), x)
    from dataclasses import replace
    save_explanation(replace(exp, features=None), tmp_path/"none")
    assert sorted(p.name for p in (tmp_path/"none").iterdir()) == ["explanation.png", "manifest.json", "maps.npz"] and "no exact map" in (tmp_path/"none"/"manifest.json").read_text()
    assert exp.features is not None and (save_explanation(exp, tmp_path/"some")/"classes.png").exists()


# ---- names nobody should give

HOSTILE = ["<script>alert(1)</script>", "\"><img src=x onerror=alert(1)>", "'single' & \"double\"", "$x_1$", "$\\frac{$ _^{}\\", "very "*60, "W"*300, "שלום עולם", "مرحبا بالعالم", "👩‍🔬🧪", "日本語の名前です",
           "line\nbreak\ttab", "", "   ", "nul\x00", "\udcff", "‮reversed", "%s{0}\\n"]


@pytest.fixture
def strict():
    "A warning is an error here, such as one about a glyph or a formula"
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: ascii(n[:12]))
def test_hostile_class_names_in_pictures(x, tmp_path, strict, name):
    exp = mhex.explain(attached(names=["cat", name, "owl"]), x[:1], 1)
    fig = plot_explanation(exp, labels=[0], others={name: exp.map()})
    said = panels(fig)[0].get_xlabel().split("\n")
    assert said[-1] == "✗ wrong, is cat" and all(len(l) < 26 for t in texts(fig) for l in t.split("\n"))
    save_figure(fig, tmp_path/"a.png", dpi=40)
    fig = plot_classes(exp, labels=[1])
    assert panels(fig)[2].get_title() and len(panels(fig)[2].get_title().split("\n")) <= 2
    save_figure(fig, tmp_path/"b.png", dpi=40)


def test_long_names_end_in_dots(x):
    "What is cut says so; what fits stands whole"
    def title(name): return panels(plot_classes(mhex.explain(attached(names=[name, "b", "c"]), x[:1])))[1].get_title()
    assert title("malignant") == "malignant" and title("MALIGNANT") == "MALIGNANT" and title("normal, benign") == "normal, benign" and title("w"*300) == "w"*16+"\n"+"w"*15+"…" and title("W"*300) == "W"*8+"\n"+"W"*7+"…"
    assert title("adipose tissue of the colon wall") == "adipose tissue\nof the colon…" and title("日本語の名前です"*9).endswith("…")


def test_text_stays_inside_the_figure(x, tmp_path):
    "No name, number or scale is cut off at an edge of the picture"
    exp = mhex.explain(attached(names=["W"*40, "A RATHER LONG NAME OF A CLASS", "日本語の名前です"]), x)
    labels = [(int(t)+1) % 3 for t in exp.target]
    for fig in (plot_explanation(exp, labels=labels, kind="exact"), plot_classes(exp, None, labels=labels)):
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph")
            fig.canvas.draw()
        w, h = fig.canvas.get_width_height()
        for t in fig.findobj(matplotlib.text.Text):
            if not t.get_text() or not t.get_visible() or not t.get_window_extent().width: continue
            b = t.get_window_extent()
            assert -1 <= b.x0 and b.x1 <= w+1 and -1 <= b.y0 and b.y1 <= h+1, (t.get_text(), b)


class Page(HTMLParser):
    "Every tag with its attributes, and the text between"
    def __init__(self, text):
        super().__init__()
        self.tags, self.text = [], []
        self.feed(text)
    def handle_starttag(self, tag, attrs): self.tags.append((tag, dict(attrs)))
    def handle_data(self, text): self.text.append(text)


@pytest.mark.parametrize("name", HOSTILE, ids=lambda n: ascii(n[:12]))
def test_hostile_names_in_the_report(tmp_path, name):
    "Wherever a name stands, the page has the tags that it has without it, and its text is the name"
    Image.new("RGB", (3, 3)).save(tmp_path/"x.png")
    def tags(name):
        write_report(tmp_path/"r.html", name, [(name, [("text", name), ("table", [{name: name, "n": .5}]), ("image", tmp_path/"x.png", name)])], footer=name)
        return Page((tmp_path/"r.html").read_text("utf-8"))
    plain, page = tags("cat"), tags(name)
    assert [(t, sorted(a)) for t, a in page.tags] == [(t, sorted(a)) for t, a in plain.tags]
    if "\udcff" not in name and "\x00" not in name:
        assert page.text.count(name) == plain.text.count("cat") == 8 or not name
        assert next(a["alt"] for t, a in page.tags if t == "img") == name
    assert not re.search(r"<script|onerror=[^&]*>", (tmp_path/"r.html").read_text("utf-8").replace("&lt;", "")) or name.startswith(("<", '"'))


def test_report_parts(tmp_path):
    assert table_html([]) == "" and "<td>0.5000</td><td>3</td>" in table_html([{"a": .5, "n": 3}])
    with pytest.raises(ValueError, match="'text', 'table', 'image' or 'words'"): write_report(tmp_path/"r.html", "t", [("h", [("html", "<b>")])])
    with pytest.raises(FileNotFoundError): write_report(tmp_path/"r.html", "t", [("h", [("image", tmp_path/"none.png", "")])])
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [n for n in HOSTILE if n.strip() and "\udcff" not in n], ids=lambda n: ascii(n[:12]))
def test_hostile_names_in_interpretation(name, strict):
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0))
    i = MHEXInterpretation(torch.nn.Linear(1, 1), None, logits, torch.arange(20) % 3, ["cat", name, "owl"])
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph|Tight layout|constrained_layout")
        i.plot_confusion_matrix().canvas.draw()


# ---- training curves

HEAD = "epoch,train_loss,valid_loss,accuracy,loss layer1.0,accuracy layer1.0\n"


def history(path, text): path.write_bytes(text.encode() if isinstance(text, str) else text); return path


def test_training_curves(tmp_path):
    rows = [{"epoch": e, "train_loss": 2./(e+1), "valid_loss": 1.5/(e+1), "accuracy": .5+e/10, **{f"loss b{i}": (3.-i)/(e+1) for i in range(3)}, **{f"accuracy b{i}": .1*i+e/10 for i in range(3)}} for e in range(4)]
    a, b = plot_training(rows).axes
    lines = {l.get_label(): l for l in a.lines}
    assert list(lines) == ["b0", "b1", "b2", "training, smoothed", "validation, prediction"] and [l.get_label() for l in b.lines] == ["b0", "b1", "b2", "prediction"]
    assert lines["b1"].get_xdata() == pytest.approx([1, 2, 3, 4]) and lines["b1"].get_ydata() == pytest.approx([2/(e+1) for e in range(4)])
    assert (a.get_title(loc="left"), b.get_title(loc="left"), a.get_xlabel()) == ("loss", "validation accuracy", "epoch") and lines["validation, prediction"].get_color() == INK
    with open(tmp_path/"h.csv", "w", newline="") as f:
        w = csv.DictWriter(f, list(rows[0])); w.writeheader(); w.writerows(rows)
    assert read_history(tmp_path/"h.csv") == rows
    for x, y in zip(plot_training(tmp_path/"h.csv").axes[0].lines, a.lines): assert x.get_ydata() == pytest.approx(y.get_ydata())


def test_curves_of_a_real_run(tmp_path):
    learn = mhex_learner(load_data("digits", size=8).subset(60, 20, 20), backbone_kw=dict(width=8, blocks=(1, 1)), device="cpu").fit_recipe(tmp_path, epochs=2, quiet=True)
    a, b = plot_training(tmp_path/"history.csv").axes
    assert len(a.lines) == len(learn.model.units)+2 and len(b.lines) == len(learn.model.units)+1 and all(len(l.get_xdata()) == 2 for l in a.lines)


def test_gaps_and_single_rows(tmp_path, strict):
    "A value that was not measured is a gap; one epoch is enough; no known column is an empty frame"
    fig = plot_training(history(tmp_path/"h.csv", "epoch,valid_loss,accuracy\n0,1.0,\n1,,0.5\n2,0.5,0.6\n"))
    assert np.isnan(fig.axes[0].lines[0].get_ydata()[1]) and np.isnan(fig.axes[1].lines[0].get_ydata()[0])
    fig.canvas.draw()
    plot_training([{"epoch": 0, "accuracy": .5}]).canvas.draw()
    plot_training([{"epoch": 0, "loss $\\frac{$": .5, "note": "x"}]).canvas.draw()


@pytest.mark.parametrize("text, says", [
    ("", "holds no training history"), (HEAD, "holds no training history"), ("a,b\n1,2\n", "column 'epoch'"), ("epoch,accuracy\nfirst,0.5\n", "whole numbers"), ("epoch,accuracy\n0.5,0.5\n", "whole numbers"),
    ("epoch,accuracy\nnan,0.5\n", "whole numbers"), ("epoch,accuracy\n,0.5\n", "whole numbers"), (HEAD+"0,1,1,.5,2,.4\n1,1,1,.5", "line 3 of"), (HEAD+"0,1,1,.5,2,.4,9\n", "line 2 of"),
    (bytes(range(128, 256)), "cannot be read as CSV"), (b"\x89PNG\r\n\x1a\n\x00\x00", "cannot be read as CSV"), ("epoch\n\x00\n", "training history|CSV"),
], ids=lambda v: None if isinstance(v, bytes) else ascii(v[:14]))
def test_broken_history(tmp_path, text, says):
    for act in (read_history, plot_training):
        with pytest.raises(ValueError, match=says) as got: act(history(tmp_path/"h.csv", text))
        assert "h.csv" in str(got.value)


def test_no_history(tmp_path):
    with pytest.raises(FileNotFoundError, match="no training history at"): plot_training(tmp_path/"none.csv")
    with pytest.raises(FileNotFoundError, match="no training history at"): plot_training(tmp_path)
    for rows in ([], [{"a": 1}], [3]):
        with pytest.raises(ValueError, match="rows holds no training history"): plot_training(rows)
