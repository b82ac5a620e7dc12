"What MHEX promises, for every family of networks: exactness, what is left behind, gradients, loops as oracles, memory."
import copy, gc
import pytest, torch, torch.nn.functional as F
from torch import nn
from torch.testing import assert_close
import mhex
from mhex.adapt import PREDICT
from mhex.core import gates_open
from mhex.hooks import ModelState
from shared_data import need

K, POOLS = 3, ["gap", "softmax", "top"]
SETTINGS = [("train", p, pool) for p in PREDICT for pool in POOLS] + [("probe", "backbone", pool) for pool in POOLS]

# name for create_backbone -> (height, width) in px: small, and not square, so that no two axes are taken for each other
FAMILIES = {**{f"torchvision/{n}": (40, 56) for n in ("resnet18", "resnet34", "resnet50", "resnext50_32x4d", "wide_resnet50_2")},
            **{f"timm/{n}": (40, 56) for n in ("resnet18", "resnet50", "resnet50d", "regnety_002", "efficientnet_b0")},
            "timm/convnext_atto": (64, 96), "cifar_resnet20": (21, 30), "resnet18_28": (13, 18)}
KW = {"resnet18_28": dict(in_channels=1, width=8)}
# Networks of 25 to 70 million weights: each way to predict and each pool once instead of each pair
HEAVY = [n for n in FAMILIES if "50" in n]
FEW = [("train", "last", "gap"), ("train", "mean", "softmax"), ("train", "decay", "top"), ("train", "backbone", "softmax"),
       ("probe", "backbone", "gap"), ("probe", "backbone", "top")]


def lively(net, size, channels):
    "Random weights whose statistics, offsets and layer scales are random too: nothing is 0 or 1 by its initial value"
    g = torch.Generator().manual_seed(1)
    def u(p, lo, hi): return lo+(hi-lo)*torch.rand(p.shape, generator=g, dtype=p.dtype)
    norms = [m for m in net.modules() if isinstance(m, nn.BatchNorm2d)]
    with torch.no_grad():
        for n, p in net.named_parameters():
            # norms' weights (timm's zero ones too) and ConvNeXt's layer scales; then offsets
            if p.ndim == 1: p.copy_(u(p, -.3, .3) if "bias" in n else u(p, .6, 1.4))
        was = [m.momentum for m in norms]
        for m in norms: m.momentum = 1.
        net.train()(torch.randn(4, channels, *size, generator=g, dtype=next(net.parameters()).dtype))
        for m, w in zip(norms, was):
            m.momentum = w
            m.running_mean += u(m.running_mean, -.2, .2)*m.running_var.sqrt()
            m.running_var *= u(m.running_var, .7, 1.4)
    return net.eval()


@pytest.fixture(scope="module", params=[pytest.param(n, marks=pytest.mark.xdist_group(f"models {n}")) for n in FAMILIES])
def case(request):
    "Name, network in float64 and evaluation mode, two images, the network's own logits"
    torch.manual_seed(0)
    name, kw = request.param, KW.get(request.param, {})
    net = lively(mhex.create_backbone(name, K, **kw).double(), FAMILIES[name], kw.get("in_channels", 3))
    x = torch.randn(2, kw.get("in_channels", 3), *FAMILIES[name], dtype=torch.float64)
    with torch.no_grad(): return name, net, x, net(x)


def attached(net, mode, predict, pool, **kw):
    "Full matrices for the paper's pool, low rank for the others; gates well under 1"
    torch.manual_seed(1)
    return mhex.attach(net, K, mode=mode, predict=predict, pool=pool, **{"rank": None if pool == "gap" else 5, "gate_bias": .5, **kw}).eval()


