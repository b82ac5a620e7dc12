"Explainers against the other libraries that have them, on plain and attached networks, and what they leave behind."
import random, sys
import numpy as np, pytest, timm, torch, torchvision
from torch import nn
from torch.testing import assert_close
import mhex
from mhex.explainers.base import Saliency, explain_with, explainer, explainer_facts, explainer_names, library, register_explainer
from mhex.hooks import ModelState
from mhex.localisation import controls

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


def test_gradcam_pp_is_the_grad_cam_librarys(case):
    from pytorch_grad_cam import GradCAMPlusPlus
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget
    net, x = case
    if "ConvNeXt" in type(net).__name__: pytest.skip("the method is for rectified layers")
    with torch.no_grad(): [m for m in net.modules() if isinstance(m, nn.Linear)][-1].weight.mul_(100)  # gradients far above the library's epsilon
    for layer in (0, -1):
        ours = explain_with("gradcam++", net, x, 1, layer=layer)
        block = mhex.adapt.find_adapter(net).blocks(net)[layer].block
        with GradCAMPlusPlus(model=net, target_layers=[block]) as cam: theirs = torch.from_numpy(cam(input_tensor=x, targets=[ClassifierOutputTarget(1)]*len(x)))
        for a, b in zip(ours.map, theirs):
            if a.max() > 0: assert torch.corrcoef(torch.stack([a.flatten(), b.flatten()]))[0, 1] > .99


# settings that make each method small enough to run often
SMALL = {"scorecam": dict(layer=0), "integrated-gradients": dict(steps=4), "smoothgrad": dict(samples=3), "gradient-shap": dict(samples=3), "rise": dict(samples=12, cells=4),
         "occlusion": dict(window=10, stride=9), "kernel-shap": dict(samples=40, cells=3)}
MODEL_FREE = ["random", "gaussian", "edges", "uniform"]
PEERS = ["gradcam", "gradcam++", "layercam", "scorecam", "gradient-input", "integrated-gradients", "smoothgrad", "gradient-shap", "occlusion", "rise", "kernel-shap"]
FLOWS = ["attention", "rollout", "attention-gradient", "transformer-attribution"]


def run(method, model, x, target=None, **kw): return explain_with(method, model, x, target, **SMALL.get(method, {}), **kw)


def small(seed=0, b=2):
    "A small network whose norms have statistics, in evaluation mode, and images"
    torch.manual_seed(seed)
    net = NETS["resnet18_28"][0]()
    for _ in range(3): net.train()(torch.randn(16, 1, 28, 28)*2+1)
    return net.eval(), torch.randn(b, 1, 28, 28)


@pytest.mark.parametrize("method", [m for m in PEERS+MODEL_FREE if m not in ("gradcam", "layercam")])
def test_probe_mode_explains_a_small_network_itself(method):
    net, x = small()
    want = run(method, net, x)
    with mhex.attach(net, mode="probe") as model: assert_close(run(method, model, x).map, want.map)


@pytest.mark.parametrize("method", ["gradcam", "layercam"])
def test_probe_mode_explains_the_network_itself(case, method):
    net, x = case
    want = run(method, net, x)
    with mhex.attach(net, mode="probe") as model: got = run(method, model, x)
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


@pytest.mark.parametrize("method", ["mhex", "mhex-exact", *PEERS, *MODEL_FREE])
@pytest.mark.parametrize("mode", ["train", "probe"])
def test_nothing_is_left_behind(method, mode):
    net, x = NETS["resnet18_28"][0](), torch.randn(2, 1, 28, 28)
    net.layer1.eval()  # each module's own flag comes back
    with mhex.attach(net, 4, mode=mode) as model:
        model(x).sum().backward() if mode == "train" else None
        grads = [None if p.grad is None else p.grad.clone() for p in model.parameters()]
        before, heads = ModelState.of(model), model.head_logits
        for bad in (None, 9, "cat"):
            if bad is None: run(method, model, x)
            else:
                with pytest.raises(ValueError): run(method, model, x, target=bad)
            assert ModelState.of(model) == before
        if "mhex" not in method: assert model.head_logits is heads
        for p, g in zip(model.parameters(), grads): assert (p.grad is None and g is None) or torch.equal(p.grad, g)


