"Metrics that mask inputs, and the sanity checks: against naive loops, and facts that hold for every one of them."
import inspect, math, re, subprocess, sys
from copy import deepcopy
import numpy as np, pytest, torch
import torch.nn.functional as F
from hypothesis import given, settings, strategies as st
from torch import nn
from torch.testing import assert_close
import mhex
from mhex import metrics as M
from mhex.adapt import attach
from mhex.cnn import SmallResNet
from mhex.collaboration import collaboration, quality_map
from mhex.core import Gate, gates_open
from mhex.hooks import ModelState
from mhex.scoring import ranks

IMAGES = [f for f in M.metrics(data="images").values() if f.facts.takes == "predict"]
TOKENS = [f for f in M.metrics(data="tokens").values() if f.facts.takes == "predict"]
UNIT = [M.soft_drop, M.hard_drop, M.effective_drop, M.average_drop, M.increase_in_confidence, M.adp, M.pic]  # maps have to lie in 0-1
RANK = [M.deletion, M.insertion, M.positive_perturbation, M.negative_perturbation, M.road, M.road_lerf]
each = pytest.mark.parametrize("f", IMAGES, ids=lambda f: f.__name__)
each_token = pytest.mark.parametrize("f", TOKENS, ids=lambda f: f.__name__)


class Judge(nn.Module):
    def __init__(self, c=2, k=3):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(c, 5, 3, padding=1), nn.Linear(20, k)

    def forward(self, x): return 6*self.fc(F.adaptive_avg_pool2d(self.conv(x).relu(), 2).flatten(1))


@pytest.fixture
def case():
    g = torch.Generator().manual_seed(1)
    x = torch.rand(5, 2, 7, 6, generator=g, dtype=torch.float64)
    return M.predictor(Judge().double()), x, torch.rand(5, 7, 6, generator=g, dtype=torch.float64)


def test_names_of_the_design():
    for n in """soft_drop hard_drop effective_drop insertion deletion average_drop increase_in_confidence road comprehensiveness sufficiency pointing_game
                energy_pointing_game average_precision completeness_delta parameter_randomisation""".split(): assert n in M.metrics() and getattr(M, n) is M.metrics()[n]
    assert len(IMAGES) >= 14 and len(TOKENS) == 3


def test_declared_facts():
    for n, f in M.metrics().items():
        facts = f.facts
        assert facts.source and facts.unit and facts.range[0] < facts.range[1] and isinstance(facts.higher_is_better, bool)
        assert facts.category in ("agreement", "faithfulness", "robustness", "sanity") and facts.takes in ("masks", "predict", "logits", "explain")
        assert (facts.masking is not None) == (facts.takes == "predict"), n
        default = inspect.signature(f).parameters.get("masking")
        if default is not None: assert default.default == facts.masking, f"{n} masks by {default.default!r} and says {facts.masking!r}"
    assert {*M.metrics("sanity")} < {*M.metrics()} and M.metrics("nothing of this name") == {}


def test_unit_maps_are_declared(case):
    predict, x, maps = case
    assert {f.__name__ for f in IMAGES if f.facts.unit_maps} == {f.__name__ for f in UNIT} and not any(f.facts.unit_maps for f in TOKENS)
    assert M.metric_named("soft_drop-zero").facts.unit_maps and not M.metric_named("deletion-mean").facts.unit_maps
    for f in IMAGES:
        if not f.facts.unit_maps: assert f(predict, x, 9*maps-4).isfinite().all()


def test_metrics_of_tokens_are_known_from_the_start():
    says = subprocess.run([sys.executable, "-c", "from mhex.scoring import metrics; print(*sorted(metrics(data='tokens')))"], capture_output=True, text=True, check=True).stdout.split()
    assert says == ["completeness_delta", "comprehensiveness", "sufficiency", "text_drop", "token_average_precision", "token_f1"]


def test_maskings_name_metrics():
    for name in ("deletion-mean", "insertion-blur(5,2)", "soft_drop-zero", "comprehensiveness-[MASK]"):
        f = M.metric_named(name)
        assert f.facts.name == name == f.__name__ and f.facts.masking == name.partition("-")[2]
    with pytest.raises(ValueError, match="registered:"): M.metric_named("soft_drops-zero")
    with pytest.raises(ValueError, match="masks nothing"): M.with_masking(M.pointing_game, "zero")
    with pytest.raises(ValueError, match="'mean', 'zero', 'black'"): M.metric_named("deletion-grey")
    for how in ("zero", "delete(3,1)", "mask", M.masking("zero")):
        with pytest.raises(ValueError, match=r"for tokens expected 'delete' or '\[MASK\]'"): M.with_masking(M.comprehensiveness, how)
    with pytest.raises(ValueError, match=r"masking is 'zero'; for tokens"): M.metric_named("text_drop-zero")


# --- what holds for every metric of images

@each
def test_value_a_sample(f, case):
    predict, x, maps = case
    before = x.clone(), maps.clone()
    v = f(predict, x, maps)
    assert v.shape == (5,) and v.is_floating_point() and not v.requires_grad and v.isfinite().all()
    lo, hi = f.facts.range
    assert lo <= v.min() and v.max() <= hi
    assert torch.equal(x, before[0]) and torch.equal(maps, before[1])
    assert_close(f(predict, x, maps), v, rtol=0, atol=0)


