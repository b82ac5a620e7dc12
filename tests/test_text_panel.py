"The text inspector without a browser: what it shows of a text with hidden words is what the model says; scores add up; nothing from a text acts; wrong input is refused and changes nothing."
import json, re
from dataclasses import replace
from html.parser import HTMLParser
import numpy as np
import pytest, torch
from torch.testing import assert_close
from mhex.adapt import attach
from mhex.minibert import mini_bert
from mhex.panels import number
from mhex.saliency import explain
from mhex.text_panel import TextInspector, _sums, hidden_batch, shown_units
from mhex.textdata import TextData

SAID = ["The striker scored a late goal.", "Shares fell as the bank missed its forecast.", "Unbelievable robots explore a distant planet!"]
NAMES = ["sport", "business", "science"]


def make(predict="mean", layers=4, names=NAMES, seed=1, dtype=torch.float32, vocab=110, **kw):
    net, tok = mini_bert(len(names), pretrained=False, texts=SAID, vocab_size=vocab, layers=layers, width=32, seed=seed, multi_label=kw.get("multi_label", False))
    torch.manual_seed(0)
    return attach(net.to(dtype), len(names), tokenizer=tok, predict=predict, class_names=names, **kw).eval()


@pytest.fixture(scope="module")
def model(): return make()


def by_hand(model, text, at, masking):
    "Logits with tokens hidden, without the panel's code"
    x = model.tokenizer(text, return_tensors="pt")
    if masking == "mask": x["input_ids"][0, list(at)] = model.tokenizer.mask_token_id
    else: x = {k: v[:, [t for t in range(v.shape[1]) if t not in at]] for k, v in x.items()}
    with torch.no_grad(): return model(x)[0], torch.stack(model.head_logits)[:, 0]


@pytest.mark.parametrize("masking", ["mask", "delete"])
@pytest.mark.parametrize("predict", ["last", "mean", "decay", "backbone"])
def test_hidden_words_are_the_models_own(predict, masking):
    model = make(predict)
    panel = TextInspector(model, SAID[1], kind="paper" if predict == "backbone" else "exact", masking=masking)
    r, at = panel.read(SAID[1]), (2, 3, 6)
    panel.update(masked=at)
    logits, heads = by_hand(model, SAID[1], at, masking)
    got, got_heads = panel.run_hidden(r, [at], masking)
    assert_close(got[0], logits, atol=1e-5, rtol=1e-4)
    assert_close(got_heads[:, 0], heads, atol=1e-5, rtol=1e-4)
    for p in got[0].softmax(0): assert f"{float(p) * 100:.1f} %" in panel.shown["classes"]
    change = float(got[0, panel.class_of(panel.state)] - r.exp.logits[0].max())
    assert number(change, 3) in panel.shown["hidden"]


def test_each_alone_and_together(model):
    "The table has one row a word and one for all; each number is that of a run of its own, and the promise is minus the score."
    panel = TextInspector(model, SAID[0], target=1)
    r = panel.read(SAID[0])
    words = {u.text: u for u in shown_units(r.exp, "words")}
    picks = [words["striker"], words["late"]]
    panel.toggle_word(*picks[0].tokens).toggle_word(*picks[1].tokens)
    rows = re.findall(r"<tr[^>]*><th[^>]*>(.*?)</th><td>(.*?)</td><td>(.*?)</td></tr>", panel.shown["hidden"].split("<tbody>")[1])
    assert [re.sub("<[^>]+>", "", a) for a, _, _ in rows] == ["striker", "late", "all together"]
    scores = panel.scores(panel.state, r)[1]
    for (_, said, really), at in zip(rows, [picks[0].tokens, picks[1].tokens, panel.state.masked]):
        change = by_hand(model, SAID[0], at, "mask")[0][1] - r.exp.logits[0, 1]
        assert abs(float(said.replace("−", "-")) + float(scores[list(at)].sum())) < 6e-4
        assert abs(float(really.replace("−", "-")) - float(change)) < 6e-4