@pytest.mark.parametrize("method", PEERS)
@pytest.mark.parametrize("nth", [1, 2])
def test_an_error_inside_the_network_passes_through_and_leaves_nothing(method, nth):
    net, x = NETS["resnet18_28"][0](), torch.randn(2, 1, 28, 28)
    calls, states = [], rng()
    def fail(*a): calls.append(1); return 1/0 if len(calls) == nth else None
    h = net.linear.register_forward_hook(fail)
    before = ModelState.of(net)
    if nth == 2 and method in ("gradcam", "gradcam++", "layercam"): run(method, net, x)
    else:
        with pytest.raises(ZeroDivisionError): run(method, net, x)
    assert ModelState.of(net) == before and rng() == states and all(p.grad is None for p in net.parameters())
    h.remove()


def rng(): return torch.get_rng_state().tolist(), np.random.get_state()[1].tolist(), random.getstate()


@pytest.mark.parametrize("method", PEERS+MODEL_FREE)
def test_what_an_explainer_declares_is_so(method):
    "Sign, cost, dependence on the class and on the seed; the global random states are left alone"
    facts, kw = explainer_facts(method), SMALL.get(method, {})
    net, x = small(3, 2)
    done = dict(forward=0, backward=0)
    def count(m, args, out):
        done["forward"] += len(out)
        if out.requires_grad: out.register_hook(lambda g: done.__setitem__("backward", done["backward"]+len(g)))
    h, states = net.register_forward_hook(count), rng()
    a = run(method, net, x, 1)
    h.remove()
    assert rng() == states
    names = dict(kw, channels=8, windows=9)  # 28 px, windows of 10 every 9: 3 by 3 places; the first block has 8 channels
    assert done == {k: 2*eval(getattr(facts, k), {}, names) for k in done}, "in passes over one image"
    assert a.signed == facts.signed and a.map.isfinite().all() and (facts.signed or a.map.min() >= 0)
    b = run(method, net, x, 2)
    assert torch.equal(a.map, b.map) != facts.class_specific
    assert torch.equal(a.map, run(method, net, x, 1).map)
    assert facts.source
    if facts.seeded: assert torch.equal(run(method, net, x, 1, seed=0).map, a.map) and not torch.equal(run(method, net, x, 1, seed=7).map, a.map)
    else:
        with pytest.raises(TypeError, match="seed"): run(method, net, x, 1, seed=0)


@pytest.mark.parametrize("method", PEERS)
def test_chunks_single_images_and_targets(method):
    net, x = small(4, 4)
    want = run(method, net, x, [1, 2, 0, 1])
    near = dict(atol=1e-5*float(want.map.abs().max()), rtol=1e-3)
    if method not in ("gradcam", "gradcam++", "layercam"):
        for n in (1, 3): assert_close(run(method, net, x, [1, 2, 0, 1], chunk_size=n).map, want.map, **near)
        with pytest.raises(ValueError, match="chunk_size"): run(method, net, x, chunk_size=0)
    assert_close(run(method, net, x[:1], 1).map, want.map[:1], **near)
    assert_close(run(method, net, x[2:], [0, 1]).map, want.map[2:], **near)
    assert_close(run(method, net, x, torch.tensor([1, 2, 0, 1])).map, want.map)
    assert_close(run(method, net, x, ["b", "c", "a", "b"], class_names=list("abcd")).map, want.map)
    fs = [lambda p, k=k: p[k] for k in (1, 2, 0, 1)]
    if method != "rise": assert_close(run(method, net, x, fs).map, want.map, **near)
    else: assert_close(run(method, net, x, [lambda p, k=k: p.softmax(0)[k] for k in (1, 2, 0, 1)]).map, want.map, **near)
    with torch.inference_mode(): assert_close(run(method, net, x.clone(), [1, 2, 0, 1]).map, want.map, **near)
    for bad, says in ((x[0], "add the batch"), (x[:0], "empty"), (x.int(), "int32"), (x*torch.nan, "NaN")):
        with pytest.raises((TypeError, ValueError), match=says): run(method, net, bad)


def test_integrated_gradients_is_captums_and_adds_up():
    from captum.attr import IntegratedGradients
    net, x = small(5, 2)
    net, x = net.double(), x.double()
    b = torch.randn(1, 28, 28).double()
    ours = explain_with("integrated-gradients", net, x, [0, 1], steps=10, baseline=b, chunk_size=7)
    assert_close(ours.map, IntegratedGradients(net).attribute(x, baselines=b.expand_as(x), target=[0, 1], n_steps=10).sum(1).detach())
    many = explain_with("integrated-gradients", net, x, [0, 1], steps=60, baseline=b)
    with torch.no_grad(): assert_close(many.map.sum((1, 2)), (net(x)-net(b[None]))[range(2), [0, 1]], atol=.05, rtol=.05)