@each
def test_chunks_and_batches_do_not_matter(f, case):
    predict, x, maps = case
    v = f(predict, x, maps)
    for size in (1, 3, 17, 10**6, np.int64(4)): assert_close(f(predict, x, maps, chunk_size=size), v)
    for i in range(5): assert_close(f(predict, x[[i]], maps[[i]]), v[[i]])
    order = torch.tensor([3, 0, 4, 1, 2])
    assert_close(f(predict, x[order], maps[order]), v[order])


@each
def test_no_call_is_larger_than_a_chunk(f, case):
    predict, x, maps = case
    sizes = []
    def spy(z):
        sizes.append(len(z))
        return predict(z)
    f(spy, x, maps, chunk_size=4)
    assert max(sizes) <= 4
    sizes.clear()
    f(spy, x, maps, chunk_size=10**6)
    assert len(sizes) <= 4, "with one large chunk there are only a few calls, however many images and steps there are"


@each
def test_targets(f, case):
    predict, x, maps = case
    t = predict(x).argmax(1)
    assert_close(f(predict, x, maps, t), f(predict, x, maps))
    assert_close(f(predict, x, maps, t.tolist()), f(predict, x, maps))
    assert_close(f(predict, x, maps, 1), f(predict, x, maps, torch.ones(5).long()))


@each
def test_kinds_of_numbers(f, case):
    predict, x, maps = case
    single = M.predictor(Judge())
    want = f(predict, x, maps)
    assert_close(f(single, x.float(), maps.float()).double(), want.double(), atol=2e-3, rtol=1e-3)
    assert_close(f(predict, x, maps.numpy()), want)
    assert_close(f(predict, x, maps.clone().requires_grad_()), want)


@each
def test_constant_maps(f, case):
    "Nothing breaks; a ranking without information is the same whatever its constant."
    predict, x, maps = case
    v = [f(predict, x, torch.full_like(maps, c)) for c in (0., .25, 1.)]
    assert all(o.isfinite().all() for o in v)
    if f in RANK: assert_close(v[0], v[1]); assert_close(v[0], v[2]); assert_close(f(predict, x, torch.full_like(maps, -3.)), v[0])


@each
@pytest.mark.parametrize("change, error, says", [
    (dict(predict=Judge().double()), TypeError, r"predictor\(model\)"),
    (dict(predict="resnet18"), TypeError, "predict is str"),
    (dict(predict=lambda x: torch.randn(len(x), 3, dtype=x.dtype)*9), ValueError, "expected probabilities"),
    (dict(predict=lambda x: torch.full((len(x), 3), math.nan, dtype=x.dtype)), ValueError, "expected probabilities"),
    (dict(predict=lambda x: torch.rand(2, 3)), ValueError, "for 5 inputs"),
    (dict(predict=lambda x: [0.]*len(x)), TypeError, "returned list"),
    (dict(x=torch.rand(2, 7, 6)), ValueError, r"x\[None\]"),
    (dict(x=torch.randint(0, 255, (5, 2, 7, 6))), TypeError, "scale images"),
    (dict(x=torch.full((5, 2, 7, 6), math.nan)), ValueError, "nan or infinite"),
    (dict(x=torch.rand(0, 2, 7, 6)), ValueError, "empty"),
    (dict(x="cat.png"), TypeError, "x is str"),
    (dict(maps=torch.rand(5, 3, 3)), ValueError, r"resize the maps.*\(7, 6\)"),
    (dict(maps=torch.rand(4, 7, 6)), ValueError, "one shape"),
    (dict(maps=torch.ones(5, 7, 6).long()), TypeError, "floating point"),
    (dict(maps=torch.full((5, 7, 6), math.inf)), ValueError, "5 of 5 samples"),
    (dict(target=7), ValueError, "3 classes, 0 to 2"),
    (dict(target=-1), ValueError, "3 classes, 0 to 2"),
    (dict(target=[0, 1]), ValueError, r"\(5,\)"),
    (dict(target=torch.rand(5)), TypeError, "integers"),
    (dict(target="cat"), TypeError, "exp.target"),
    (dict(chunk_size=0), ValueError, "chunk_size is 0"),
    (dict(chunk_size=2.5), ValueError, "chunk_size is 2.5"),
])
def test_bad_input(f, case, change, error, says):
    predict, x, maps = case
    with pytest.raises(error, match=says): f(**{**dict(predict=predict, x=x, maps=maps), **change})


@pytest.mark.parametrize("f", UNIT, ids=lambda f: f.__name__)
def test_masks_are_not_rescaled_silently(f, case):
    predict, x, maps = case
    for bad in (maps*3, maps-1):
        with pytest.raises(ValueError, match=re.escape("normalize='minmax'")): f(predict, x, bad)


@pytest.mark.parametrize("f", RANK, ids=lambda f: f.__name__)
def test_only_the_ranking_counts(f, case):
    predict, x, maps = case
    assert_close(f(predict, x, maps.exp()*100-50), f(predict, x, maps))


def test_a_map_that_changes_nothing_scores_zero(case):
    predict, x, maps = case
    for f in (M.soft_drop, M.hard_drop, M.effective_drop): assert_close(f(predict, x, 0*maps), torch.zeros(5).double(), atol=0, rtol=0)    # the mask removes
    for f in (M.average_drop, M.increase_in_confidence, M.adp, M.pic): assert_close(f(predict, x, 0*maps+1), torch.zeros(5).double(), atol=0, rtol=0)  # the mask keeps
    still = lambda z: torch.tensor([[.5, .3, .2]], dtype=z.dtype).expand(len(z), -1)
    for f in (M.road, M.road_lerf, M.positive_perturbation, M.negative_perturbation): assert_close(f(still, x, maps), torch.ones(5).double())
    assert_close(M.deletion(still, x, maps), torch.full((5,), .5).double())