@pytest.mark.parametrize("kind,layer", [("exact", "all"), ("exact", "early"), ("exact", 2)])
def test_words_add_up(kind, layer):
    "In float64: the words of every class sum to the logit they are said to sum to; pieces merged are the words."
    model = make(dtype=torch.float64, vocab=70)
    panel = TextInspector(model, SAID[2], kind=kind, layer=layer)
    r, s = panel.read(SAID[2]), panel.state
    m, (_, pick, _) = panel.scores(s, r), panel.promise(s, r)
    words, pieces = ([u for u in shown_units(r.exp, v) if u.word] for v in ("words", "pieces"))
    want = pick(r.exp.logits[0], r.exp.head_logits[:, 0])
    assert_close(_sums(m, words).sum(1), want, atol=1e-10, rtol=0)
    assert_close(_sums(m, pieces).sum(1), want, atol=1e-10, rtol=0)
    assert len(pieces) > len(words)
    for u in words: assert_close(_sums(m, [u])[:, 0], sum(_sums(m, [p])[:, 0] for p in pieces if u.first <= p.first < u.stop), atol=1e-12, rtol=0)
    if layer == "all":
        assert_close(want, r.exp.logits[0])
        assert_close(_sums(m, words)[0], r.exp.words(0, kind="exact")[0].scores[1:-1] / r.exp.valid.sum())
        assert float(r.exp.completeness_delta) < 1e-10


def test_the_number_under_the_pointer(model):
    panel = TextInspector(model, SAID[0], target=2)
    scores = _sums(panel.scores(panel.state, panel.read(SAID[0]))[2], shown_units(panel.read(SAID[0]).exp, "words"))
    tips = re.findall(r'data-tip="([+−][\d.]+) logits"', panel.shown["words"])
    assert len(tips) == len(scores)
    for t, v in zip(tips, scores): assert abs(float(t.replace("−", "-")) - float(v)) <= .5 * 10 ** -len(t.split(".")[1]) + 1e-7
    panel.update(versus=0)
    tips = re.findall(r'data-tip="([+−][\d.]+) logits"', panel.shown["words"])
    a, b, d = (np.array([float(t.replace("−", "-")) for t in tips[i * len(scores):(i + 1) * len(scores)]]) for i in range(3))
    assert np.abs(a - b - d).max() < 2e-3


def test_render_is_pure(model):
    panel = TextInspector(model, SAID, labels=[0, 1, 2])
    states = [panel.check(replace(panel.state, **kw)) for kw in (dict(target=1), dict(layer=2, masked=(1,)), dict(view="pieces", versus=2), dict(text="goal"))]
    first = [panel.render(s) for s in states]
    before, shown = panel.state, dict(panel.shown)
    assert [panel.render(s) for s in reversed(states)] == first[::-1]
    assert panel.state == before and panel.shown == shown
    assert [TextInspector(model, SAID, labels=[0, 1, 2]).render(s) for s in states] == first
    assert all(list(f) == list(shown) for f in first)


def test_hiding_leaves_the_words_alone(model):
    "So the focus of the keyboard stays; and the rule that strikes out names this state only."
    panel = TextInspector(model, SAID[0])
    words = panel.shown["words"]
    panel.update(masked=(2,))
    one = panel.shown["marks"]
    assert panel.shown["words"] == words and '[data-pick="2:3"]' in one
    panel.update(masked=(3,))
    key = lambda m: re.search(r'class="(mx-m\w+)"', m)[1]
    assert panel.shown["words"] == words and key(one) != key(panel.shown["marks"]) and f":has(.{key(one)})" in one


NASTY = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "</p></div></style>", "\" onfocus=\"alert(1)", "' autofocus '", "&lt;b&gt; &amp;", "\u202eevil\u2066", "a\u200bb \x1b[2J", "</script><script>x</script>",
         "שלום סلام", "👩\u200d👩\u200d👧 🏴\U000e0067\U000e0062 e\u0301", "漢字 仮名", "\\u003cscript\\u003e", "javascript:alert(1)", "\ud83d broken"]


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.tags, self.attrs = [], []
        self.feed(page); self.close()
    def handle_starttag(self, tag, attrs): self.tags.append(tag); self.attrs += attrs


ALLOWED = {"div", "style", "table", "thead", "tbody", "tr", "th", "td", "p", "span", "i", "b", "s", "u"}