def test_gradient_shap_tends_to_integrated_gradients():
    net, x = small(6)
    ig = explain_with("integrated-gradients", net, x, 1, steps=32).map
    near, far = (explain_with("gradient-shap", net, x, 1, samples=n).map for n in (80, 1))
    assert (near-ig).norm() < .5*ig.norm() and (near-ig).norm() < .5*(far-ig).norm()


def test_kernel_shap_is_captums():
    from captum.attr import KernelShap
    net, x = small(7, 1)
    ours = explain_with("kernel-shap", net, x, 1, cells=3, samples=510)  # all coalitions: exact
    cell = (torch.arange(28)*3//28)[:, None]*3+torch.arange(28)*3//28
    torch.manual_seed(0)
    theirs = KernelShap(net).attribute(x, target=1, feature_mask=cell[None, None], n_samples=1500, perturbations_per_eval=300)[0, 0]
    area = torch.bincount(cell.flatten())[cell]
    sampled = explain_with("kernel-shap", net, x, 1, cells=3, samples=300)
    scale = float((ours.map*area).abs().max())
    assert_close(theirs, ours.map[0]*area, atol=.1*scale, rtol=0.)
    assert_close(sampled.map[0]*area, ours.map[0]*area, atol=.15*scale, rtol=0.)


def test_rise_of_many_labels_uses_the_sigmoid():
    net = NETS["resnet18_28"][0]().eval()
    x = torch.randn(2, 1, 28, 28)
    with mhex.attach(net, mode="probe", multi_label=True) as model: a = run("rise", model, x, 1)
    assert_close(a.map, run("rise", net, x, [lambda p: p[1].sigmoid()]*2).map)


def test_a_known_answer():
    "The logit reads one patch: every method that can, points at it"
    torch.manual_seed(8)
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.AvgPool2d(4), nn.Flatten(), nn.Linear(4*49, 2))
    with torch.no_grad():
        net[0].weight.abs_(); net[4].weight.zero_()
        net[4].weight[1].view(4, 7, 7)[:, 2, 5] = 1.  # rows 8 to 11, columns 20 to 23
    x = torch.rand(2, 1, 28, 28)+.5
    inside = torch.zeros(28, 28, dtype=torch.bool); inside[6:14, 18:26] = True
    for method in PEERS:
        kw = dict(layer=net[1]) if "cam" in method else dict(samples=1500, score="logit") if method == "rise" else dict(cells=7) if method == "kernel-shap" else {}
        if method in ("gradcam", "gradcam++", "scorecam"): continue  # they weigh channels, not places
        m = explain_with(method, net, x, 1, **kw).map
        assert inside.flatten()[m.flatten(1).argmax(1)].all(), method


def test_same_name_for_images_and_texts():
    from mhex.explainers import base
    try:
        register_explainer("two-faced", signed=True, forward="2")(lambda model, x, target=None: Saliency(x[:, 0], torch.zeros(len(x)).long(), "given", ""))
        register_explainer("two-faced", inputs="text", forward="1")(lambda model, x, target=None: Saliency(x["input_ids"].float(), torch.zeros(1).long(), "given", ""))
        net = nn.Identity()
        assert explain_with("two-faced", net, torch.zeros(2, 1, 4, 4)).map.shape == (2, 4, 4)
        assert explain_with("two-faced", net, {"input_ids": torch.zeros(1, 5).long()}).map.shape == (1, 5)
        assert explainer_facts("two-faced").signed and "two-faced" in explainer_names()
    finally:
        for r in (base.explainers, base.text_explainers): r.items.pop("two-faced", None)
        for i in ("images", "text"): base._facts.pop((i, "two-faced"), None)


def test_facts_of_images_and_of_texts():
    assert explainer_facts("gradient-input").forward == explainer_facts("gradient-input", inputs="images").forward == "2"
    assert explainer_facts("gradient-input", inputs="text").forward == "1"
    assert explainer_facts("rollout", inputs="text") == explainer_facts("rollout")  # one function for both
    with pytest.raises(ValueError, match="inputs is 'words'; expected 'images' or 'text'"): explainer_facts("rollout", inputs="words")
    with pytest.raises(ValueError, match="registered are"): explainer_facts("roll-out")


