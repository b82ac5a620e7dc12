"Agreement metrics against independent implementations, and on the maps that break careless ones."
import math
import numpy as np, pytest, torch
from hypothesis import given, settings, strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.metrics import average_precision_score
from torch.testing import assert_close
from mhex.metrics import (average_precision, centred_gaussian, chance, controls, edge_map, energy_pointing_game, iou, metric, metric_named, metrics,
                          pointing_game)

ALL = [pointing_game, average_precision, energy_pointing_game, iou]


@st.composite
def cases(draw):
    shape = draw(st.tuples(*[st.integers(1, 6)]*3))
    maps = draw(hnp.arrays(np.float64, shape, elements=st.sampled_from([-3., -1., -.5, 0., .25, .5, 1., 2.]) | st.floats(-1e3, 1e3)))
    return torch.from_numpy(maps), torch.from_numpy(draw(hnp.arrays(bool, shape)))


@settings(max_examples=150, deadline=None)
@given(cases())
def test_average_precision_is_sklearns(case):
    maps, masks = case
    got = average_precision(maps, masks)
    for g, m, y in zip(got, maps, masks):
        if not y.any(): assert g.isnan()
        else: assert abs(float(g) - average_precision_score(y.flatten().numpy(), m.flatten().numpy())) < 1e-6


@settings(max_examples=100, deadline=None)
@given(cases())
def test_range_nan_and_batching(case):
    maps, masks = case
    for f in ALL:
        v = f(maps, masks)
        assert v.shape == (len(maps),) and v.dtype == torch.float32
        assert torch.equal(v.isnan(), ~masks.flatten(1).any(1)), f.__name__
        ok = v[~v.isnan()]
        assert ((ok >= 0) & (ok <= 1 + 1e-6)).all(), f.__name__
        assert_close(torch.cat([f(m[None], y[None]) for m, y in zip(maps, masks)]), v, equal_nan=True)


@settings(max_examples=60, deadline=None)
@given(cases(), st.sampled_from([-2., 0., 1., 1e-300, 3e300]))
def test_constant_maps_score_chance(case, value):
    _, masks = case
    maps = torch.full(masks.shape, value, dtype=torch.float64)
    assert_close(pointing_game(maps, masks), chance(masks), equal_nan=True)
    assert_close(average_precision(maps, masks), chance(masks), equal_nan=True)
    assert_close(energy_pointing_game(maps, masks), chance(masks), equal_nan=True)


def test_average_precision_at_real_size():
    g = torch.Generator().manual_seed(0)
    maps = (torch.rand(4, 224, 224, generator=g)*50).round(); masks = torch.rand(4, 224, 224, generator=g) > .9
    want = [average_precision_score(y.flatten().numpy(), m.flatten().numpy()) for m, y in zip(maps, masks)]
    assert_close(average_precision(maps, masks), torch.tensor(want, dtype=torch.float32), atol=1e-6, rtol=0.)


@pytest.mark.parametrize("tolerance", [0, 1, 2, 3])
def test_tolerance_is_a_disc(tolerance):
    masks = torch.zeros(81, 9, 9, dtype=torch.bool); masks[:, 4, 4] = True
    maps = torch.eye(81).reshape(81, 9, 9)
    want = torch.tensor([float((y-4)**2 + (x-4)**2 <= tolerance**2) for y in range(9) for x in range(9)])
    assert_close(pointing_game(maps, masks, tolerance=tolerance), want)


def test_tolerance_keeps_empty_masks_unscored():
    assert pointing_game(torch.rand(2, 5, 5), torch.zeros(2, 5, 5, dtype=torch.bool), tolerance=2).isnan().all()


def test_scale_and_transformation():
    g = torch.Generator().manual_seed(1)
    maps = torch.rand(16, 7, 9, generator=g); masks = torch.rand(16, 7, 9, generator=g) > .6
    for f in ALL: assert_close(f(maps, masks), f(maps.double()*1e200, masks), msg=f.__name__)
    assert_close(average_precision(maps, masks), average_precision(maps.double().exp(), masks))
    assert not torch.allclose(iou(maps, masks), iou(maps.double()**4, masks)), "IoU at half the maximum is supposed to depend on contrast"


def test_all_negative_maps():
    maps, masks = -torch.rand(3, 4, 4)-.1, torch.ones(3, 4, 4, dtype=torch.bool)
    assert_close(iou(maps, masks), torch.zeros(3))
    assert_close(energy_pointing_game(maps, masks), chance(masks))


def test_half_precision_and_numpy_come_in():
    maps, masks = torch.rand(2, 4, 4), torch.rand(2, 4, 4) > .5
    for f in ALL:
        assert f(maps.half(), masks).dtype == torch.float32
        assert_close(f(maps.numpy(), masks.numpy()), f(maps, masks), equal_nan=True)