def check_exact(case, mode, predict, pool):
    name, net, x, plain = case
    before = ModelState.of(net)
    with attached(net, mode, predict, pool) as model:
        exp = mhex.explain(model, x)
        assert exp.logits.std() > 1e-3
        if mode == "probe": assert torch.equal(exp.logits, plain)
        elif predict == "backbone": assert not torch.allclose(exp.logits, plain)
        else:
            weights = dict(last=lambda l: float(l == 0), mean=lambda l: 1/len(model.units), decay=lambda l: .8**l)[predict]
            assert_close(exp.logits, sum(weights(l)*p for l, p in enumerate(exp.head_logits.flip(0))), rtol=0, atol=1e-12)
        # the mean of a class's map is its logit, on the blocks' grid and on the image's
        for size in ("native", "input", (7, 9)): assert_close(exp.maps("exact", size=size).mean((2, 3)), exp.logits, rtol=0, atol=1e-9)
        assert exp.maps("exact").shape == (2, K, *x.shape[2:]) and exp.completeness_delta.max() < 1e-9
        for l, (p, m) in enumerate(zip(exp.head_logits, exp.block_maps(2, "exact"))):
            assert_close(exp.maps("exact", blocks=l).mean((2, 3)), p, rtol=0, atol=1e-9)
            assert_close(m.mean((1, 2)), p[:, 2], rtol=0, atol=1e-9)
        # E is V W, and reads the pooled features
        for r, u, p in zip(exp.records, model.units, exp.head_logits):
            W = u.gate.weight if pool == "gap" else u.gate.B@u.gate.A
            assert u.gate.rank == (None if pool == "gap" else 5) and W.shape == (u.gate.c, u.gate.c)
            assert_close(r.E, u.head.weight@W, rtol=1e-12, atol=1e-12)
            assert_close(r.reading.z@r.E.T, p, rtol=0, atol=1e-10)
            assert (r.reading.g < 1).any() if mode == "train" else (r.x is None and (r.reading.g == 1).all())
        # one sample alone, and one taken out of the batch, are as in the batch
        alone, taken = mhex.explain(model, x[1:]), exp[1]
        for kind in ("paper", "exact"):
            whole = exp.maps(kind)[1:]
            assert_close(taken.maps(kind), whole, rtol=1e-12, atol=1e-12)
            assert_close(alone.maps(kind), whole, rtol=1e-9, atol=1e-9*whole.abs().max().item())
    assert ModelState.of(net) == before


@pytest.mark.parametrize("mode", ["train", "probe"])
@torch.no_grad()
def test_exact(case, mode):
    for setting in FEW if case[0] in HEAVY else SETTINGS:
        if setting[0] == mode: check_exact(case, *setting)


def trunk(call, net, names, x):
    "What `call` returns, and the outputs of the blocks in that one forward pass"
    outs, hooks = [], []
    for n in names: hooks.append(net.get_submodule(n).register_forward_hook(lambda m, a, o: outs.append(o.clone())))
    try: return call(x), outs
    finally:
        for h in hooks: h.remove()


@torch.no_grad()
def test_open_gates_give_the_plain_trunk(case):
    name, net, x, _ = case
    with attached(net, "train", "backbone", "gap", rank=5) as model: names = model.block_names
    plain, outs = trunk(net, net, names, x)
    assert len(outs) == len(names)
    for mode, hold, kw in (("train", True, {}), ("train", False, dict(gate=False)), ("probe", False, {})):
        with attached(net, mode, "backbone", "gap", rank=5, **kw) as model:
            with gates_open(model, hold): got, blocks = trunk(model, net, names, x)
            assert torch.equal(got, plain) and all(map(torch.equal, blocks, outs)), (mode, kw)
            if hold:
                _, blocks = trunk(model, net, names, x)
                assert not any(map(torch.allclose, blocks, outs))


class Broken(Exception): pass

def breaks(*args): raise Broken