@pytest.mark.parametrize("i", [1, np.int64(1), torch.tensor(1), [1], slice(1, 2), np.array([1])], ids=repr)
def test_one_sample_keeps_its_dimension(i):
    net, x = small(3, 2)
    s = explain_with("gradcam", net, x)
    one = s[i]
    assert one.map.shape == (1, 28, 28) and torch.equal(one.map[0], s.map[1]) and one.target.tolist() == s.target[1:].tolist() and len(one.block_maps[0]) == 1


def test_controls_have_one_definition():
    "The metrics' and the explainers': the same maps, up to the scale of the edges; a square image with one channel keeps the maps of earlier tables."
    g = torch.Generator().manual_seed(0)
    for shape in ((2, 1, 28, 28), (2, 3, 16, 24)):
        x = torch.randn(*shape, generator=g)
        net = nn.Sequential(nn.Flatten(), nn.Linear(x[0].numel(), 2))
        ours = {m: explain_with(m, net, x).map for m in MODEL_FREE}
        theirs = controls(x)
        for m, n in zip(MODEL_FREE, ("random", "centred Gaussian", "edges", "uniform")):
            assert_close(ours[m]/(ours[m].amax((1, 2), keepdim=True) if m == "edges" else 1.), theirs[n])
        if shape[2] != shape[3]: continue
        y = torch.exp(-((torch.arange(28)-13.5)/7)**2/2)
        assert torch.equal(ours["gaussian"], (y[:, None]*y).expand(2, 28, 28)) and torch.equal(ours["random"], torch.rand(2, 28, 28, generator=torch.Generator().manual_seed(0)))
        p = nn.functional.pad(x, (1, 1, 1, 1), mode="replicate")
        k = torch.tensor([[-1., 0., 1.], [-2., 0., 2.], [-1., 0., 1.]])/8
        assert torch.equal(ours["edges"], nn.functional.conv2d(p, torch.stack([k, k.T])[:, None]).square().sum(1).sqrt())


# ---- attention

def vit(kind="timm", **kw):
    torch.manual_seed(0)
    if kind == "timm": net = timm.models.VisionTransformer(img_size=24, patch_size=4, embed_dim=24, depth=2, num_heads=3, num_classes=3, **kw)
    elif kind == "torchvision":
        net = torchvision.models.VisionTransformer(24, 4, 2, 3, 24, 48, num_classes=3)
        nn.init.normal_(net.heads.head.weight)
    else:
        from transformers import ViTConfig, ViTForImageClassification
        net = ViTForImageClassification(ViTConfig(hidden_size=24, num_hidden_layers=2, num_attention_heads=3, intermediate_size=48, image_size=24, patch_size=4, num_labels=3))
        net.set_attn_implementation(kw.get("attention", "sdpa"))
    with torch.no_grad():
        for p in net.parameters():
            if p.ndim == 2: p.mul_(2.)
    return net.eval()


VITS = {"timm": {}, "timm mean": dict(global_pool="avg"), "timm registers": dict(reg_tokens=3, init_values=.3), "timm no class token": dict(class_token=False, global_pool="avg"),
        "torchvision": {}, "hf": {}, "hf eager": dict(attention="eager")}


@pytest.mark.parametrize("name", VITS)
def test_attention_flow_on_vision_transformers(name):
    net = vit(name.split()[0], **VITS[name])
    x = torch.randn(3, 3, 24, 24)
    for train in (False, True):
        net.train(train)
        before, states = ModelState.of(net), rng()
        for method in FLOWS:
            s = explain_with(method, net, x, [0, 1, 2])
            assert s.map.shape == (3, 24, 24) and s.block_maps[-1].shape == (3, 6, 6) and s.map.isfinite().all() and s.map.min() >= 0 and s.map.max() > 0
            assert_close(explain_with(method, net, x, [0, 1, 2], chunk_size=2).map, s.map, atol=1e-6, rtol=1e-3)
            assert torch.equal(explain_with(method, net, x, [1, 2, 0]).map, s.map) != explainer_facts(method).class_specific and s.signed == explainer_facts(method).signed
            for bad in (3, [0, 1]):
                with pytest.raises(ValueError): explain_with(method, net, x, bad)
        assert ModelState.of(net) == before and rng() == states and all(p.grad is None for p in net.parameters())