def test_ends_of_curves(case):
    predict, x, maps = case
    p, t = predict(x), predict(x).argmax(1)
    full, none = p.gather(1, t[:, None])[:, 0], predict(0*x).gather(1, t[:, None])[:, 0]
    d, i = M.deletion_curve(predict, x, maps, steps=7), M.insertion_curve(predict, x, maps, masking="zero", steps=7)
    assert_close(d.value[:, 0], full); assert_close(d.value[:, -1], none)
    assert_close(i.value[:, 0], none); assert_close(i.value[:, -1], full)
    assert d.fraction[0] == 0 and d.fraction[-1] == 1 and d.value.shape == (5, 8)
    assert_close(M.insertion_curve(predict, x, -maps, masking="zero", steps=7).value.flip(1), d.value)  # showing from the bottom is removing from the top, backwards


# --- naive loops

def naive_removed(x, how): return {"zero": torch.zeros_like(x), "black": torch.zeros_like(x), "mean": x.mean((1, 2), keepdim=True).expand_as(x)}[how]


def naive_rank(m): return sorted(range(m.numel()), key=lambda i: -m.flatten()[i].item())


def naive_drop(predict, x, t, gone, how):
    "gone: share of each pixel that goes"
    p = predict(x[None])[0, t].item()
    y = x.clone()
    for c in range(x.shape[0]):
        for i in range(x.shape[1]):
            for j in range(x.shape[2]): y[c, i, j] = x[c, i, j]*(1-gone[i, j])+naive_removed(x, how)[c, i, j]*gone[i, j]
    q = predict(y[None])[0, t].item()
    return p, q, max(0., (p-q)/p)


