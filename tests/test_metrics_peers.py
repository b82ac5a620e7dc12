"""Metrics against other people's implementations, on the same maps; a library that is missing is skipped with the reason.

Where the numbers are not the same by definition, the test says what the difference is and compares what is left:

* TorchCAM and pytorch-grad-cam multiply the *normalised* image by the map: their average drop is our `adp` (masking `zero`), not `average_drop` (`black`).
* pytorch-grad-cam's drop in confidence is absolute, p-q; ours is relative, (p-q)/p. Its ROAD scores are differences of confidence, so the imputer is compared, and the images that come out of it.
* TorchCAM breaks ties by the order of the pixels, ours at random; maps without ties leave no difference. Its steps are all equal but the last; ours differ by a pixel at most. Sizes that divide evenly leave no difference.
* Quantus's pixel flipping starts after the first step, so its curve lacks our first point, and its own area is a sum with unit steps that calls a numpy name that is gone. With the baselines "mean" and "black" it takes the mean or minimum of the image
  *as perturbed so far*; a number as baseline avoids that. Its ROAD keeps only the first batch of its scores, so one batch it is.
* Quantus's pointing game counts a tie as a hit if any of the tied maxima is inside.
* Captum's infidelity sums over channels and pixels with an attribution for each; ours repeats the pixel's value for each channel.
"""
import math
import numpy as np, pytest, torch
import torch.nn.functional as F
from contextlib import nullcontext
from torch import nn
from torch.testing import assert_close
from mhex import metrics as M
from mhex.faithfulness import noise


class Net(nn.Module):
    "Logits of a tiny network with a little of everything; float64 where asked."
    def __init__(self, c=2, k=4):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.fc = nn.Conv2d(c, 6, 3, padding=1), nn.Linear(6*4, k)

    def forward(self, x): return 8*self.fc(F.adaptive_avg_pool2d(F.relu(self.conv(x)), 2).flatten(1))


@pytest.fixture
def case():
    net, g = Net().eval(), torch.Generator().manual_seed(1)
    x, maps = torch.randn(6, 2, 8, 8, generator=g), torch.rand(6, 8, 8, generator=g)
    return net, M.predictor(net), x, maps, net(x).argmax(1)


class Softmax(nn.Module):
    def __init__(self, net): super().__init__(); self.net = net
    def forward(self, x): return self.net(x).softmax(1)


# --- TorchCAM

class GivenMaps:
    "TorchCAM's extractor interface around maps that are there already."
    def __init__(self, model, maps): self.model, self.maps = model, maps
    def __call__(self, class_idx=None, scores=None, normalized=True, *, targets=None, **kw): return [self.maps]
    def fuse_cams(self, cams): return cams[0]
    def _hooks_off(self): return nullcontext()


def torchcam(): return pytest.importorskip("torchcam.metrics", reason="TorchCAM is not installed: pip install torchcam")


def test_adp_and_pic_are_torchcams(case):
    net, predict, x, maps, t = case
    own = torchcam().ClassificationMetric(GivenMaps(net, maps), lambda p: p.softmax(-1))
    own.update(x)
    got = own.summary()
    assert got["avg_drop"] == pytest.approx(M.adp(predict, x, maps).mean().item(), abs=1e-6)
    assert got["conf_increase"] == pytest.approx(M.pic(predict, x, maps).mean().item(), abs=1e-6)


@pytest.mark.parametrize("steps", [4, 16, 64])
def test_deletion_and_insertion_are_torchcams(case, steps):
    net, predict, x, maps, t = case
    own = torchcam().DeletionInsertionMetric(GivenMaps(net, maps), lambda p: p.softmax(-1), steps=steps)
    own.update(x, t.tolist())
    got = own.summary()
    assert got["deletion_auc"] == pytest.approx(M.deletion(predict, x, maps, t, steps=steps).mean().item(), abs=1e-6)
    assert got["insertion_auc"] == pytest.approx(M.insertion(predict, x, maps, t, masking="zero", steps=steps).mean().item(), abs=1e-6)


def test_insertion_into_a_blur_is_torchcams_with_our_blur(case):
    net, predict, x, maps, t = case
    own = torchcam().DeletionInsertionMetric(GivenMaps(net, maps), lambda p: p.softmax(-1), steps=16, baseline=M.masking("blur(5,2)"))
    own.update(x, t.tolist())
    assert own.summary()["insertion_auc"] == pytest.approx(M.insertion(predict, x, maps, t, masking="blur(5,2)", steps=16).mean().item(), abs=1e-6)


# --- pytorch-grad-cam

def gradcam(name): return pytest.importorskip(f"pytorch_grad_cam.metrics.{name}", reason="pytorch-grad-cam is not installed: pip install grad-cam")


