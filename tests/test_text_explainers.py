"Peers on text models: every family, against naive versions, batch and single alike, nothing left behind."
import pytest, torch
from torch.testing import assert_close
from mhex.adapt import run_model
from mhex.explainers.base import explain_with, explainer_names
from mhex.explainers.text import check_text
from mhex.hooks import ModelState

tf = pytest.importorskip("transformers", reason='needs transformers: pip install "mhex[text]"')
from mhex.minibert import word_piece_tokenizer

TEXTS = ["the striker scored a goal", "shares rose sharply after the report said so", "a"]
METHODS = ["gradient-input", "integrated-gradients", "attention", "rollout"]
SMALL = dict(hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24, max_position_embeddings=64, num_labels=3)
FAMILIES = {"bert": lambda n: tf.BertForSequenceClassification(tf.BertConfig(vocab_size=n, **SMALL)),
            "roberta": lambda n: tf.RobertaForSequenceClassification(tf.RobertaConfig(vocab_size=n, pad_token_id=0, **SMALL)),
            "electra": lambda n: tf.ElectraForSequenceClassification(tf.ElectraConfig(vocab_size=n, embedding_size=12, **SMALL)),
            "distilbert": lambda n: tf.DistilBertForSequenceClassification(tf.DistilBertConfig(vocab_size=n, dim=16, n_layers=2, n_heads=2, hidden_dim=24, max_position_embeddings=64, num_labels=3))}


@pytest.fixture(scope="module")
def tok(): return word_piece_tokenizer(TEXTS, vocab_size=80)


def batch(tok, texts=TEXTS): return tok(texts, padding=True, return_tensors="pt", return_special_tokens_mask=True)


def build(family, tok, dtype=torch.float64):
    torch.manual_seed(1)
    model = FAMILIES[family](len(tok)).to(dtype).eval()
    for p in model.parameters(): torch.nn.init.normal_(p, std=.2) if p.ndim > 1 else None  # untrained attention is flat; this one is not
    return model


def test_registered(): assert {*METHODS} <= {*explainer_names()}


def test_one_attention(tok):
    "Texts and images share one definition; the row has a name for both, and a text's own."
    from mhex.explainers import attention, text
    assert callable(attention.attention_map) and callable(attention.rollout) and not [n for n in vars(text) if "attention" in n or "rollout" in n]
    model, x = build("bert", tok), batch(tok)
    for m in METHODS[2:]: assert torch.equal(explain_with(m, model, x, rows="words").map, explain_with(m, model, x, rows="mean").map)
    with pytest.raises(ValueError, match="rows is 'last'; expected 'cls', 'mean' or None"): explain_with("rollout", model, x, rows="last")


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("method", METHODS)
def test_families(family, method, tok):
    "In float64: a text in a padded batch has its own map, zeros elsewhere, and the model is left as it was."
    model, x = build(family, tok).train(), batch(tok)
    before, kind = ModelState.of(model), model.config._attn_implementation
    words = check_text(model, x)
    s = explain_with(method, model, x, target=[0, 2, 1])
    assert s.map.shape == words.shape and s.map.dtype == torch.float64 and (s.map[~words] == 0).all() and s.signed == (method in METHODS[:2])
    assert s.target.tolist() == [0, 2, 1] and s.target_from == "given" and s.seconds > 0 and not s.map.requires_grad
    for i, k in enumerate([0, 2, 1]):
        alone = explain_with(method, model, batch(tok, TEXTS[i:i + 1]), target=k).map[0]
        assert_close(s.map[i, :len(alone)], alone, atol=1e-9, rtol=1e-7)
    assert ModelState.of(model) == before and model.config._attn_implementation == kind and all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("family", FAMILIES)