@pytest.mark.parametrize("mode", ["train", "probe"])
@torch.no_grad()
def test_nothing_is_left_behind(case, mode):
    name, net, x, plain = case
    next(m for m in net.modules() if not m._modules).train()  # one flag unlike the others, where it does nothing: a convolution's
    next(net.parameters()).requires_grad_(False)
    before, weights = ModelState.of(net), {k: v.clone() for k, v in net.state_dict().items()}
    def is_as_before():
        assert ModelState.of(net) == before and list(net.state_dict()) == list(weights)
        for k, v in net.state_dict().items(): assert torch.equal(v, weights[k]), k
    model = attached(net, mode, "backbone", "gap", rank=5)
    assert ModelState.of(net).hooks > before.hooks
    first = mhex.explain(model, x)
    middle = net.get_submodule(model.block_names[len(model.block_names)//2]).register_forward_pre_hook(breaks)
    inside = ModelState.of(model.train())
    for call in (model, lambda x: mhex.explain(model, x)):
        with pytest.raises(Broken): call(x)
        assert ModelState.of(model) == inside  # explain gives every flag back
    middle.remove()
    net.load_state_dict(weights)  # statistics moved in training mode
    again = mhex.explain(model, x)  # nothing of the broken passes is mixed into the next
    assert torch.equal(again.map(), first.map()) and torch.equal(again.logits, first.logits)
    assert mhex.detach(model) is net
    is_as_before()
    assert torch.equal(net(x), plain)
    with pytest.raises(RuntimeError, match="detached"): model(x)
    # an error inside the with block takes MHEX off as well
    with pytest.raises(Broken), attached(net, mode, "backbone", "gap", rank=5) as model:
        with model.backbone.get_submodule(model.block_names[-1]).register_forward_pre_hook(breaks): model(x)
    is_as_before()
    assert torch.equal(net(x), plain)
    next(net.parameters()).requires_grad_(True)
    net.eval()


def reached(model): return {n: p.grad is not None and bool(p.grad.isfinite().all()) and bool(p.grad.abs().sum() > 0) for n, p in model.named_parameters()}


def test_gradients_reach_every_gate_and_head(case):
    name, net, x, plain = case
    weights, y = {k: v.clone() for k, v in net.state_dict().items()}, torch.tensor([0, 2])
    whole = name == "resnet18_28"  # elsewhere the trunk only passes gradients on, which takes half the time
    net.requires_grad_(whole)
    for pool in ["softmax"] if name in HEAVY else POOLS:
        with attached(net, "train", "last", pool) as model:
            model.train()(x)
            units = len(model.units)
            # through the gates alone: the last head's loss reaches every gate before it, and no other head
            F.cross_entropy(model.head_logits[-1], y).backward(retain_graph=True)
            g = reached(model)
            for i in range(units-1):
                assert all(v for n, v in g.items() if n.startswith(f"units.{i}.gate")), (pool, i)
                assert g[f"units.{i}.head.weight"] == (pool == "softmax"), (pool, i)  # this pool weighs pixels by their evidence, which is the head's
            model.zero_grad()
            mhex.DeepSupervisionLoss()(model.head_logits, y).backward()
            g = reached(model)
            missed = [n for n, v in g.items() if not v and (whole or n.startswith("units."))]
            assert missed == ([] if not whole else ["backbone.linear.weight", "backbone.linear.bias"]) + [f"units.{units-1}.gate.offset"]  # no head comes after it
            assert sum(n.startswith("units.") for n in g) == units*(3+(pool != "gap")+(pool == "softmax"))
    net.load_state_dict(weights)  # training mode moved the statistics
    net.requires_grad_(True).zero_grad()
    with attached(net.eval(), "probe", "backbone", "gap") as model:
        assert torch.equal(model.train()(x), plain)
        mhex.DeepSupervisionLoss()(model.head_logits, y).backward()
        assert all(v == (n.startswith("units.") and "offset" not in n) for n, v in reached(model).items())
    for k, v in net.state_dict().items(): assert torch.equal(v, weights[k]), k  # a frozen network's statistics stay


@pytest.mark.parametrize("name", ["torchvision/resnet18", "timm/regnety_002", "timm/convnext_atto", "timm/efficientnet_b0"])
@torch.no_grad()
def test_float32_at_224(name):
    torch.manual_seed(0)
    net, x = lively(mhex.create_backbone(name, 9), (64, 64), 3), torch.randn(1, 3, 224, 224)
    for mode, predict in (("train", "decay"), ("probe", "backbone")):
        with mhex.attach(net, 9, mode=mode, predict=predict).eval() as model:
            exp = mhex.explain(model, x)
            for size in ("native", "input"):
                off = (exp.maps("exact", size=size).mean((2, 3))-exp.logits).abs().max()
                assert off <= 1e-4*exp.logits.abs().max(), (mode, size, off)


# Against loops: the formulas of the method, one number at a time -------------------------------------------------------------

def tiny(pool="gap", size=(7, 9), **kw):
    "A small attached network, a copy of it that was never attached, and images"
    torch.manual_seed(0)
    net = lively(mhex.create_backbone("resnet18_28", K, in_channels=1, width=3, blocks=(1, 1, 1)).double(), (28, 28), 1)
    plain = copy.deepcopy(net)
    model = mhex.attach(net, K, pool=pool, **{"gate_bias": .5, "predict": "decay", "decay": .6, **kw}).eval()
    with torch.no_grad():
        for n, u in enumerate(model.units):
            if pool == "softmax": u.pool.q.fill_(.5+n)
    return model, plain, torch.randn(2, 1, *size, dtype=torch.float64)


def evidence(f, E):
    "Evidence of each pixel for each class, and its strength, from x + r of one image"
    c, h, w = f.shape
    e = [[[sum(float(E[y, k])*max(float(f[k, u, v]), 0) for k in range(c)) for v in range(w)] for u in range(h)] for y in range(K)]
    def strength(u, v):
        mean = sum(e[y][u][v] for y in range(K))/K
        return max(abs(e[y][u][v]-mean) for y in range(K))
    return e, [strength(u, v) for u in range(h) for v in range(w)]


def shares(strength, pool, q):
    "What part of the whole each pixel is"
    if pool == "softmax": parts = [float(torch.tensor(q*t, dtype=torch.float64).exp()) for t in strength]
    else: parts = [float(t in sorted(strength)[-max(1, len(strength)//10):]) for t in strength]
    return [t/sum(parts) for t in parts]


def pooled(f, E, pool, q):
    "z of one image"
    c, h, w = f.shape
    if pool == "gap": return torch.stack([max(sum(f[k, u, v] for u in range(h) for v in range(w))/(h*w), 0*f[k, 0, 0]) for k in range(c)])
    pi = shares(evidence(f, E)[1], pool, q)
    return torch.stack([sum(pi[u*w+v]*max(f[k, u, v], 0*f[k, u, v]) for u in range(h) for v in range(w)) for k in range(c)])


@torch.no_grad()
def by_hand(model, net, x, pool="gap"):
    "Forward pass of one image through the network that was never attached: (x, r, g, E, p, q) of each block"
    out, h = [], net.bn1(net.conv1(x[None])).relu()
    for stage, unit in zip((net.layer1, net.layer2, net.layer3), model.units):
        b, V, W = stage[0], unit.head.weight, unit.gate.weight if unit.gate.rank is None else unit.gate.B@unit.gate.A
        i, r = b.shortcut(h)[0], b.bn2(b.conv2(b.bn1(b.conv1(h)).relu()))[0]
        E, q = V@W, unit.pool.q.item() if pool == "softmax" else None
        a = W@pooled(i+r, E, pool, q)
        g = 1/(1+(-a-unit.gate.offset).exp())
        out.append((i, r, g, E, V@a, q))
        h = (g[:, None, None]*i+r).clamp(min=0)[None]
    return out


def bilinear(m, H, W):
    "Resize of one map to a grid that is not coarser, pixel by pixel, half-pixel centres"
    (h, w), out = m.shape, torch.zeros(H, W, dtype=m.dtype)
    for i in range(H):
        for j in range(W):
            y, x = max((i+.5)*h/H-.5, 0), max((j+.5)*w/W-.5, 0)
            y0, x0 = min(int(y), h-1), min(int(x), w-1)
            y1, x1, fy, fx = min(y0+1, h-1), min(x0+1, w-1), y-y0, x-x0
            out[i, j] = (1-fy)*((1-fx)*m[y0, x0]+fx*m[y0, x1])+fy*((1-fx)*m[y1, x0]+fx*m[y1, x1])
    return out


def paper_by_loops(blocks, y, size, a=1., b=0., tp=0., tn=0., alpha=.9, gated=True, only=None):
    "Section 3 of the method, for one image"
    total = torch.zeros(size, dtype=torch.float64)
    for l, (i, r, g, E, _, _) in enumerate(blocks):
        if only is not None and l not in only: continue
        c, h, w = i.shape
        m = torch.zeros(h, w, dtype=torch.float64)
        for k in range(c):
            pos, neg = max(float(E[y, k]), 0), max(-float(E[y, k]), 0)
            share_pos = pos/(sum(max(float(e), 0) for e in E[:, k])+1e-8)
            share_neg = neg/(sum(max(-float(e), 0) for e in E[:, k])+1e-8)
            omega = pos*(share_pos >= tp)-neg*(share_neg >= tn)
            weight = a*max(omega, 0)+b*max(-omega, 0)
            for u in range(h):
                for v in range(w): m[u, v] += weight*((float(g[k]) if gated else 1.)*i[k, u, v]+r[k, u, v])
        total += alpha**(len(blocks)-1-l)*bilinear(m, *size)
    return total


def exact_by_loops(block, y, pool):
    "Sections 3.1 and 3.2: the map of one head, for one image"
    i, r, g, E, p, q = block
    f = i+r
    c, h, w = f.shape
    m = torch.zeros(h, w, dtype=torch.float64)
    if pool == "gap":
        for k in range(c):
            if sum(f[k, u, v] for u in range(h) for v in range(w)) <= 0: continue
            for u in range(h):
                for v in range(w): m[u, v] += E[y, k]*f[k, u, v]
        return m
    e, strength = evidence(f, E)
    pi = shares(strength, pool, q)
    for u in range(h):
        for v in range(w): m[u, v] = h*w*pi[u*w+v]*e[y][u][v]
    return m


PAPER = [({}, {}), (dict(negative=-1.), dict(b=-1.)), (dict(positive=2., negative=.5, alpha=.7), dict(a=2., b=.5, alpha=.7)),
         (dict(sharpness=.6), dict(tp=.6, tn=.6)), (dict(sharpness=(.5, .3), negative=-1.), dict(tp=.5, tn=.3, b=-1.)),
         (dict(features="exact", alpha=1.), dict(gated=False, alpha=1.)), (dict(blocks=[0, 2]), dict(only=(0, 2))),
         (dict(blocks=-1, negative=-1.), dict(only=(2,), b=-1.)),
         (mhex.saliency.author_settings(K), dict(a=1., b=-1., tp=1/K+.1, tn=.1, alpha=.9))]

def test_paper_map_against_loops():
    model, plain, x = tiny()
    exp, blocks, seen = mhex.explain(model, x), [by_hand(model, plain, o) for o in x], []
    for s in range(2):
        for (_, _, _, _, p, _), got in zip(blocks[s], exp.head_logits): assert_close(got[s], p, rtol=1e-10, atol=1e-10)
    for kw, loops in PAPER:
        maps = exp.maps(**{"kind": "paper", **kw})
        for s in range(2):
            for y in range(K):
                want = paper_by_loops(blocks[s], y, x.shape[2:], **loops)
                assert_close(maps[s, y], want, rtol=1e-9, atol=1e-10)
                assert_close(exp.map(y, **{"kind": "paper", **kw})[s], want, rtol=1e-9, atol=1e-10)
        seen.append(maps)
    for i, m in enumerate(seen):  # every setting does something
        assert not any(torch.allclose(m, o) for o in seen[:i]), PAPER[i]


PAPER_ONLY = [dict(negative=-1.), dict(positive=2.), dict(sharpness=.3), dict(alpha=.8), dict(features="exact"), mhex.saliency.author_settings(K)]

@torch.no_grad()
def test_default_kind_of_images():
    "Evidence, and the paper's map where a setting is given that only it has"
    model, _, x = tiny()
    exp = mhex.explain(model, x)
    def all_of(**kw): return [exp.map(**kw), exp.map([2, 0], **kw), exp.maps(**kw), *exp.block_maps(**kw), *exp.block_maps(1, **kw)]
    def same(a, b): return all(map(torch.equal, a, b))
    evidence, paper = all_of(kind="evidence"), all_of(kind="paper")
    assert same(all_of(), evidence) and not same(evidence, paper)
    assert same(all_of(kind=None, peak=.5), all_of(kind="evidence", peak=.5)) and not same(all_of(peak=.5), evidence)
    assert torch.equal(exp.map(blocks=[0, 2], normalize="minmax", size=(5, 9)), exp.map(kind="evidence", blocks=[0, 2], normalize="minmax", size=(5, 9)))
    for kw in PAPER_ONLY:
        assert same(all_of(**kw), all_of(**{**kw, "kind": "paper"})), kw
        assert exp.default_kind(kw) == "paper" and exp.default_kind(list(kw)) == "paper"
    assert exp.default_kind() == exp.default_kind({"peak": 1.}) == "evidence"
    for kw, says in ((dict(sharp=.5), r"kind='evidence', meant because no kind is named .*'evidence': peak.*'paper': positive.*sharp'"), (dict(alpha=.8, peak=.5), "kind='paper', meant because.*'peak'"),
                     (dict(kind="evidence", alpha=.8), "settings of kind='evidence': .*'alpha'"), (dict(kind="exact", peak=1.), "settings of kind='exact': .*'peak'")):
        for f in (exp.map, exp.maps, exp.block_maps):
            with pytest.raises(TypeError, match=says): f(**kw)


@pytest.mark.parametrize("pool, rank", [("gap", None), ("softmax", 2), ("top", None)])
def test_exact_map_against_loops(pool, rank):
    model, plain, x = tiny(pool, (8, 11), rank=rank)
    exp = mhex.explain(model, x)
    block_maps = [exp.block_maps(y, "exact") for y in range(K)]
    for s in range(2):
        blocks = by_hand(model, plain, x[s], pool)
        for l, b in enumerate(blocks): assert_close(exp.head_logits[l, s], b[4], rtol=0, atol=1e-10)
        for y in range(K):
            fused = 0
            for l, b in enumerate(blocks):
                want = exact_by_loops(b, y, pool)
                assert_close(block_maps[y][l][s], want, rtol=1e-9, atol=1e-9)
                assert_close(want.mean(), b[4][y], rtol=0, atol=1e-10)
                fused = fused+.6**(2-l)*bilinear(want, 8, 11)
            # the fused map: the heads' own weights, and what resizing does to the mean put back evenly
            logit = sum(.6**(2-l)*b[4][y] for l, b in enumerate(blocks))
            assert_close(exp.maps("exact")[s, y], fused-fused.mean()+logit, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", ["resnet18_28", "timm/convnext_atto"])
@torch.no_grad()
def test_classifier_map_against_loops(name):
    "Where the backbone's own classifier predicts: linear in the mean of its last features, or a LayerNorm of it"
    torch.manual_seed(0)
    c = KW.get(name, {}).get("in_channels", 3)
    net, x = lively(mhex.create_backbone(name, K, **KW.get(name, {})).double(), (64, 64), c), torch.randn(1, c, 64, 96, dtype=torch.float64)
    last, linear, norm = (net.layer4, net.linear, None) if name == "resnet18_28" else (net.norm_pre, net.head.fc, net.head.norm)
    got = []
    with last.register_forward_hook(lambda m, a, o: got.append(o[0].clone())): logits = net(x)[0]
    f = got[0]
    c, h, w = f.shape
    mean = [float(o.mean()) for o in f]
    mid = sum(mean)/c
    sd = 1. if norm is None else (sum((o-mid)**2 for o in mean)/c+norm.eps)**.5
    with mhex.attach(net, mode="probe") as model: maps = mhex.explain(model, x).maps("exact", size="native")[0]
    assert maps.shape == (K, h, w)
    for y in range(K):
        want = torch.full((h, w), float(linear.bias[y]), dtype=torch.float64)
        for k in range(c):
            o = f[k] if norm is None else (f[k]-f.mean(0))/sd*norm.weight[k]+norm.bias[k]
            want += linear.weight[y, k]*o
        assert_close(maps[y], want, rtol=1e-9, atol=1e-9)
        assert_close(want.mean(), logits[y], rtol=0, atol=1e-9)


def test_classes_permute_with_the_rows_of_a_head():
    model, _, x = tiny(predict="mean")
    exp, order = mhex.explain(model, x), [2, 0, 1]
    with torch.no_grad():
        for u in model.units: u.head.weight.copy_(u.head.weight[order])
    new = mhex.explain(model, x)
    for kind, kw in (("exact", {}), ("paper", dict(negative=-1., sharpness=.3))):
        assert_close(new.maps(kind, **kw), exp.maps(kind, **kw)[:, order], rtol=1e-10, atol=1e-10)


# Trained weights -------------------------------------------------------------------------------------------------------------

TRAINED = [("cifar_resnet20", "resnet20-12fca82f.th", 9, .81), ("cifar_resnet56", "resnet56-4bfd9763.th", 27, .83)]

@pytest.mark.parametrize("name, file, blocks, accuracy", TRAINED)
@torch.no_grad()
def test_trained_cifar_networks(name, file, blocks, accuracy):
    root = need(f"cifar10/{file}"); need("cifar10/cifar10_jpeg_subset.zip")
    net = mhex.create_backbone(name, 10, weights=root/"cifar10"/file).eval()
    data = mhex.load_data("cifar10", root=root)
    x, y = data.batch("test", range(0, len(data.test), 10))
    assert torch.bincount(y).tolist() == [20]*10
    plain = net(x)
    assert abs((plain.argmax(1) == y).float().mean().item()-accuracy) < .06  # two standard deviations of 200 images
    with mhex.attach(net, mode="probe", class_names=data.class_names) as model:
        assert torch.equal(model(x), plain) and model.n_classes == 10 and len(model.units) == blocks
        exp = mhex.explain(model, x[:20])
        assert (exp.logits-plain[:20]).abs().max() < 1e-4  # another batch size, other kernels
        assert (exp.completeness_delta <= 1e-4*exp.logits.abs().amax(1)).all()
        model.double()
        exp = mhex.explain(model, x[:4].double(), "ship")
        assert exp.target.tolist() == [8]*4 and torch.equal(exp.logits, net(x[:4].double()))
        for size in ("native", "input"): assert_close(exp.maps("exact", size=size).mean((2, 3)), exp.logits, rtol=0, atol=1e-9)
        for l, p in enumerate(exp.head_logits): assert_close(exp.maps("exact", blocks=l).mean((2, 3)), p, rtol=0, atol=1e-9)


@pytest.mark.parametrize("name, file, blocks, accuracy", TRAINED[:1])
def test_trained_weights_may_be_loaded_after_attaching(name, file, blocks, accuracy):
    path = need(f"cifar10/{file}")/"cifar10"/file
    before, after = mhex.create_backbone(name, 10, weights=path).eval(), mhex.create_backbone(name, 10)
    x, model = torch.randn(2, 3, 32, 32), mhex.attach(after, 10, mode="probe")
    assert mhex.load_weights(model.backbone, path) is after
    for k, v in before.state_dict().items(): assert torch.equal(v, after.state_dict()[k]), k
    assert torch.equal(model.eval()(x), before(x)) and torch.equal(mhex.detach(model).eval()(x), before(x))


# Memory ----------------------------------------------------------------------------------------------------------------------

def alive():
    "Tensors that Python can reach, and their bytes"
    gc.collect()
    held = [o for o in gc.get_objects() if issubclass(type(o), torch.Tensor)]
    return len(held), sum(o.numel()*o.element_size() for o in held)


def test_memory_is_flat_over_1000_explanations():
    torch.manual_seed(0)
    x = torch.randn(2, 1, 16, 16)
    with mhex.attach(mhex.create_backbone("resnet18_28", K, in_channels=1, width=8, blocks=(1, 1)), K) as model:
        def once():
            exp = mhex.explain(model, x)
            exp.map(), exp.maps("exact"), exp.block_maps()
        for _ in range(100): once()
        held, start = alive(), mhex.bench.rss()
        for _ in range(1000): once()
        assert alive() == held
        assert mhex.bench.rss()-start < 30  # MiB, for what Python cannot see: one explanation holds about 0.1 MiB, 1,000 kept ones would be 100
        assert all(t.x is t.r is t.s is t.reading is t.record is None for t in model.taps)
