"The doors beside the libraries that they imitate."
import numpy as np, pytest, torch
from torch.testing import assert_close
import mhex
from mhex.hooks import ModelState


@pytest.fixture
def model():
    torch.manual_seed(0)
    net = mhex.create_backbone("resnet18_28", 4, in_channels=1, width=8)
    net(torch.randn(8, 1, 28, 28))
    with mhex.attach(net, 4, predict="mean", class_names=["cat", "dog", "owl", "bee"]) as m: yield m


@pytest.fixture
def x(): return torch.randn(3, 1, 28, 28)


def test_captum_forms(model, x):
    exp = mhex.explain(model, x)
    door = mhex.CaptumDoor(model)
    for target in (None, 3, "bee", [0, 1, 2], torch.tensor([0, 1, 2]), torch.tensor([[0], [1], [2]])):
        a, delta = door.attribute(inputs=x, target=target, return_convergence_delta=True)
        assert a.shape == (3, 1, 28, 28) and a.min() < 0 < a.max() and delta.shape == (3,) and delta.abs().max() < 1e-5
        want = exp.map(target.flatten() if torch.is_tensor(target) else target, "exact")
        assert_close(a[:, 0], want)
    out = door.attribute((x,), target=1)
    assert isinstance(out, tuple) and len(out) == 1
    a, delta = mhex.CaptumDoor(model, kind="paper", negative=-1.).attribute(x, 1, return_convergence_delta=True)
    assert_close(a[:, 0], exp.map(1, negative=-1.))
    assert_close(delta, a.mean((1, 2, 3)) - exp.logits[:, 1])


def test_captum_metrics(model, x):
    from captum.metrics import infidelity, sensitivity_max
    model.eval()
    door, y = mhex.CaptumDoor(model, total="sum"), torch.tensor([0, 1, 2])
    def perturb(inputs):
        noise = .01*torch.randn_like(inputs)
        return noise, inputs - noise
    # scale of an attribution decides its infidelity: at scale zero it is the mean squared change of the output
    a = door.attribute(x, y)
    for scale in (0., 1.):
        torch.manual_seed(0)
        v = infidelity(model, perturb, x, scale*a, target=y, n_perturb_samples=4)
        assert v.shape == (3,) and v.isfinite().all() and (v >= 0).all()
    torch.manual_seed(0)
    s = sensitivity_max(door.attribute, x, target=y, n_perturb_samples=3)
    assert s.shape == (3,) and (s > 0).all() and (s < 1).all()
    assert (sensitivity_max(door.attribute, x, perturb_func=lambda v: tuple(v) if isinstance(v, tuple) else v, target=y, n_perturb_samples=1) == 0).all()


def test_cam_door_like_the_library(model, x):
    from pytorch_grad_cam.utils.image import show_cam_on_image
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    model.train(); model.backbone.layer1.eval()
    before = ModelState.of(model)
    with mhex.CAMDoor(model=model, target_layers=None) as cam:
        g = cam(input_tensor=x, targets=[ClassifierOutputTarget(3), ClassifierOutputTarget(0), ClassifierOutputTarget(3)])
        assert_close(cam.outputs, mhex.explain(model, x).logits)
    assert isinstance(g, np.ndarray) and g.dtype == np.float32 and g.shape == (3, 28, 28)
    assert (g.max((1, 2)) == 1).all() and (g.min((1, 2)) == 0).all()
    assert show_cam_on_image(np.zeros((28, 28, 3), np.float32), g[0]).shape == (28, 28, 3)
    assert_close(torch.from_numpy(g), mhex.explain(model, x, [3, 0, 3]).map(kind="paper", normalize="minmax"))  # the paper's map, whatever the default
    assert ModelState.of(model) == before
    with pytest.raises(ValueError, match="2 entries, the batch has 3"): mhex.CAMDoor(model)(x, targets=[ClassifierOutputTarget(3)]*2)
    assert ModelState.of(model) == before


def test_cam_door_softmax_target_is_not_taken_for_a_class(model, x):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget
    door = mhex.CAMDoor(model, kind="exact")
    soft, hard = (door(x, [t(2)]*3) for t in (ClassifierOutputSoftmaxTarget, ClassifierOutputTarget))
    assert not np.allclose(soft, hard)
    assert_close(torch.from_numpy(soft), mhex.explain(model, x, lambda p: p.softmax(-1)[2]).map(kind="exact", normalize="minmax"))