def naive_curve(predict, x, m, t, counts, start, end):
    out = []
    for n in counts:
        y = start.clone()
        for k in naive_rank(m)[:n]: y[:, k//x.shape[2], k % x.shape[2]] = end[:, k//x.shape[2], k % x.shape[2]]
        out.append(predict(y[None])[0])
    return torch.stack(out)


def trapezoid(v, f): return sum((f[i+1]-f[i])*(v[i]+v[i+1])/2 for i in range(len(v)-1))/(f[-1]-f[0])


@pytest.mark.parametrize("kw", [{}, dict(keep=.5), dict(masking="zero", target=1)])
def test_drop_and_increase_is_both_at_the_price_of_one(case, kw):
    predict, x, maps = case
    asked = []
    def counted(z): asked.append(len(z)); return predict(z)
    counted.preprocess = predict.preprocess
    ad, ic = M.drop_and_increase(counted, x, maps, **kw)
    assert asked == [len(x)]*2
    assert torch.equal(ad, M.average_drop(predict, x, maps, **kw)) and torch.equal(ic, M.increase_in_confidence(predict, x, maps, **kw))
    with pytest.raises(ValueError, match="keep is 0"): M.drop_and_increase(predict, x, maps, keep=0)
    with pytest.raises(ValueError, match="normalise them by name"): M.drop_and_increase(predict, x, 3*maps)


def test_drops_against_loops(case):
    predict, x, maps = case
    t = predict(x).argmax(1).tolist()
    sad, hard, ead, ad, ic = (f(predict, x, maps) for f in (M.soft_drop, M.hard_drop, M.effective_drop, M.average_drop, M.increase_in_confidence))
    for keep in (.5, .15):
        for i, v in enumerate(M.average_drop(predict, x, maps, keep=keep)):
            best = naive_rank(maps[i])[:max(1, round(keep*42))]
            kept = torch.tensor([maps[i].flatten()[k] if k in best else 0. for k in range(42)]).double().view(7, 6)
            assert v.item() == pytest.approx(naive_drop(predict, x[i], t[i], 1-kept, "black")[2])
    for i in range(5):
        assert sad[i].item() == pytest.approx(naive_drop(predict, x[i], t[i], maps[i], "mean")[2])
        h = naive_drop(predict, x[i], t[i], (maps[i] > .5).double(), "zero")[2]
        u = sum(v > .2 for v in maps[i].flatten().tolist())/42
        assert hard[i].item() == pytest.approx(h) and ead[i].item() == pytest.approx(h*5*u/(1+256*u**5))
        p, q, d = naive_drop(predict, x[i], t[i], 1-maps[i], "black")
        assert ad[i].item() == pytest.approx(d) and ic[i].item() == float(q > p)


@pytest.mark.parametrize("steps", [1, 5, 42])
def test_curves_against_loops(case, steps):
    predict, x, maps = case
    t, counts = predict(x).argmax(1).tolist(), [round(42*j/steps) for j in range(steps+1)]
    f = [n/42 for n in counts]
    d, i = M.deletion(predict, x, maps, masking="mean", steps=steps), M.insertion(predict, x, maps, masking="mean", steps=steps)
    for b in range(5):
        base = naive_removed(x[b], "mean")
        assert d[b].item() == pytest.approx(trapezoid(naive_curve(predict, x[b], maps[b], t[b], counts, x[b], base)[:, t[b]].tolist(), f))
        assert i[b].item() == pytest.approx(trapezoid(naive_curve(predict, x[b], maps[b], t[b], counts, base, x[b])[:, t[b]].tolist(), f))


def test_perturbations_against_loops(case):
    predict, x, maps = case
    t, counts = predict(x).argmax(1).tolist(), [round(42*j/10) for j in range(10)]
    for sign, f in ((1, M.positive_perturbation), (-1, M.negative_perturbation)):
        for b, v in enumerate(f(predict, x, maps)):
            still = (naive_curve(predict, x[b], sign*maps[b], t[b], counts, x[b], 0*x[b]).argmax(1) == t[b]).double().tolist()
            assert v.item() == pytest.approx(trapezoid(still, [n/42 for n in counts]))


def naive_impute(x, missing):
    h, w = missing.shape
    where = [(r, c) for r in range(h) for c in range(w) if missing[r, c]]
    A, b = torch.zeros(len(where), len(where)).double(), torch.zeros(len(where), len(x)).double()
    for n, (r, c) in enumerate(where):
        for dr, dc, weight in [(a, b, 1/6 if a*b == 0 else 1/12) for a in (-1, 0, 1) for b in (-1, 0, 1) if (a, b) != (0, 0)]:
            if not (0 <= r+dr < h and 0 <= c+dc < w): continue
            A[n, n] += weight
            if missing[r+dr, c+dc]: A[n, where.index((r+dr, c+dc))] -= weight
            else: b[n] += weight*x[:, r+dr, c+dc]
    out = x.clone()
    for (r, c), v in zip(where, torch.linalg.solve(A, b)): out[:, r, c] = v
    return out


def test_road_against_loops(case):
    predict, x, maps = case
    t = predict(x).argmax(1).tolist()
    for sign, f in ((1, M.road), (-1, M.road_lerf)):
        got = f(predict, x, maps, percents=(20, 50, 80), noise_sd=0.)
        for b in range(5):
            still = []
            for p in (20, 50, 80):
                missing = torch.zeros(42).bool()
                missing[naive_rank(sign*maps[b])[:int(42*p/100)]] = True
                still.append(float(predict(naive_impute(x[b], missing.view(7, 6))[None]).argmax(1).item() == t[b]))
            assert got[b].item() == pytest.approx(sum(still)/3)


@settings(max_examples=25, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.floats(.05, .95), st.integers(0, 10**6))
def test_imputation_solves_its_equations(h, w, share, seed):
    g = torch.Generator().manual_seed(seed)
    x, missing = torch.randn(3, 2, h, w, generator=g).double(), torch.rand(3, h, w, generator=g) < share
    missing[:, h//2, w//2] = False
    got = M.impute(x, missing, tol=1e-11)
    for i in range(3):
        assert_close(got[i], naive_impute(x[i], missing[i]) if missing[i].any() else x[i], atol=1e-8, rtol=1e-6)
        assert torch.equal(got[i][:, ~missing[i]], x[i][:, ~missing[i]])


def test_imputation_of_large_holes():
    "Half of a larger picture, in one piece: converges, in single precision too, to what double precision finds."
    g = torch.Generator().manual_seed(0)
    x = F.interpolate(torch.randn(2, 3, 12, 12, generator=g), size=(96, 96), mode="bicubic")
    missing = torch.zeros(2, 96, 96, dtype=torch.bool)
    missing[0, 10:80, 8:90], missing[1, :60] = True, True
    assert_close(M.impute(x, missing).double(), M.impute(x.double(), missing, tol=1e-10), atol=3e-3, rtol=0.)
    assert_close(M.impute(x, missing, tol=0.), M.impute(x, missing, tol=1e-7), atol=1e-3, rtol=0.)  # no finer than the numbers are, and it ends


def test_infidelity_against_loops(case):
    predict, x, maps = case
    from mhex.faithfulness import noise
    t, I = predict(x).argmax(1).tolist(), .2*noise(9, x.shape[1:], 5).double()
    for scale in (False, True):
        got = M.infidelity(predict, x, maps, n=9, sd=.2, seed=5, scale=scale)
        for b in range(5):
            told = [sum((n[c]*maps[b]).sum().item() for c in range(2)) for n in I]
            change = [(predict(x[[b]])-predict((x[b]-n)[None]))[0, t[b]].item() for n in I]
            k = sum(a*c for a, c in zip(told, change))/sum(a*a for a in told) if scale else 1.
            assert got[b].item() == pytest.approx(sum((k*a-c)**2 for a, c in zip(told, change))/9)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.sampled_from([-1., 0., .5, 2.]), min_size=1, max_size=12), st.integers(0, 5))
def test_ranks(values, seed):
    m = torch.tensor([values, values[::-1]])
    r = ranks(m, seed)
    for row, vals in zip(r, m):
        assert sorted(row.tolist()) == list(range(len(values)))
        assert all(row[i] < row[j] for i in range(len(values)) for j in range(len(values)) if vals[i] > vals[j])


def test_ties_have_no_favourites():
    first = torch.stack([(ranks(torch.zeros(1, 50), seed)[0] < 10) for seed in range(400)]).double().mean(0)
    assert (first-.2).abs().max() < .09  # five standard errors are .1


@pytest.mark.parametrize("bad", [50, (), [0, 50], [50, 100], "50", ["a"], None, [math.nan], [[50]]], ids=repr)
def test_bad_shares(case, bad):
    predict, x, maps = case
    for f in (M.road, M.road_lerf):
        with pytest.raises(ValueError, match=re.escape(f"percents is {bad!r}; expected a list of numbers between 0 and 100")): f(predict, x, maps, percents=bad)
    batch, m, _ = texts()
    for f in (M.comprehensiveness, M.sufficiency):
        with pytest.raises(ValueError, match="shares is .*; expected a list of fractions"): f(bag, batch, m, shares=bad)


def test_shares_come_in_any_form(case):
    predict, x, maps = case
    want = M.road(predict, x, maps, percents=[20, 60])
    for p in ((20, 60), np.array([20., 60.]), torch.tensor([20, 60]), range(20, 61, 40)): assert torch.equal(M.road(predict, x, maps, percents=p), want)