def test_attention_implementations(family, tok):
    "sdpa and eager networks have the same maps; and the weights are what the network itself gives out."
    model, x = build(family, tok), batch(tok)
    maps = {}
    for kind in ("sdpa", "eager"):
        model.set_attn_implementation(kind)
        maps[kind] = [explain_with(m, model, x, target=1).map for m in METHODS]
    for a, b in zip(maps["sdpa"], maps["eager"]): assert_close(a, b, atol=1e-9, rtol=1e-7)
    with torch.no_grad(): As = model(x["input_ids"], x["attention_mask"], output_attentions=True).attentions
    s = explain_with("attention", model, x)
    words = check_text(model, x)
    assert len(s.block_maps) == len(As) == 2
    for m, A in zip(s.block_maps, As): assert_close(m, A.mean(1)[:, 0].where(words, 0.))
    R = torch.eye(words.shape[1], dtype=torch.float64)
    for A in As: R = (.5 * A.mean(1) + .5 * torch.eye(words.shape[1], dtype=torch.float64)) @ R
    assert_close(R.sum(-1), torch.ones_like(R.sum(-1)))
    assert_close(explain_with("rollout", model, x, target=2).map, R[:, 0].where(words, 0.))
    assert_close(explain_with("rollout", model, x, residual=1.).map, torch.zeros_like(R[:, 0]))  # only [CLS] itself, which is no word


@pytest.mark.parametrize("family", FAMILIES)
def test_integrated_gradients(family, tok):
    "Completeness, in float64; chunks change nothing; a straight line integrated by hand."
    model, x = build(family, tok), batch(tok)
    words = check_text(model, x)
    ref = x["input_ids"].masked_fill(words, tok.pad_token_id)
    e1, e0 = (model.get_input_embeddings()(i).detach() for i in (x["input_ids"], ref))
    def at(e):
        "The logit with these word embeddings; positions are those of the text (RoBERTa numbers them by which tokens are padding)"
        h = model.get_input_embeddings().register_forward_hook(lambda m, args, out: e)
        try: return run_model(model, x)[:, 1]
        finally: h.remove()
    s = explain_with("integrated-gradients", model, x, target=1, steps=200)
    with torch.no_grad(): assert ((s.map.sum(1) - (at(e1) - at(e0))).abs() < 2e-3 * s.map.abs().sum(1)).all()
    few = [explain_with("integrated-gradients", model, x, target=1, steps=7, chunk_size=c).map for c in (1, 8, 999)]
    assert_close(few[0], few[2], atol=1e-9, rtol=1e-7)
    assert_close(few[1], few[2], atol=1e-9, rtol=1e-7)
    total, n = 0, 400
    for k in range(n):  # midpoints
        e = (e0 + (k + .5) / n * (e1 - e0)).requires_grad_()
        total = total + torch.autograd.grad(at(e).sum(), e)[0] / n
    assert ((s.map - ((e1 - e0) * total).sum(-1).where(words, 0.)).abs() < 2e-3 * s.map.abs().sum(1, keepdim=True)).all()
    zero = explain_with("integrated-gradients", model, x, target=1, steps=200, baseline="zero").map
    with torch.no_grad(): assert ((zero.sum(1) - (at(e1) - at(e1.masked_fill(words[..., None], 0.)))).abs() < 2e-3 * zero.abs().sum(1)).all()


def test_targets(tok):
    "Predicted, by index, by the configuration's class name, by a callable: the difference of two logits is the difference of two maps."
    model, x = build("bert", tok), batch(tok)
    model.config.id2label = {0: "a", 1: "b", 2: "c"}
    for m in METHODS[:2]:
        maps = [explain_with(m, model, x, target=k).map for k in range(3)]
        assert_close(explain_with(m, model, x, target="b").map, maps[1])
        s = explain_with(m, model, x)
        best = run_model(model, x).argmax(1)
        assert s.target_from == "predicted" and torch.equal(s.target, best)
        assert_close(s.map, torch.stack([maps[k][i] for i, k in enumerate(best)]))
        d = explain_with(m, model, x, target=lambda z: z[0] - 2 * z[2])
        assert d.target.tolist() == [-1] * 3
        assert_close(d.map, maps[0] - 2 * maps[2], atol=1e-9, rtol=1e-6)
    a, b = (explain_with("attention", model, x, target=k).map for k in (0, 1))
    assert_close(a, b)  # says where, not for which class