def test_what_attention_flow_declares_is_so():
    net, x = vit(), torch.randn(2, 3, 24, 24)
    for method in FLOWS:
        done, facts = dict(forward=0, backward=0), explainer_facts(method)
        def count(m, args, out):
            done["forward"] += len(out)
            if out.requires_grad: out.register_hook(lambda g: done.__setitem__("backward", done["backward"]+len(g)))
        h = net.register_forward_hook(count)
        explain_with(method, net, x, 1)
        h.remove()
        assert done == dict(forward=2*int(facts.forward), backward=2*int(facts.backward))


def test_fused_and_open_attention_give_the_same_maps():
    x = torch.randn(2, 3, 24, 24)
    a, b = vit("hf"), vit("hf", attention="eager")
    for method in FLOWS: assert_close(explain_with(method, a, x, 1).map, explain_with(method, b, x, 1).map, atol=1e-6, rtol=1e-3)
    assert a.config._attn_implementation == "sdpa"
    net = vit()
    want = [explain_with(m, net, x, 1).map for m in FLOWS]
    for block in net.blocks: block.attn.fused_attn = False
    for m, w in zip(FLOWS, want): assert_close(explain_with(m, net, x, 1).map, w, atol=1e-6, rtol=1e-3)


def test_frozen_networks_and_no_grad_outside():
    net, x = vit(), torch.randn(2, 3, 24, 24)
    want = [explain_with(m, net, x, 1).map for m in FLOWS]
    for p in net.parameters(): p.requires_grad_(False)
    for context in (torch.no_grad, torch.inference_mode):
        with context():
            for m, w in zip(FLOWS, want): assert_close(explain_with(m, net, x.clone(), 1).map, w)


def test_transformer_attribution_by_hand():
    "One block, one head, written out: gradients by autograd, relevance by the equations, without any of the library's rules"
    torch.manual_seed(9)
    net = timm.models.VisionTransformer(img_size=8, patch_size=4, embed_dim=6, depth=1, num_heads=1, num_classes=2).double().eval()
    x = torch.randn(1, 3, 8, 8).double()
    b = net.blocks[0]
    with torch.no_grad():
        x0 = net._pos_embed(net.patch_embed(x))[0]                    # n d
        q, k, v = b.attn.qkv(b.norm1(x0)).view(5, 3, 6).unbind(1)
        A = (q@k.T/6**.5).softmax(-1)
        o = A@v
        s1 = b.attn.proj(o)
        x1 = x0+s1
        h = b.mlp.act(b.mlp.fc1(n2 := b.norm2(x1)))
        s2 = b.mlp.fc2(h)
        x2 = x1+s2
        cls = net.norm(x2)[0]
        def linear(R, x, w):                                          # loops: R_j = sum_i (x_j w_ij)^+ / sum_j (x_j w_ij)^+ R_i
            out = torch.zeros_like(x)
            for i in range(len(w)):
                c = (x*w[i]).clamp(min=0)
                if c.sum() > 0: out += c/c.sum()*R[i]
            return out
        def split(R, u, v):                                           # a sum, with both sides scaled
            Ru, Rv = u/(u+v)*R, v/(u+v)*R
            f = R.sum()/(Ru.sum().abs()+Rv.sum().abs())
            return Ru*Ru.sum().sign()*f, Rv*Rv.sum().sign()*f
        R = torch.zeros(5, 6).double()
        R[0] = linear(torch.tensor([0., 1.]).double(), cls, net.head.weight)
        R1, R2 = split(R, x1, s2)
        R1 = R1+torch.stack([linear(linear(r, hh, b.mlp.fc2.weight), nn_, b.mlp.fc1.weight) for r, hh, nn_ in zip(R2, h, n2)])
        _, Rs = split(R1, x0, s1)
        Ro = torch.stack([linear(r, oo, b.attn.proj.weight) for r, oo in zip(Rs, o)])
        RA, Rv = torch.zeros(5, 5).double(), torch.zeros(5, 6).double()
        for i in range(5):
            for j in range(5):
                share = A[i, j]*v[j]/o[i]*Ro[i]
                RA[i, j] += share.sum(); Rv[j] += share
        RA = RA*Ro.sum()/(RA.sum().abs()+Rv.sum().abs())*RA.sum().sign()
    from mhex.explainers.attention import Attention, relevances
    assert_close(relevances(net, x, torch.tensor([[0., 1.]]).double())[0][0, 0], RA, atol=1e-6, rtol=1e-5)
    with Attention() as seen: p = net(x)
    g, = torch.autograd.grad(p[0, 1], seen.weights)
    want = (g[0, 0]*RA).clamp(min=0)[0, 1:]
    assert_close(explain_with("transformer-attribution", net, x, 1).block_maps[0].flatten(), want, atol=1e-8, rtol=1e-4)