def test_nothing_acts():
    names = ["<img src=x onerror=alert(2)>", "</td><script>alert(3)</script>", "\" autofocus onfocus=\"x"]
    model = make(names=names)
    panel = TextInspector(model, ["fine", *[t for t in NASTY if "\ud83d" not in t]], labels=[0] * len(NASTY))
    for i, _ in enumerate(panel.texts):
        for view in ("words", "pieces"):
            panel.update(sample=i, view=view, versus=2, target=1)
            panel.update(masked=(1,))
            page = "".join(panel.shown.values())
            t = Tags(page)
            assert {*t.tags} <= ALLOWED
            assert not [k for k, _ in t.attrs if k.startswith("on") or k in ("src", "href", "autofocus")]
            assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\u200b]", page)
    assert 'dir="rtl"' in panel.update(text="שלום סلام", masked=()).shown["words"]
    panel.update(sample=1)
    whole = panel.static(layer=["all"])
    t = Tags(re.sub(r"<script[^>]*>.*?</script>", "", whole, flags=re.S))
    assert {*t.tags} <= ALLOWED | {"label", "select", "option", "input", "output", "fieldset", "legend"} and whole.count("<script") == 2
    assert not [k for k, _ in t.attrs if k.startswith("on") or k in ("src", "href", "autofocus")]
    panel.view
    for w in panel._controls.values(): assert "\u202e" not in str(getattr(w, "options", ""))


def test_broken_unicode(model):
    "A lone half of a surrogate pair cannot be tokenized; the panel says so and goes on."
    panel = TextInspector(model, SAID)
    try: panel.update(text="\ud83d broken")
    except (ValueError, TypeError) as e: assert str(e)
    assert panel.update(sample=1).state.text == SAID[1]


def test_no_text(model):
    panel = TextInspector(model)
    assert "There is no text yet" in panel.shown["words"] and panel.view is not None and panel.static()
    panel.update(target=1, layer=2)
    panel.update(text=SAID[0])
    assert (panel.state.target, panel.state.layer) == (1, 2) and "add up to" in panel.shown["words"]
    panel.update(text=" \n\t ")
    assert "There is no text yet" in panel.shown["words"] and panel.shown["classes"] == ""
    panel.update(text="[SEP]")
    assert "special or padding" in panel.shown["words"]
    with pytest.raises(ValueError, match="no text to hide"): panel.hide_strongest()
    with pytest.raises(ValueError, match="nothing to save"): panel.save("x")


def test_long_text_says_what_is_cut(model):
    panel = TextInspector(model, "goal " * 500)
    assert "The text has 502 tokens, the model takes 128: its last 374 are cut off" in panel.shown["words"]
    assert panel.shown["words"].count("data-pick") == 126


def test_bad_input(model):
    panel = TextInspector(model, SAID, labels=[0, 1, 2])
    before, shown = panel.state, dict(panel.shown)
    for kw, error, why in [(dict(text=3), TypeError, "expected a string"), (dict(target=3), ValueError, "-1 to 2"), (dict(target="sport"), TypeError, "whole number"), (dict(versus=True), TypeError, "whole number"),
                           (dict(layer=4), ValueError, "layer is 4"), (dict(layer="late"), ValueError, "'all', 'early'"), (dict(kind="grad"), ValueError, "'exact', 'paper', 'signed'"),
                           (dict(masked=(0,)), ValueError, "masked holds 0"), (dict(masked=(99,)), ValueError, "masked holds 99"), (dict(masked=3), TypeError, "numbers of tokens"), (dict(masked=("a",)), (ValueError, TypeError), "masked"),
                           (dict(masking="blank"), ValueError, "'mask', 'delete'"), (dict(sample=3), ValueError, "-1 to 2"), (dict(outcome="odd"), ValueError, "outcome"), (dict(view="letters"), ValueError, "'words', 'pieces'"),
                           (dict(peers=1), ValueError, "peers"), (dict(nothing=1), TypeError, "has no 'nothing'"), (dict(word=-1), ValueError, "word"), (dict(masking="delete", masked=tuple(range(1, 8))), ValueError, "delete every word")]:
        with pytest.raises(error, match=re.escape(why)): panel.update(**kw)
        assert panel.state == before and panel.shown == shown
    for args, kw, error, why in [((net_only(),), {}, TypeError, "mhex.attach"), ((None,), {}, TypeError, "model is None"), ((model, 3), {}, TypeError, "list of strings"), ((model, ["a", 3]), {}, TypeError, "text 1 is int"),
                                 ((model, ["a", " "]), {}, ValueError, "text 1 is empty"), ((model, ["a"], [5]), {}, ValueError, "do not fit"), ((model, ["a"], [[1, 0, 0]]), {}, ValueError, "one class a text"),
                                 ((model, ["a"]), dict(most=0), ValueError, "most is 0"), ((model,), dict(class_names=["x"]), ValueError, "1 names, the model has 3")]:
        with pytest.raises(error, match=re.escape(why)): TextInspector(*args, **kw)