def targets_of(t):
    lib = pytest.importorskip("pytorch_grad_cam.utils.model_targets", reason="pytorch-grad-cam is not installed: pip install grad-cam")
    return [lib.ClassifierOutputTarget(int(c)) for c in t]


def test_drop_and_increase_are_gradcams(case):
    net, predict, x, maps, t = case
    lib, soft = gradcam("cam_mult_image"), Softmax(net)
    p = predict(x).gather(1, t[:, None])[:, 0]
    drop = lib.DropInConfidence()(x, maps.numpy(), targets_of(t), soft)
    assert_close(torch.from_numpy(drop), M.adp(predict, x, maps, t)*p, atol=1e-6, rtol=1e-5)
    assert_close(torch.from_numpy(lib.IncreaseInConfidence()(x, maps.numpy(), targets_of(t), soft)), M.pic(predict, x, maps, t))


@pytest.mark.parametrize("share", [.1, .5, .9])
def test_imputer_is_gradcams(share):
    lib, g = gradcam("road"), torch.Generator().manual_seed(2)
    x, missing = torch.randn(5, 3, 12, 10, generator=g), torch.rand(5, 12, 10, generator=g) < share
    want = torch.stack([lib.NoisyLinearImputer(noise=0)(a, (~m).float()) for a, m in zip(x, missing)])
    assert_close(M.impute(x, missing, tol=1e-7), want, atol=2e-5, rtol=1e-4)
    assert_close(M.impute(x.double(), missing, tol=1e-10).float(), want, atol=2e-5, rtol=1e-4)


def test_road_removes_what_gradcam_removes(case):
    "Most and least relevant first, at the percentiles where both remove the same number of pixels."
    net, predict, x, maps, t = case
    lib, pert = gradcam("road"), gradcam("perturbation_confidence")
    for f, remover, m in ((M.road, pert.RemoveMostRelevantFirst, maps), (M.road_lerf, pert.RemoveLeastRelevantFirst, maps)):
        seen = []
        def spy(z):
            seen.append(z)
            return predict(z)
        f(spy, x, maps, t, percents=[50], noise_sd=0.)
        want = torch.stack([remover(50, lib.NoisyLinearImputer(noise=0))(a, m) for a, m in zip(x, maps)])
        assert_close(seen[-1], want, atol=2e-4, rtol=1e-3)


# --- Captum

def captum(): return pytest.importorskip("captum.metrics", reason="Captum is not installed: pip install captum")