# --- maskings

def test_black_knows_the_normalisation():
    model, x, maps = Judge(), torch.randn(3, 2, 6, 6), torch.rand(3, 6, 6)
    with pytest.raises(ValueError, match="choose masking='zero'"): M.average_drop(M.predictor(model), x, maps)
    stats = dict(mean=[.4, .6], std=[.2, .3])
    by_predictor = M.average_drop(M.predictor(model, preprocess=stats), x, maps)
    assert_close(M.average_drop(M.predictor(model), x, maps, masking=M.masking("black", **stats)), by_predictor)
    m, s = (torch.tensor(stats[k])[:, None, None] for k in ("mean", "std"))
    pixels = lambda z: M.predictor(model)((z-m)/s)
    assert_close(M.average_drop(pixels, x*s+m, maps, masking=M.masking("black", [0., 0.], [1., 1.])), by_predictor, atol=1e-5, rtol=1e-4)
    model.preprocess = stats
    assert_close(M.average_drop(M.predictor(model), x, maps), by_predictor)
    with pytest.raises(ValueError, match="2 channels"): M.average_drop(M.predictor(Judge(c=1), preprocess=stats), torch.randn(3, 1, 6, 6), maps)


@pytest.mark.parametrize("how", ["grey", "blur", "blur(4,1)", "blur(3,0)", "zero(3,1)", None, 3])
def test_bad_maskings(how):
    with pytest.raises(ValueError, match="masking is|kernel"): M.masking(how)


def test_blur_is_torchvisions_away_from_the_border():
    tv = pytest.importorskip("torchvision.transforms.functional")
    x = torch.rand(2, 3, 20, 18)
    assert_close(M.masking("blur(5,1.5)")(x)[..., 2:-2, 2:-2], tv.gaussian_blur(x, [5, 5], [1.5, 1.5])[..., 2:-2, 2:-2])
    assert_close(M.masking("blur(51,50)")(torch.full((1, 1, 9, 9), .3)), torch.full((1, 1, 9, 9), .3))


def test_predictor_leaves_the_model_as_it_was():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(.5), nn.Flatten(), nn.Linear(4*16, 2)).train()
    net[1].eval()
    before = ModelState.of(net), [b.clone() for b in net.buffers()]
    x = torch.randn(3, 1, 6, 6)
    M.soft_drop(M.predictor(net), x, torch.rand(3, 6, 6))
    assert ModelState.of(net) == before[0] and all(map(torch.equal, net.buffers(), before[1]))
    assert_close(M.predictor(net, multi_label=True)(x), net.eval()(x).sigmoid())
    with pytest.raises(TypeError, match="torch.nn.Module"): M.predictor(lambda x: x)


# --- tokens

def bag(batch):
    "A judge of token ids that cares for order, too."
    ids, seen = (batch, torch.ones_like(batch)) if torch.is_tensor(batch) else (batch["input_ids"], batch["attention_mask"])
    place = seen.cumsum(1)*seen
    s = torch.stack([((ids*k+place) % 7*seen).sum(1).double()/seen.sum(1).clamp(min=1) for k in (1, 2, 3)], 1)
    return s.softmax(1)


def texts(special=True):
    g, n = torch.Generator().manual_seed(2), torch.tensor([12, 7, 3, 10])
    ids, seen = torch.randint(1, 50, (4, 12), generator=g), (torch.arange(12) < n[:, None]).long()
    marks = torch.zeros_like(ids)
    marks[:, 0] = 1
    marks[torch.arange(4), n-1] = 1
    batch = dict(input_ids=ids*seen, attention_mask=seen, token_type_ids=torch.zeros_like(ids))
    return batch | (dict(special_tokens_mask=marks | (1-seen)) if special else {}), torch.rand(4, 12, generator=g), n.tolist()


def naive_without(row, gone, masking):
    if masking == "[MASK]": return torch.tensor([[99 if i in gone else v for i, v in enumerate(row)]])
    return torch.tensor([[v for i, v in enumerate(row) if i not in gone]])