def test_left_padding(tok):
    "Where padding comes first, the classifier's token is the first that is none."
    model, x = build("bert", tok), batch(tok, TEXTS[:2])
    left = {k: v.clone() for k, v in x.items()}
    n = int(x["attention_mask"][0].sum())
    for k, v in left.items(): v[0] = torch.roll(x[k][0], x[k].shape[1] - n)
    a, words = explain_with("attention", model, left), check_text(model, left)
    with torch.no_grad(): A = model(left["input_ids"], left["attention_mask"], output_attentions=True).attentions
    model.set_attn_implementation("eager")
    with torch.no_grad(): A = model(left["input_ids"], left["attention_mask"], output_attentions=True).attentions
    assert_close(a.map[0], A[-1][0].mean(0)[x["attention_mask"].shape[1] - n].where(words[0], 0.))


def test_under_no_grad_and_inference_mode(tok):
    model, x = build("bert", tok), batch(tok)
    want = [explain_with(m, model, x, target=1).map for m in METHODS]
    for ctx in (torch.no_grad, torch.inference_mode):
        with ctx(): got = [explain_with(m, model, x, target=1).map for m in METHODS]
        for a, b in zip(got, want): assert_close(a, b)


def test_a_failure_leaves_no_trace(tok):
    model, x = build("bert", tok).train(), batch(tok)
    before = ModelState.of(model)
    def broken(*a): raise RuntimeError("in the middle")
    h = model.bert.encoder.layer[1].register_forward_hook(broken)
    for m in METHODS:
        with pytest.raises(RuntimeError, match="in the middle"): explain_with(m, model, x)
    h.remove()
    assert ModelState.of(model) == before and model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize("change, error, says", [
    (lambda x: x["input_ids"], TypeError, "text explainers take a tokenizer's batch"), (lambda x: {k: v for k, v in x.items() if k != "attention_mask"}, ValueError, "needs attention_mask"),
    (lambda x: {k: v for k, v in x.items() if k != "special_tokens_mask"}, ValueError, "return_special_tokens_mask=True"), (lambda x: {**x, "input_ids": x["input_ids"].float()}, TypeError, "torch.float32"),
    (lambda x: {**x, "special_tokens_mask": torch.ones_like(x["input_ids"])}, ValueError, "sample 0 of the batch holds only special"), (lambda x: {k: v[:0] for k, v in x.items()}, ValueError, "empty")])
@pytest.mark.parametrize("method", METHODS)
def test_bad_batches(method, change, error, says, tok):
    with pytest.raises(error, match=says): explain_with(method, build("bert", tok), change(dict(batch(tok))))


@pytest.mark.parametrize("mode", ["train", "probe"])
def test_attached(mode, tok):
    "On an attached model: the same targets, its own words; in probe mode the maps of the plain network."
    pytest.importorskip("mhex.transformer", reason="adapters for transformers are not here")
    import mhex
    model, x = build("bert", tok), batch(tok)
    plain = [explain_with(m, model, x, target=1, **({"rows": "cls"} if m in METHODS[2:] else {})).map for m in METHODS]
    torch.manual_seed(0)
    net = mhex.attach(model, 3, mode=mode)
    net.double() if hasattr(net, "double") else None
    before = ModelState.of(net)
    got = [explain_with(m, net, x, target=1) for m in METHODS]
    words = check_text(net, x)
    for s in got: assert s.map.shape == words.shape and (s.map[~words] == 0).all()
    if mode == "probe":
        for s, p in zip(got, plain): assert_close(s.map, p)
    else: assert_close(got[2].map, explain_with("attention", net, x, target=1, rows="words").map)
    assert ModelState.of(net) == before and net.head_logits is None
    mhex.detach(net)