def test_maps_are_not_changed():
    maps, masks = torch.randn(2, 4, 4, requires_grad=True), torch.rand(2, 4, 4) > .5
    before = maps.detach().clone()
    for f in ALL: assert not f(maps, masks).requires_grad
    assert torch.equal(maps.detach(), before)


@pytest.mark.parametrize("f", ALL, ids=lambda f: f.__name__)
@pytest.mark.parametrize("maps, masks, error, says", [
    (torch.rand(2, 4, 4), torch.zeros(2, 4, 5, dtype=torch.bool), ValueError, r"\(2, 4, 4\).*\(2, 4, 5\)"),
    (torch.rand(2, 4, 4), torch.zeros(3, 4, 4, dtype=torch.bool), ValueError, "one shape"),
    (torch.rand(4, 4), torch.zeros(4, 4, dtype=torch.bool), ValueError, r"masks\[None\]"),
    (torch.rand(2, 4, 4), torch.zeros(2, 4, 4), TypeError, "boolean"),
    (torch.rand(2, 4, 4), torch.zeros(2, 4, 4, dtype=torch.uint8), TypeError, "threshold"),
    (torch.ones(2, 4, 4, dtype=torch.long), torch.zeros(2, 4, 4, dtype=torch.bool), TypeError, "floating point"),
    (torch.full((2, 4, 4), math.nan), torch.zeros(2, 4, 4, dtype=torch.bool), ValueError, "2 of 2 samples"),
    (torch.full((2, 4, 4), math.inf), torch.zeros(2, 4, 4, dtype=torch.bool), ValueError, "infinite"),
    (torch.rand(0, 4, 4), torch.zeros(0, 4, 4, dtype=torch.bool), ValueError, "no pixels"),
])
def test_bad_input(f, maps, masks, error, says):
    with pytest.raises(error, match=says): f(maps, masks)


def test_bad_settings():
    maps, masks = torch.rand(1, 4, 4), torch.ones(1, 4, 4, dtype=torch.bool)
    with pytest.raises(ValueError, match="whole number"): pointing_game(maps, masks, tolerance=-1)
    with pytest.raises(ValueError, match="whole number"): pointing_game(maps, masks, tolerance=.5)
    with pytest.raises(ValueError, match="threshold"): iou(maps, masks, threshold=0)


def test_registry():
    assert set(metrics()) >= {f.__name__ for f in ALL}
    for name, f in metrics().items():
        assert metric_named(name) is f and f.facts.name == name and f.facts.source and f.facts.unit
        assert f.facts.range[0] < f.facts.range[1]
    metrics().clear()
    assert metrics(), "metrics() hands out a copy"
    with pytest.raises(ValueError, match="taken"): metric(True, (0, 1), "x", "y")(iou)
    with pytest.raises(ValueError, match="registered: "): metric_named("nonsense")


def test_centred_gaussian_peaks_in_the_middle():
    g = centred_gaussian((5, 7), n=2)
    assert g.shape == (2, 5, 7) and g[0, 2, 3] == 1 and int(g[0].argmax()) == 2*7+3
    assert_close(g[0], g[1].flip(0, 1))


def test_perfect_and_inverted_maps():
    g = torch.Generator().manual_seed(2)
    masks = torch.rand(8, 9, 7, generator=g) > .7
    for f in (pointing_game, average_precision, energy_pointing_game, iou): assert_close(f(masks.float(), masks), torch.ones(8))
    assert_close(average_precision(1-masks.float(), masks), chance(masks))
    for f in (pointing_game, energy_pointing_game, iou): assert_close(f(1-masks.float(), masks), torch.zeros(8))


def test_controls():
    x = torch.rand(5, 3, 9, 8)
    maps = controls(x, seed=1)
    assert list(maps) == ["random", "centred Gaussian", "edges", "uniform"]
    for m in maps.values(): assert m.shape == (5, 9, 8) and m.dtype == x.dtype and 0 <= m.min() and m.max() <= 1
    assert torch.equal(controls(x, seed=1)["random"], maps["random"]) and not torch.equal(controls(x)["random"], maps["random"])
    assert len({m.flatten()[0].item() for m in maps["random"]}) == 5, "a map of its own for each sample"
    masks = torch.rand(5, 9, 8) > .6
    assert_close(pointing_game(maps["uniform"], masks), chance(masks))
    assert controls(torch.full((2, 1, 4, 4), .3))["edges"].eq(0).all()
    with pytest.raises(ValueError, match=r"x\[None\]"): controls(x[0])


def test_edge_map_is_sobels():
    filters = pytest.importorskip("skimage.filters", reason="scikit-image is not installed: pip install scikit-image")
    x = torch.rand(2, 1, 12, 9).double()
    want = torch.stack([torch.from_numpy(np.hypot(filters.sobel_h(m[0].numpy()), filters.sobel_v(m[0].numpy()))) for m in x])
    got = edge_map(x)
    assert_close((got/want)[:, 1:-1, 1:-1], torch.ones(2, 10, 7).double()*(got/want)[0, 3, 3])  # up to its scale, away from the border