@each_token
@pytest.mark.parametrize("masking", ["delete", "[MASK]"])
def test_tokens_against_loops(f, masking):
    batch, maps, lengths = texts()
    got = f(bag, batch, maps, masking=masking, mask_id=99)
    for b, n in enumerate(lengths):
        row, words = batch["input_ids"][b, :n].tolist(), list(range(1, n-1))
        best, p = sorted(words, key=lambda i: -maps[b, i].item()), bag(torch.tensor([row]))
        t, vals = p.argmax(1).item(), []
        counts = [min(20, max(1, len(words)//5))] if f is M.text_drop else [max(1, math.ceil(s*len(words)-1e-9)) for s in (.01, .05, .1, .2, .5)]
        for k in counts:
            gone = set(best[:k]) if f is not M.sufficiency else set(words)-set(best[:k])
            vals.append((p-bag(naive_without(row, gone, masking)))[0, t].item())
        assert got[b].item() == pytest.approx(sum(vals)/len(vals), abs=1e-6)


@each_token
def test_tokens_in_batches_chunks_and_tensors(f):
    batch, maps, lengths = texts()
    v = f(bag, batch, maps, mask_id=99)
    for size in (1, 3, 100): assert_close(f(bag, batch, maps, mask_id=99, chunk_size=size), v)
    for b, n in enumerate(lengths): assert_close(f(bag, {k: o[[b], :n] for k, o in batch.items()}, maps[[b], :n], mask_id=99), v[[b]])
    plain = batch["input_ids"][:1]
    special = batch["special_tokens_mask"][:1]
    assert_close(f(bag, plain, maps[:1], mask_id=99, special=special), v[:1])
    seen = []
    f(lambda z: seen.append({*z}) or bag(z), batch, maps, mask_id=99)
    assert all(s == {"input_ids", "attention_mask", "token_type_ids"} for s in seen), "the special tokens mask is not for the model"


def test_tokens_without_anything_to_remove():
    batch, maps, _ = texts()
    batch["special_tokens_mask"][2] = 1
    for f in TOKENS:
        v = f(bag, batch, maps, mask_id=99)
        assert v.isnan().tolist() == [False, False, True, False]


@each_token
@pytest.mark.parametrize("change, error, says", [
    (dict(maps=torch.rand(4, 5)), ValueError, r"one shape \(b, n\)"),
    (dict(x=torch.rand(4, 12)), TypeError, "integer"),
    (dict(x="a text"), TypeError, "batch dict"),
    (dict(x=dict(input_ids=torch.ones(4, 12).long(), attention_mask=torch.ones(4, 9).long())), ValueError, "every part"),
    (dict(masking="zero"), ValueError, r"'delete' or '\[MASK\]'"),
    (dict(masking="[MASK]", mask_id=None), ValueError, "mask_token_id"),
    (dict(special=torch.ones(4, 3)), ValueError, r"special is \(4, 3\)"),
    (dict(target=5), ValueError, "3 classes"),
])
def test_bad_tokens(f, change, error, says):
    batch, maps, _ = texts()
    with pytest.raises(error, match=says): f(**{**dict(predict=bag, x=batch, maps=maps, mask_id=99), **change})


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 12), st.floats(.05, 1.), st.integers(0, 10**6))
def test_token_f1_is_an_expectation(n, share, seed):
    "With ties, F1 by the expected number of hits: averaging over random orders gives the same hits."
    g = torch.Generator().manual_seed(seed)
    maps, marks = torch.randint(0, 3, (1, n), generator=g).float(), torch.rand(1, n, generator=g) > .5
    v = M.token_f1(maps, marks, share=share)
    if not marks.any(): assert v.isnan(); return
    k = max(1, math.ceil(share*n-1e-9))
    above = [i for i in range(n) if maps[0, i] > sorted(maps[0].tolist(), reverse=True)[k-1]]
    tied = [i for i in range(n) if maps[0, i] == sorted(maps[0].tolist(), reverse=True)[k-1]]
    hits = sum(marks[0, i].item() for i in above)+(k-len(above))/len(tied)*sum(marks[0, i].item() for i in tied)
    assert v.item() == pytest.approx(2*hits/(k+marks.sum().item()), abs=1e-6)


# --- sanity checks

def small(k=3, **kw):
    torch.manual_seed(3)
    model = attach(SmallResNet(k, in_channels=1, width=8, blocks=(1, 1)), k, **kw)
    with torch.no_grad():
        model.train()
        for _ in range(3): model(torch.randn(16, 1, 14, 14))
    return model.eval()


def exact(model, x, target): return mhex.explain(model, x, target).map(kind="exact")
def paper(model, x, target): return mhex.explain(model, x, target).map(negative=-1.)
def edges(model, x, target): return M.controls(x)["edges"]


X = F.interpolate(torch.randn(4, 1, 5, 5, generator=torch.Generator().manual_seed(4)), size=(14, 14), mode="bicubic")


@pytest.mark.parametrize("kw", [dict(), dict(predict="mean"), dict(predict="backbone"), dict(mode="probe"), dict(rank=3), dict(pool="softmax"), dict(pool="top", predict="decay")], ids=str)
@pytest.mark.parametrize("explain", [exact, paper], ids=lambda f: f.__name__)
def test_heads_permute_and_gates_matter(kw, explain):
    model = small(**kw)
    before, weights = ModelState.of(model), [p.clone() for p in [*model.parameters(), *model.buffers()]]
    assert M.head_permutation(explain, model, X).max() < 1e-4
    v = M.gate_shuffling(explain, model, X)
    if explain is paper or model.predict != "backbone" or model.mode != "probe": assert v.max() < 1-1e-6
    else: assert_close(v, torch.ones(4))  # in probe mode the backbone's own logit does not pass any gate, and its exact map rightly does not change
    assert M.parameter_randomisation(explain, model, X).max() < .95
    assert ModelState.of(model) == before and all(map(torch.equal, [*model.parameters(), *model.buffers()], weights))


def test_edges_are_convicted_and_wrong_targets_found():
    model = small()
    assert_close(M.parameter_randomisation(edges, model, X), torch.ones(4))
    assert_close(M.random_logit(edges, model, X), torch.ones(4))
    assert M.head_permutation(lambda m, x, t: exact(m, x, 0), model, X).max() > .01
    report = M.sanity_report(edges, model, X)
    assert not report.ok and {r["check"] for r in report.rows if not r["ok"]} == {"parameters_random", "random_logit", "gate_shuffling"}


def test_sanity_report_of_any_network():
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    def gradient(model, x, t):
        with torch.enable_grad():
            x = x.clone().requires_grad_()
            return torch.autograd.grad(model(x).gather(1, t[:, None]).sum(), x)[0][:, 0]
    report = M.sanity_report(gradient, net, X, random_labels=nn.Sequential(*[*net]))
    assert [r["check"] for r in report.rows] == ["parameters_random", "random_logit", "random_label"]
    assert report.cascade.names == ["4", "0"] and report.cascade.spearman.shape == (2, 4) and report.cascade.maps.shape == (3, 4, 14, 14)
    assert_close(report.values["random_label"], torch.ones(4))
    assert "| random_logit |" in report.table()


def test_randomising_leaves_the_random_state_alone():
    model = small()
    torch.manual_seed(9)
    want = torch.rand(3)
    torch.manual_seed(9)
    a = M.randomisation_curve(exact, model, X)
    assert torch.equal(torch.rand(3), want)
    b = M.randomisation_curve(exact, model, X)
    assert torch.equal(a.spearman, b.spearman) and not torch.equal(a.spearman, M.randomisation_curve(exact, model, X, seed=1).spearman)


def test_explainers_of_this_package_come_in():
    from mhex.explainers.base import explainer
    model = small()
    assert_close(M.gate_shuffling(explainer("mhex-exact"), model, X), M.gate_shuffling(exact, model, X))
    assert_close(M.random_logit(lambda m, x, t: mhex.explain(m, x, t), model, X), M.random_logit(lambda m, x, t: mhex.explain(m, x, t).map(), model, X))


@pytest.mark.parametrize("explain, model, error, says", [
    ("gradcam", nn.Conv2d(1, 1, 1), TypeError, "explain is str"),
    (exact, "resnet18", TypeError, "model is str"),
    (lambda m, x, t: x, None, TypeError, r"maps \(4, h, w\)"),
    (lambda m, x, t: x[:2, 0], None, TypeError, r"shape \(2, 14, 14\)"),
    (lambda m, x, t: None, None, TypeError, "NoneType"),
])
def test_bad_explainers(explain, model, error, says):
    with pytest.raises(error, match=says): M.random_logit(explain, small() if model is None else model, X)


def test_likeness_of_odd_maps():
    a = torch.rand(2, 4, 5)
    assert M.spearman(a, torch.full_like(a, 3.)).eq(0).all() and M.spearman(torch.full_like(a, 3.), a).isnan().all()
    assert_close(M.ssim(a, a), torch.ones(2)); assert_close(M.ssim(a[:, :1, :1], a[:, :1, :1]), torch.ones(2))
    with pytest.raises(ValueError, match="compared with"): M.spearman(a, a[:, :2])
    for bad in (0, -1, 2.5, True, "7"):
        with pytest.raises(ValueError, match=f"window is {bad!r}; expected a whole number"): M.ssim(a, a, window=bad)
    with pytest.raises(ValueError, match="window is 4; .*odd"): M.ssim(a, a, window=4)


def test_nothing_to_randomise():
    net = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    for f in (M.randomisation_curve, M.parameter_randomisation, M.sanity_report):
        with pytest.raises(ValueError, match="Sequential has no parameters to randomise"): f(edges, net, X)
    with pytest.raises(ValueError, match="groups is empty"): M.randomisation_curve(edges, small(), X, groups=[])
    with pytest.raises(ValueError, match="keep is -1"): M.randomisation_curve(edges, small(), X, keep=-1)
    for kw, says in ((dict(n=0), "n is 0"), (dict(chunk_size=2.5), "chunk_size is 2.5")):
        with pytest.raises(ValueError, match=says): M.max_sensitivity(edges, small(), X, **kw)


def test_completeness_delta():
    model = small(predict="mean")
    exp = mhex.explain(model, X)
    assert M.completeness_delta(exp.map(kind="exact"), exp.logits).max() < 1e-5
    assert_close(M.completeness_delta(exp.map(kind="exact", size="native"), exp.logits, exp.target), exp.completeness_delta, atol=1e-6, rtol=0.)
    assert_close(M.completeness_delta(exp.map(1, kind="exact"), exp.logits[:, 1]), torch.zeros(4), atol=1e-5, rtol=0.)
    tokens, valid = torch.tensor([[1., 3., 99.]]), torch.tensor([[1, 1, 0]])
    assert_close(M.completeness_delta(tokens, torch.tensor([2.]), valid=valid), torch.zeros(1))
    with pytest.raises(ValueError, match="do not go together"): M.completeness_delta(torch.rand(2, 3, 3), torch.rand(3))


# --- collaboration

@pytest.mark.parametrize("kw", [dict(), dict(gate_bias=0), dict(rank=3), dict(predict="backbone")], ids=str)
def test_collaboration_is_that_of_the_matrices(kw):
    "The cosine of both losses' gradients with respect to W; of a gate of low rank with respect to its product B A, put in as one full matrix."
    model = small(**kw).double()
    y, x = torch.tensor([0, 1, 2, 0]), X.double()
    full, gate = deepcopy(model), model.units[0].gate
    if gate.rank is not None:
        full.units[0].gate = Gate(gate.c).double()
        full.units[0].gate.load_state_dict(dict(weight=gate.W.detach(), offset=gate.offset.detach()))
    want = []
    for i in range(4):
        g = []
        for head in (0, 1):
            full(x[[i]])
            g.append(torch.autograd.grad(F.cross_entropy(full.head_logits[head], y[[i]]), full.units[0].gate.weight)[0].flatten())
        want.append(F.cosine_similarity(*g, dim=0))
    got = collaboration(model, x, y)
    assert_close(got, torch.stack(want)[:, None])
    assert got.shape == (4, 1) and got.abs().max() <= 1+1e-9
    assert_close(torch.cat([collaboration(model, x[[i]], y[[i]]) for i in range(4)]), got)


def test_collaboration_leaves_no_trace_and_needs_no_gradients():
    model = small().train()
    for p in model.parameters(): p.requires_grad_(False)
    before, buffers = ModelState.of(model), [b.clone() for b in model.buffers()]
    with torch.no_grad(): frozen = collaboration(model, X)
    assert ModelState.of(model) == before and all(map(torch.equal, model.buffers(), buffers)) and not frozen.requires_grad
    for p in model.parameters(): p.requires_grad_(True)
    assert_close(collaboration(model, X), frozen)
    assert all(p.grad is None for p in model.parameters())


def test_collaboration_of_many_labels_and_other_pools():
    torch.manual_seed(0)
    model = attach(SmallResNet(3, in_channels=1, width=8, blocks=(1, 1)), 3, multi_label=True, pool="softmax")
    y = torch.tensor([[1, 0, 1], [0, 0, 0], [1, 1, 1], [0, 1, 0]])
    assert collaboration(model, X, y).shape == (4, 1)
    assert quality_map(model, X, y, grid=2).shape == (4, 2, 2) and collaboration(model, X).isfinite().all()
    with pytest.raises(ValueError, match=r"\(4, 3\)"): collaboration(model, X, torch.zeros(4).long())


def test_collaboration_refuses_what_it_cannot_do():
    with pytest.raises(RuntimeError, match="mode='train'"): collaboration(small(mode="probe"), X)
    with pytest.raises(RuntimeError, match="held open"): collaboration(small(gate=False), X)
    model = small()
    with gates_open(model), pytest.raises(RuntimeError, match="held open"): collaboration(model, X)
    with pytest.raises(ValueError, match="1 block"): collaboration(attach(SmallResNet(3, in_channels=1, width=8, blocks=(1,)), 3), X)


# --- statistics

def test_bootstrap_and_comparison():
    g = torch.Generator().manual_seed(0)
    a = torch.rand(80, generator=g)
    b = a-.1+.02*torch.randn(80, generator=g)
    mean, lo, hi = M.bootstrap(torch.cat([a, torch.tensor([math.nan])]))
    assert mean == pytest.approx(a.mean().item()) and lo < mean < hi and M.bootstrap(a) == M.bootstrap(a)
    row, same = M.compare({"a": a, "b": b, "same": a.clone()}, "a")
    assert row["p_holm"] < 1e-6 and row["wins"] > .95 and row["difference"] == pytest.approx((a-b).mean().item(), abs=1e-6) and same["p"] == 1
    assert M.compare({"a": a, "b": b}, "a", higher_is_better=False)[0]["wins"] < .05
    assert M.holm([.5, .6]) == [1., 1.] and M.holm([]) == []
    with pytest.raises(ValueError, match="reference is 'c'"): M.compare({"a": a, "b": b}, "c")
    with pytest.raises(ValueError, match="one value a sample"): M.bootstrap(torch.rand(3, 3))
    for n in (0, -1, 2.5, True):
        with pytest.raises(ValueError, match=f"n is {n!r}; expected a whole number"): M.bootstrap(a, n=n)


def test_rounding_errors_are_no_wins():
    "Ninths plus noise of the last digits test like the ninths themselves, in wins and p, at any scale; differences above a millionth count."
    g = torch.Generator().manual_seed(0)
    a, b = (torch.randint(0, 10, (60,), generator=g).double()/9 for _ in range(2))
    noise = 1e-8*torch.randn(60, generator=g).double()
    for size in (1., 1e-7, 1e6):
        clean, noisy = (M.compare({"a": size*a, "b": size*o}, "a")[0] for o in (b, b+noise))
        assert noisy["wins"] == clean["wins"] and noisy["p"] == clean["p"] and (a == b).any()
        same = M.compare({"a": size*a, "b": size*(a+noise)}, "a")[0]
        assert same["wins"] == .5 and same["p"] == 1
        assert M.compare({"a": size*a, "b": size*(a-1e-5)}, "a")[0]["wins"] == 1
    zero = M.compare({"a": [0., 0.], "b": [0., math.nan]}, "a")[0]
    assert zero["wins"] == .5 and zero["n"] == 1 and math.isnan(M.compare({"a": [math.nan], "b": [1.]}, "a")[0]["wins"])


def test_lists_keep_their_precision():
    assert M.holm([1e-60, .1]) == [2e-60, .1] and M.holm(torch.tensor([.25])) == [.25]
    assert M.bootstrap([.1]*3)[0] == pytest.approx(.1, abs=1e-16) and M.compare({"a": [.1], "b": [0.]}, "a")[0]["difference"] == .1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU; run on a machine with one")
@each
def test_on_a_gpu(f, case):
    predict, x, maps = case
    assert_close(f(M.predictor(Judge().double().cuda()), x.cuda(), maps).cpu(), f(predict, x, maps), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("make", [lambda: __import__("timm").create_model("convnext_atto", num_classes=3), lambda: __import__("timm").create_model("efficientnet_b0", num_classes=3),
                                  lambda: __import__("torchvision").models.resnet18(num_classes=3)], ids=["convnext", "efficientnet", "resnet18"])
def test_the_cascade_takes_every_layer_once(make):
    "Also those between blocks; what decides nothing is left out only behind the last block."
    from mhex.sanity import layer_groups
    with attach(make(), 3, predict="backbone", rank=4) as model:
        own = [n for n, m in model.named_modules() if [*m.parameters(recurse=False)]]
        groups = layer_groups(model)
        assert sorted(n for _, names in groups for n in names) == sorted(own)
        assert groups[0][0] == "classifier" and groups[-1][0] == "stem" and [n for n, _ in groups[1:-1]] == model.block_names[::-1]