def test_attention_that_cannot_be_put_on_a_map():
    from transformers import SwinConfig, SwinForImageClassification
    swin = SwinForImageClassification(SwinConfig(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[2, 2], window_size=4)).eval()
    for m in FLOWS:
        with pytest.raises(TypeError, match="within windows or at several resolutions"): explain_with(m, swin, torch.randn(1, 3, 32, 32), 0)
        with pytest.raises(TypeError, match="no attention was seen in SmallResNet"): explain_with(m, NETS["resnet18_28"][0](), torch.randn(1, 1, 28, 28), 0)
    with pytest.raises(ValueError, match="no token beside its patches"): explain_with("rollout", vit(class_token=False, global_pool="avg"), torch.randn(1, 3, 24, 24), rows="cls")


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


def test_class_names_are_found_in_one_way():
    "An attached model's, a network's own, a Hugging Face configuration's: for every method that takes a target."
    net, x = vit("hf"), torch.randn(2, 3, 24, 24)
    net.config.id2label = {0: "cat", 1: "dog", 2: "owl"}
    named = small(3, 2)
    named[0].class_names = ["cat", "dog", "owl", "bee"]
    for m in [*PEERS, *FLOWS, *MODEL_FREE]:
        if m == "scorecam": continue
        for net_, x_ in [(net, x)]+[named]*(m not in FLOWS):
            s = run(m, net_, x_, "owl")
            assert s.target.tolist() == [2, 2] and torch.equal(s.map, run(m, net_, x_, 2).map), m
            with pytest.raises(ValueError, match="'cat', 'dog', 'owl'"): run(m, net_, x_, "bat")
    del named[0].class_names
    with pytest.raises(ValueError, match="has no class names"): run("gradcam", *named, "owl")


@pytest.mark.parametrize("method, setting", [("gradient-input", "chunk_size"), ("integrated-gradients", "steps"), ("smoothgrad", "samples"), ("scorecam", "chunk_size"), ("kernel-shap", "cells"),
                                             ("rise", "samples"), ("occlusion", "window"), ("random", "seed")])
def test_whole_numbers(method, setting):
    "numpy's are as good as any"
    net, x = small(3, 2)
    kw, n = SMALL.get(method, {}), 10 if method in ("occlusion", "rise") else 3
    assert torch.equal(explain_with(method, net, x, 1, **kw | {setting: np.int64(n)}).map, explain_with(method, net, x, 1, **kw | {setting: n}).map)
    for bad in (2.5, "3", True, -1):
        with pytest.raises(ValueError, match=f"{setting} is {bad!r}; expected a whole number"): explain_with(method, net, x, 1, **kw | {setting: bad})


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
    monkeypatch.setitem(sys.modules, "captum", None)
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    for m in ("integrated-gradients", "occlusion"):
        with pytest.raises(ImportError, match=f"{m}.*pip install captum"): explain_with(m, net, torch.randn(1, 1, 28, 28))
    assert ModelState.of(net).hooks == 0


def test_registry():
    assert {"mhex", "mhex-exact", *PEERS, *MODEL_FREE, *FLOWS} <= set(explainer_names())
    assert callable(explainer("gradcam"))
    net, x = NETS["resnet18_28"][0]().eval(), torch.randn(1, 1, 28, 28)
    assert_close(explainer("layercam", layer=2)(net, x, 1).map, explain_with("layercam", net, x, 1, layer=2).map)
    with pytest.raises(ValueError, match="registered are"): explainer("Grad-CAM")
    assert library("json", "json", "x").dumps


def test_tokens_can_be_saliency():
    s = Saliency(torch.tensor([[0., 1., 4.]]), torch.tensor([0]), "given", "tokens")
    assert_close(s.normalize("minmax").map, torch.tensor([[0., .25, 1.]]))
    assert s.normalize("minmax").normalized == "minmax" and len(s[0]) == 1