def net_only(): return mini_bert(3, pretrained=False, texts=SAID, vocab_size=110)[0]


def test_without_tokenizer():
    model = make()
    model.tokenizer = None
    with pytest.raises(ValueError, match="needs the tokenizer"): TextInspector(model)


def test_picking():
    model = make()
    texts = SAID * 4
    p = torch.stack([explain(model, t).logits[0] for t in texts]).softmax(1)
    y = torch.tensor([0, 1, 2] * 4)
    panel = TextInspector(model, texts, labels=y.tolist())
    assert_close(panel.predicted(), p, atol=1e-5, rtol=1e-4)
    right = (p.argmax(1) == y)
    outcome = "wrong" if (~right).any() else "right"
    panel.update(outcome=outcome)
    assert panel.pool(panel.state) == (right if outcome == "right" else ~right).nonzero()[:, 0].tolist() and panel.state.sample == panel.pool(panel.state)[0] and panel.state.text == texts[panel.state.sample]
    panel.update(outcome="all", order="highest loss first")
    loss = -p[range(12), y].log()
    assert_close(loss[panel.pool(panel.state)], loss.sort(descending=True).values)
    panel.update(truth=1, order="least sure first")
    assert {y[i].item() for i in panel.pool(panel.state)} == {1}
    panel.update(text="my own goal")
    assert panel.state.sample == -1 and panel.state.text == "my own goal"
    none = next((c for c in range(3) if not ((~right) & (y == c)).any()), None)
    if none is not None:
        before = panel.state
        with pytest.raises(ValueError, match="none of the 12 texts"): panel.update(truth=none, outcome="wrong")
        assert panel.state == before


def test_text_data():
    data = TextData.from_lists("d", (SAID, [0, 1, 2]), (SAID, [0, 1, 2]), (SAID[::-1], [2, 1, 0]), class_names=NAMES)
    panel = TextInspector(make(), data)
    assert panel.texts == SAID[::-1] and "labelled science" in panel.shown["words"]
    two = TextData.from_lists("d", (SAID, [0, 1, 1]), (SAID, [0, 1, 1]), (SAID, [0, 1, 1]))
    with pytest.raises(ValueError, match="2 classes, the model 3"): TextInspector(make(), two)


def test_several_labels():
    model = make(multi_label=True)
    panel = TextInspector(model, SAID, labels=[[1, 0, 0], [1, 1, 0], [0, 0, 0]])
    assert "labelled sport" in panel.shown["words"] and "none of them" in panel.update(sample=2).shown["words"]
    panel.update(sample=1, masked=(1, 2))
    p = by_hand(model, SAID[1], (1, 2), "mask")[0].sigmoid()
    for v in p: assert f"{float(v) * 100:.1f} %" in panel.shown["classes"]
    assert panel.pool(replace(panel.state, truth=0)) == [0, 1]
    panel.update(order="highest loss first")


def test_probe_mode_promises_nothing():
    model = make("backbone", mode="probe")
    panel = TextInspector(model, SAID[0])
    assert panel.state.kind == "paper"
    with pytest.raises(ValueError, match="choose a layer"): panel.update(kind="exact")
    panel.update(masked=(2,))
    assert "nothing is promised" in panel.shown["classes"] and "–" in panel.shown["hidden"]
    panel.update(layer=1)
    panel.update(kind="exact")
    assert "in the head of layer 2" in panel.shown["words"] and "nothing is promised" not in panel.shown["classes"]
    assert panel.static(masked=None).count("data-axis") >= 2


def test_no_mask_token():
    model = make()
    model.tokenizer.mask_token = None
    panel = TextInspector(model, SAID[0], masked=(2,))
    assert panel.state.masking == "delete" and "deleted" in panel.shown["hidden"]
    with pytest.raises(ValueError, match="'delete'"): panel.update(masking="mask")
    with pytest.raises(ValueError, match="no mask token"): hidden_batch(panel.read(SAID[0]).exp.x, [(1,)], "mask", None)


