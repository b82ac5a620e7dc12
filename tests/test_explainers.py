"Explainers against the other libraries that have them, on plain and attached networks, and what they leave behind."
import sys
import pytest, timm, torch, torchvision
from torch import nn
from torch.testing import assert_close
import mhex
from mhex.explainers.base import Saliency, explain_with, explainer, explainer_names, library
from mhex.hooks import ModelState

NETS = {
    "resnet18_28": (lambda: mhex.create_backbone("resnet18_28", 4, in_channels=1, width=8), (3, 1, 28, 28)),
    "torchvision resnet18": (lambda: torchvision.models.resnet18(num_classes=4), (2, 3, 64, 64)),
    "torchvision resnet50": (lambda: torchvision.models.resnet50(num_classes=4), (2, 3, 64, 64)),
    "timm convnext_atto": (lambda: timm.create_model("convnext_atto", num_classes=4), (2, 3, 64, 64)),
}


@pytest.fixture(params=NETS)
def case(request):
    make, shape = NETS[request.param]
    torch.manual_seed(0)
    net = make()
    for _ in range(2): net.train()(torch.randn(4, *shape[1:]))  # norms with statistics
    return net.eval(), torch.randn(*shape)


@pytest.mark.parametrize("block", [-1, 0])
def test_gradcam_is_the_grad_cam_librarys_and_captums(case, block):
    from captum.attr import LayerGradCam
    from pytorch_grad_cam import GradCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net, x = case
    layer = mhex.adapt.find_adapter(net).blocks(net)[block].block
    y = list(range(len(x)))
    ours = explain_with("gradcam", net, x, y, layer=block)
    captum = LayerGradCam(net, layer).attribute(x, target=torch.tensor(y), relu_attributions=True)[:, 0].detach()
    assert_close(ours.block_maps[0], captum, atol=1e-6, rtol=1e-4)
    with GradCAM(model=net, target_layers=[layer]) as cam: theirs = torch.from_numpy(cam(input_tensor=x, targets=[ClassifierOutputTarget(c) for c in y]))
    for a, b in zip(ours.map, theirs):  # theirs is rescaled to [0,1], with another library's resize
        if a.max() > 0: assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > .99


def test_layercam_is_the_grad_cam_librarys(case):
    from pytorch_grad_cam import LayerCAM
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net, x = case
    ours = explain_with("layercam", net, x, 1, layer=0)
    with LayerCAM(model=net, target_layers=[mhex.adapt.find_adapter(net).blocks(net)[0].block]) as cam:
        theirs = torch.from_numpy(cam(input_tensor=x, targets=[ClassifierOutputTarget(1)]*len(x)))
    for a, b in zip(ours.map, theirs): assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > .99


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_probe_mode_explains_the_network_itself(case, method):
    net, x = case
    want = explain_with(method, net, x)
    with mhex.attach(net, mode="probe") as model: got = explain_with(method, model, x)
    assert_close(got.map, want.map)
    assert got.target.equal(want.target) and got.target_from == "predicted"


@pytest.mark.parametrize("predict", ["last", "mean", "decay", "backbone"])
@pytest.mark.parametrize("layer", [None, 0, "layer2.1"])
def test_every_way_to_predict_and_every_layer(predict, layer):
    torch.manual_seed(0)
    net, x = NETS["resnet18_28"][0](), torch.randn(3, 1, 28, 28)
    with mhex.attach(net, 4, predict=predict) as model:
        s = explain_with("gradcam", model, x, layer=layer)
        assert s.map.shape == (3, 28, 28) and s.map.isfinite().all() and s.map.max() > 0 and s.map.min() >= 0
        assert_close(explain_with("gradcam", model, x[1:2], layer=layer).map, s.map[1:2], atol=1e-6, rtol=1e-4)


@pytest.mark.parametrize("method", ["mhex", "mhex-exact", "gradcam", "layercam"])
@pytest.mark.parametrize("mode", ["train", "probe"])
def test_nothing_is_left_behind(method, mode):
    net, x = NETS["resnet18_28"][0](), torch.randn(2, 1, 28, 28)
    net.layer1.eval()  # each module's own flag comes back
    with mhex.attach(net, 4, mode=mode) as model:
        model(x).sum().backward() if mode == "train" else None
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        before, heads = ModelState.of(model), model.head_logits
        for bad in (None, 9, "cat"):
            if bad is None: explain_with(method, model, x)
            else:
                with pytest.raises(ValueError): explain_with(method, model, x, target=bad)
            assert ModelState.of(model) == before
        if "cam" in method: assert model.head_logits is heads
        for p, g in zip(model.parameters(), grads): assert (p.grad is None and g is None) or torch.equal(p.grad, g)


def test_an_error_inside_the_network_passes_through_and_leaves_nothing():
    net, x = NETS["resnet18_28"][0](), torch.randn(2, 1, 28, 28)
    h = net.linear.register_forward_hook(lambda *a: 1/0)
    before = ModelState.of(net)
    with pytest.raises(ZeroDivisionError): explain_with("gradcam", net, x)
    assert ModelState.of(net) == before
    h.remove()


def test_no_grad_and_inference_mode_outside():
    net, x = NETS["resnet18_28"][0]().eval(), torch.randn(2, 1, 28, 28)
    want = explain_with("gradcam", net, x).map
    with torch.no_grad(): assert_close(explain_with("gradcam", net, x).map, want)
    with torch.inference_mode(): assert_close(explain_with("gradcam", net, x.clone()).map, want)


def test_targets():
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net, x = NETS["resnet18_28"][0]().eval(), torch.randn(2, 1, 28, 28)
    want = explain_with("gradcam", net, x, 2)
    assert want.target.tolist() == [2, 2] and want.target_from == "given"
    for t in ([2, 2], torch.tensor([2, 2]), ClassifierOutputTarget(2), lambda p: p[2]): assert_close(explain_with("gradcam", net, x, t).map, want.map)
    assert_close(explain_with("gradcam", net, x, "owl", class_names=["cat", "dog", "owl", "bee"]).map, want.map)
    with pytest.raises(ValueError, match="2 classes a sample"): explain_with("gradcam", net, x, torch.zeros(2, 2).long())


def test_network_without_adapter_takes_a_module():
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x = torch.randn(2, 1, 12, 12)
    s = explain_with("gradcam", net, x, layer=net[2])
    assert s.map.shape == (2, 12, 12) and s.block_maps[0].shape == (2, 8, 8)
    assert_close(s.map, explain_with("gradcam", net, x, layer="2").map)


def test_missing_library_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchcam", None)
    monkeypatch.setitem(sys.modules, "torchcam.methods", None)
    net = NETS["resnet18_28"][0]()
    with pytest.raises(ImportError, match="gradcam.*pip install torchcam"): explain_with("gradcam", net, torch.randn(1, 1, 28, 28))
    assert ModelState.of(net).hooks == 0


def test_registry():
    assert {"mhex", "mhex-exact", "gradcam", "layercam"} <= set(explainer_names())
    assert callable(explainer("gradcam"))
    with pytest.raises(ValueError, match="registered are"): explainer("Grad-CAM")
    assert library("json", "json", "x").dumps


def test_tokens_can_be_saliency():
    s = Saliency(torch.tensor([[0., 1., 4.]]), torch.tensor([0]), "given", "tokens")
    assert_close(s.normalize("minmax").map, torch.tensor([[0., .25, 1.]]))
    assert s.normalize("minmax").normalized == "minmax" and len(s[0]) == 1