def test_cam_door_layers(model, x):
    blocks = [model.backbone.layer2[1], "layer4.1", 0]
    got = mhex.CAMDoor(model, target_layers=blocks)(x, targets=None)
    want = mhex.explain(model, x).map(kind="paper", blocks=["layer2.1", "layer4.1", 0], normalize="minmax")
    assert_close(torch.from_numpy(got), want)
    for bad in ([], ["fc"], [99], [torch.nn.ReLU()]):
        with pytest.raises(ValueError, match="target_layers"): mhex.CAMDoor(model, target_layers=bad)


def test_cam_door_swallows_nothing(model):
    with pytest.raises(IndexError), mhex.CAMDoor(model): [][0]


def test_quantus(model, x):
    y = np.array([[0], [3], [1]])
    a = mhex.quantus_explain(model=model, inputs=x.numpy(), targets=y, device="cpu")
    assert isinstance(a, np.ndarray) and a.shape == (3, 1, 28, 28) and a.dtype == np.float32
    assert_close(torch.from_numpy(a)[:, 0], mhex.explain(model, x, [0, 3, 1]).map(kind="exact"))
    b = mhex.quantus_explain(model, x.double().numpy(), y[:, 0], kind="paper", negative=-1.)
    assert_close(torch.from_numpy(b)[:, 0], mhex.explain(model, x, [0, 3, 1]).map(negative=-1.))
    with pytest.raises(ValueError, match="model is on cpu"): mhex.quantus_explain(model, x.numpy(), y, device="cuda")
    with pytest.raises(TypeError, match="nr_channels"): mhex.quantus_explain(model, x.numpy(), y, nr_channels=3)
    with pytest.raises(ValueError, match="sample 1"): mhex.quantus_explain(model, np.where(np.arange(3)[:, None, None, None] == 1, np.nan, x.numpy()), y)


def test_explain_takes_the_librarys_targets_for_what_they_compute(model, x):
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget, ClassifierOutputTarget, RawScoresOutputTarget
    exp = mhex.explain(model, x)
    def maps(t): return exp.map(t, kind="exact")
    hard, soft = maps(2), maps(lambda p: p.softmax(-1)[2])
    assert not torch.allclose(hard, soft)
    for t in (ClassifierOutputTarget(2), [ClassifierOutputTarget(2)]*3, [2, ClassifierOutputTarget(2), "owl"]): assert torch.equal(maps(t), hard)
    for t in (ClassifierOutputSoftmaxTarget(2), [ClassifierOutputSoftmaxTarget(2)]*3): assert_close(maps(t), soft)
    # the record says which is a class and which a function of the logits
    assert mhex.explain(model, x, ClassifierOutputTarget(2)).target.tolist() == [2]*3
    assert mhex.explain(model, x, ClassifierOutputSoftmaxTarget(2)).target.tolist() == [-1]*3
    # one of each: every sample has its own
    mixed = maps([ClassifierOutputTarget(2), ClassifierOutputSoftmaxTarget(2), lambda p: p[0]-p[3]])
    assert_close(mixed, torch.stack([hard[0], soft[1], (maps(0)-maps(3))[2]]))
    assert_close(mhex.explain(model, x, [lambda p: p[0], lambda p: p[1], lambda p: p[:1]]).map(kind="exact"), maps([0, 1, 0]))
    with pytest.raises(TypeError, match="mixes functions of the logits with classes"): maps([0, ClassifierOutputSoftmaxTarget(2), 1])
    with pytest.raises(TypeError, match=r"RawScoresOutputTarget returned a tensor of shape \(4,\)"): maps(RawScoresOutputTarget())
    with pytest.raises(TypeError, match="does not depend on the logits"): maps([lambda p: p[0], lambda p: 1., lambda p: p[0]])
    with pytest.raises(ValueError, match="2 entries, the batch has 3"): maps([ClassifierOutputSoftmaxTarget(2)]*2)
    with pytest.raises(ValueError, match="4 classes, 0 to 3"): maps(ClassifierOutputTarget(4))