def test_from_an_explanation(model):
    exp = explain(model, SAID[:2], target="business")
    view = exp.widget()
    assert view.state.target == 1 and view.shown["hidden"] == "" and view.view is not None
    assert view.update(sample=1).state.text == SAID[1]
    whole = exp.widget(model=model)
    whole.update(masked=(2,))
    assert_close(whole.run_hidden(whole.read(SAID[0]), [(2,)], "mask")[0][0], by_hand(model, SAID[0], (2,), "mask")[0], atol=1e-5, rtol=1e-4)
    batch = model.tokenizer(SAID[:2], padding=True, return_tensors="pt")
    assert "striker" in explain(model, batch).widget().shown["words"]


def test_peers(model, monkeypatch):
    panel = TextInspector(model, SAID[0], peers={"gradient-input": {}, "rollout": {}, "attention": {}}, target=1)
    panel.compare["integrated-gradients"] = dict(steps=0)
    panel.update(peers=True)
    s = panel.shown["peers"]
    assert s.count("mx-small") == 5 and s.count("knows no class") == 2 and "steps is 0" in s and "cannot run here" in s
    assert panel.render(panel.state) == panel.shown  # measured once
    from mhex.explainers.base import explain_with
    m = explain_with("gradient-input", model, panel.read(SAID[0]).exp.x, [1]).map[0]
    assert_close(panel.peer(panel.read(SAID[0]), 1, "gradient-input").map[0], m)


def test_controls_move_the_panel(model):
    panel = TextInspector(model, SAID, labels=[0, 1, 2])
    panel.view
    c = panel._controls
    c["target"].value = 2
    c["layer"].value = 1
    c["view"].value = "pieces"
    assert (panel.state.target, panel.state.layer, panel.state.view) == (2, 1, "pieces") and "head of layer 2" in panel.shown["words"]
    c["sample"].value = 1
    assert c["text"].value == SAID[1] and [o[1] for o in c["word"].options] == list(range(len([u for u in shown_units(panel.read(SAID[1]).exp, "pieces") if u.word])))
    c["text"].value = "a goal"
    assert panel.state.sample == -1 and c["sample"].value == -1
    panel.safely(panel.picked, "words", {"pick": "2:3"})
    assert panel.state.masked == (2,) and "(hidden)" in c["word"].options[1][0]
    panel.safely(panel.picked, "words", {"pick": "2:3"})
    assert panel.state.masked == ()
    panel.safely(panel.picked, "words", {"pick": "90:99"})
    assert "masked holds" in panel._live["said"].value and panel.state.masked == ()


def test_training_further(model):
    m = make()
    panel = TextInspector(m, SAID[0])
    before = panel.shown["words"]
    with torch.no_grad(): m.units[0].head.weight.mul_(-3)
    assert panel.update(target=-1).shown["words"] == before
    assert panel.forget().shown["words"] != before


def test_leaves_the_model_as_it_was():
    m = make().train()
    out = m({k: v for k, v in m.tokenizer(SAID[:1], return_tensors="pt").items()})
    heads = m.head_logits
    TextInspector(m, SAID, labels=[0, 1, 2], order="surest first").update(masked=(1,), peers=True)
    assert m.training and m.head_logits is heads and all(p.grad is None for p in m.parameters())


def test_save(model, tmp_path):
    panel = TextInspector(model, SAID, target=1, masked=(2, 3))
    panel.save(tmp_path / "out")
    m = json.loads((tmp_path / "out/manifest.json").read_text())
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["inspector.html", "manifest.json", "maps.npz", "words.html"]
    assert m["panel"]["masked"] == [2, 3] and m["text"] == SAID[0] and m["target"] == [1] and m["kind"] == "exact"
    assert_close(torch.tensor(m["logits_without_hidden"]), by_hand(model, SAID[0], (2, 3), "mask")[0], atol=1e-5, rtol=1e-4)
    page = (tmp_path / "out/inspector.html").read_text()
    assert not re.search(r'(?:src|href)=["\'](?!data:)|https?://', page)


def test_static_steps_through_hidden_words(model):
    panel = TextInspector(model, SAID[0], masked=(1,))
    axes = panel.axes(panel.state)
    assert len(axes["masked"].values) in (6, 7) and (1,) in axes["masked"].values
    frames = panel.frames(dict(masked=axes["masked"], target=axes["target"]))
    for s, shown in frames:
        p = panel.run_hidden(panel.read(SAID[0]), [s.masked], "mask")[0][0].softmax(0)
        assert all(f"{float(v) * 100:.1f} %" in shown["classes"] for v in p)