@pytest.mark.parametrize("scale", [False, True])
def test_infidelity_is_captums(case, scale):
    net, _, x, maps, t = case
    net, x, maps = net.double(), x.double(), maps.double()-.5
    I = .1*noise(20, x.shape[1:], 3).double()
    def perturb(inputs): return (d := I.repeat(len(inputs)//20, 1, 1, 1)), inputs-d  # Captum repeats each sample 20 times, sample after sample
    want = captum().infidelity(lambda z: net(z).softmax(1), perturb, x, maps[:, None].expand_as(x), target=t, n_perturb_samples=20, normalize=scale)
    assert_close(M.infidelity(M.predictor(net), x, maps, t, n=20, sd=.1, scale=scale, seed=3), want)


def test_max_sensitivity_is_captums(case):
    net, _, x, maps, t = case
    def saliency(z, target):
        with torch.enable_grad():
            z = z.detach().requires_grad_()
            return torch.autograd.grad(net(z).gather(1, target[:, None]).sum(), z)[0].sum(1)
    d = .05*(2*torch.rand(7, *x.shape[1:], generator=torch.Generator().manual_seed(4))-1)
    def perturb(inputs, radius):
        (z,) = inputs if isinstance(inputs, tuple) else (inputs,)
        return (z+d.repeat(len(z)//7, 1, 1, 1),)
    def explain(z, target):
        z = z[0] if isinstance(z, tuple) else z
        return (saliency(z, target if len(target) == len(z) else target.repeat_interleave(7)),)  # a tuple, or Captum takes samples for inputs
    want = captum().sensitivity_max(explain, x, perturb, n_perturb_samples=7, target=t)
    got = M.max_sensitivity(lambda model, z, target: saliency(z, target), net, x, t, radius=.05, n=7, seed=4)
    assert_close(got, want.to(got), rtol=1e-4, atol=1e-5)


# --- Quantus

@pytest.fixture
def quantus():
    lib = pytest.importorskip("quantus", reason="Quantus is not installed: pip install --no-deps quantus (it brings another OpenCV than grad-cam, so not into one environment)")
    return lib


@pytest.fixture
def grey():
    "Quantus flattens channels into the ranking, so one channel; maps without ties."
    net, g = Net(c=1).eval(), torch.Generator().manual_seed(5)
    x, maps = torch.randn(8, 1, 10, 10, generator=g), torch.rand(8, 10, 10, generator=g)
    with torch.no_grad(): net.fc.bias -= net(x).mean(0)/8  # so that decisions differ, and change
    return net, M.predictor(net), x, maps, net(x).argmax(1)


def run(metric, net, x, maps, t=None, masks=None):
    "A Quantus metric as its documentation calls it, all images in one batch."
    t = torch.zeros(len(x), dtype=torch.long) if t is None else t
    return metric(model=net, x_batch=x.numpy(), y_batch=t.numpy(), a_batch=maps[:, None].numpy(), s_batch=None if masks is None else masks[:, None].numpy(),
                  device="cpu", batch_size=len(x))


QUIET = dict(abs=False, normalise=False, disable_warnings=True, display_progressbar=False)


@pytest.mark.parametrize("per_step", [1, 4, 25])
def test_deletion_curve_is_quantus_pixel_flipping(quantus, grey, per_step):
    net, predict, x, maps, t = grey
    want = run(quantus.PixelFlipping(features_in_step=per_step, perturb_baseline=0., **QUIET), net, x, maps, t)
    got = M.deletion_curve(predict, x, maps, t, steps=100//per_step)
    assert_close(got.value[:, 1:], torch.tensor(np.array(want), dtype=torch.float32), atol=1e-5, rtol=1e-4)


def test_road_is_quantus(quantus, grey):
    net, predict, x, maps, t = grey
    metric = quantus.ROAD(percentages=list(range(10, 100, 10)), noise=0., **QUIET)
    want = run(metric, net, x, maps, t)  # per percentage, mean over the images
    got = torch.stack([M.road(predict, x, maps, t, percents=[p], noise_sd=0.).mean() for p in range(10, 100, 10)])
    assert 0 < got.mean() < 1, "a test in which nothing changes proves little"
    assert_close(got, torch.tensor([float(want[p]) for p in range(10, 100, 10)]), atol=1e-6, rtol=0.)


def test_agreement_is_quantus(quantus, grey):
    _, _, x, maps, _ = grey
    net, masks = grey[0], torch.zeros(8, 10, 10, dtype=torch.bool)
    for i in range(8): masks[i, i % 5:i % 5+4, 3:8] = True
    maps = maps+masks*torch.linspace(0, .4, 8)[:, None, None]
    hits = run(quantus.PointingGame(weighted=False, **QUIET), net, x, maps, masks=masks)
    assert_close(M.pointing_game(maps, masks), torch.tensor(np.array(hits, dtype=float), dtype=torch.float32))
    energy = run(quantus.AttributionLocalisation(**QUIET), net, x, maps, masks=masks)
    assert_close(M.energy_pointing_game(maps, masks), torch.tensor(np.array(energy, dtype=float), dtype=torch.float32), atol=1e-5, rtol=0.)


def test_likeness_is_quantus(quantus):
    sim, g = quantus.similarity_func, torch.Generator().manual_seed(6)
    a, b = torch.rand(4, 16, 16, generator=g).double(), torch.rand(4, 16, 16, generator=g).double()
    want = [sim.correlation_spearman(p.flatten().numpy(), q.flatten().numpy()) for p, q in zip(a, b)]
    assert_close(M.spearman(a, b), torch.tensor(want).float())


# --- scikit-image

def test_ssim_is_scikit_images():
    lib = pytest.importorskip("skimage.metrics", reason="scikit-image is not installed: pip install scikit-image")
    g = torch.Generator().manual_seed(7)
    a = torch.rand(4, 20, 17, generator=g).double()
    b = a+.3*torch.rand(4, 20, 17, generator=g).double()
    def unit(m): return ((m-m.min())/(m.max()-m.min())).numpy()
    for window in (3, 7):
        want = [lib.structural_similarity(unit(p), unit(q), win_size=window, data_range=1.) for p, q in zip(a, b)]
        assert_close(M.ssim(a, b, window), torch.tensor(want).float(), atol=1e-6, rtol=1e-5)


def test_average_precision_of_tokens_is_scikit_learns():
    from sklearn.metrics import average_precision_score
    g = torch.Generator().manual_seed(8)
    maps, marks, valid = torch.rand(6, 12, generator=g), torch.rand(6, 12, generator=g) > .6, torch.arange(12) < torch.tensor([12, 9, 12, 7, 10, 12])[:, None]
    marks[:, 0] = True
    want = [average_precision_score((r & v)[v].numpy(), m[v].numpy()) for m, r, v in zip(maps, marks, valid)]
    assert_close(M.token_average_precision(maps, marks, valid), torch.tensor(want).float())
