"Equivalent matrices are kept between explanations; whatever changes the weights, the maps must follow."
from copy import deepcopy
import pytest, torch
from torch.testing import assert_close
import mhex


def small():
    torch.manual_seed(0)
    return mhex.create_backbone("resnet18_28", 3, in_channels=1, width=4, blocks=(1, 1))


def by_data(m):
    for u in m.units: u.gate.weight.data.mul_(1.5); u.head.weight.data.add_(.1)

def by_step(m):
    opt = torch.optim.SGD(m.parameters(), lr=.1)
    m.train()(torch.randn(4, 1, 28, 28))
    sum(p.square().sum() for p in m.head_logits).backward()
    opt.step(); m.eval()

def by_load(m): m.load_state_dict({k: v*1.1 for k, v in m.state_dict().items()})

def by_new_tensor(m):
    for u in m.units: u.head.weight.data = u.head.weight.data*2

def by_new_parameter(m):
    for u in m.units: u.head.weight = torch.nn.Parameter(u.head.weight.detach()*2)

def by_no_grad(m):
    with torch.no_grad():
        for p in m.units.parameters(): p.add_(.01)


@pytest.mark.parametrize("change", [by_data, by_step, by_load, by_new_tensor, by_new_parameter, by_no_grad])
@pytest.mark.parametrize("mode", ["train", "probe"])
def test_maps_follow_the_weights(change, mode):
    x = torch.randn(3, 1, 28, 28)
    with mhex.attach(small(), 3, mode=mode) as model:
        model.eval()
        first = mhex.explain(model, x)
        again = mhex.explain(model, x)
        assert all(a.E is b.E for a, b in zip(first.records, again.records))  # kept
        old = first.map()
        change(model)
        exp = mhex.explain(model, x)
        for r, u in zip(exp.records, model.units): assert_close(r.E, u.E.detach())
        assert not torch.allclose(exp.records[0].E, first.records[0].E)
        assert torch.equal(first.map(), old)  # an explanation is of the weights it was made with


def test_dtype_copy_and_gradients():
    x = torch.randn(2, 1, 28, 28)
    with mhex.attach(small(), 3) as model:
        mhex.explain(model, x)
        twin = deepcopy(model)
        with torch.no_grad(): twin.units[0].head.weight.mul_(3)
        assert_close(mhex.explain(twin, x).records[0].E, 3*mhex.explain(model, x).records[0].E)
        model.double()
        assert mhex.explain(model, x.double()).completeness_delta.max() < 1e-9
        with torch.inference_mode(): mhex.explain(model, x.double())
        _, records, _ = model.record(x.double())  # with gradients: nothing kept is used
        records[0].E.sum().backward()
        assert model.units[0].gate.weight.grad.abs().sum() > 0
        assert "_kept" not in str(model.state_dict().keys())
        with torch.autocast("cpu", dtype=torch.bfloat16): mhex.explain(model.float(), x)
        assert mhex.explain(model, x).records[0].E.dtype == torch.float32
