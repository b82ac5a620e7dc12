"Training: resume after any interruption, twins, metrics' parity, wrong input."
import csv, os, signal, subprocess, sys, time, warnings
from dataclasses import replace
from pathlib import Path
import numpy as np, pytest, torch

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
import mhex
from fastai.callback.core import Callback
from fastai.data.core import DataLoaders
from fastai.data.load import DataLoader as FastLoader
from mhex.data import ImageData, load_data
from mhex.train import (CHECKPOINT, HISTORY, BestCallback, CheckpointCallback, MHEXCallback, MHEXInterpretation, Recipe, accuracy_score, auc_score, augments,
                        evaluate, fit_recipe, get_recipe, mhex_learner, predict_split, read_checkpoint, recipes)

QUICK = replace(recipes["quick"], epochs=3, min_steps=0, lr=.01)
NARROW = dict(width=8, blocks=(1, 1))


@pytest.fixture(scope="module")
def digits(): return load_data("digits", size=10).subset(train=200, valid=60, test=60)


def learner(data, **kw): return mhex_learner(data, **{**dict(recipe=QUICK, backbone_kw=NARROW, bs=40, device="cpu"), **kw})


def same(a, b):
    a, b = a.model.state_dict(), b.model.state_dict()
    return list(a) == list(b) and all(torch.equal(p, q) for p, q in zip(a.values(), b.values()))


class StopAt(Callback):
    "Raise at one step, where `event` says"
    def __init__(self, step, event): self.step, self.event = step, event
    def __call__(self, event_name):
        if event_name == self.event and self.learn.train_iter == self.step: raise RuntimeError("power cut")


# heads in the loss

def test_early_heads_count_less(digits):
    "The training loss is the weighted mean over heads, the last one in full"
    l = learner(digits, recipe=replace(QUICK, early=.25))
    assert l.mhex.loss_of_heads.weights == [.25, 1.] and learner(digits).mhex.loss_of_heads.weights is None
    x, y = digits.batch("train", range(8))
    model = l.model.eval()
    with torch.no_grad(): model(x)
    a, b = (torch.nn.functional.cross_entropy(p, y) for p in model.head_logits)
    torch.testing.assert_close(l.mhex.loss_of_heads(model.head_logits, y), (.25*a+b)/1.25)
    for bad in (0, -1., True, "half"):
        with pytest.raises(ValueError, match="early is"): learner(digits, recipe=replace(QUICK, early=bad))


# resume

@pytest.fixture(scope="module")
def whole(digits, tmp_path_factory):
    d = tmp_path_factory.mktemp("whole")
    return learner(digits).fit_recipe(d, quiet=True), (d / HISTORY).read_bytes()


@pytest.mark.parametrize("every", [1, 4, 100])
@pytest.mark.parametrize("step,event", [(0, "before_batch"), (1, "after_step"), (5, "before_validate"), (5, "after_epoch"), (7, "after_pred"), (14, "after_step")])
def test_resume_is_exact(digits, whole, tmp_path, step, event, every):
    "15 steps in 3 epochs, broken at a beginning, a middle, an end, before and inside validation"
    with pytest.raises(RuntimeError, match="power cut"): learner(digits).add_cb(StopAt(step, event)).fit_recipe(tmp_path, every=every, quiet=True)
    np.random.seed(5); torch.manual_seed(5)
    again = learner(digits).fit_recipe(tmp_path, every=every, resume=True, quiet=True)
    assert same(whole[0], again) and (tmp_path / HISTORY).read_bytes() == whole[1]
    assert again.recorder.lrs == whole[0].recorder.lrs and torch.equal(torch.stack(list(again.recorder.losses)), torch.stack(list(whole[0].recorder.losses)))
    assert again.history.rows == whole[0].history.rows


def test_resume_in_the_same_process(digits, whole, tmp_path):
    "The learner that was interrupted goes on itself"
    l = learner(digits).add_cb(stop := StopAt(8, "after_step"))
    with pytest.raises(RuntimeError): l.fit_recipe(tmp_path, every=3, quiet=True)
    l.remove_cb(stop)
    assert same(whole[0], l.fit_recipe(tmp_path, every=3, resume=True, quiet=True))


def test_resume_of_a_finished_run(digits, whole, tmp_path):
    learner(digits).fit_recipe(tmp_path, quiet=True)
    again = learner(digits).fit_recipe(tmp_path, resume=True, quiet=True)
    assert same(whole[0], again) and (tmp_path / HISTORY).read_bytes() == whole[1]


RUN = """
import os, signal, sys, warnings
warnings.filterwarnings("ignore")
from dataclasses import replace
from fastai.callback.core import Callback
from mhex.data import load_data
from mhex.train import mhex_learner, recipes
class Kill(Callback):
    def after_step(self):
        if self.learn.train_iter==8: os.kill(os.getpid(), signal.SIGKILL)
data = load_data("digits", size=10).subset(train=200, valid=60, test=60)
l = mhex_learner(data, recipe=replace(recipes["quick"], epochs=3, min_steps=0, lr=.01), backbone_kw=dict(width=8, blocks=(1,1)), bs=40, device="cpu")
l.add_cb(Kill()).fit_recipe(sys.argv[1], every=3, quiet=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="needs a system with SIGKILL")
def test_resume_after_kill(digits, whole, tmp_path):
    "A process killed without warning, resumed in this one"
    r = subprocess.run([sys.executable, "-c", RUN, str(tmp_path)], env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mhex.__file__).parent.parent)}, capture_output=True)
    assert r.returncode == -signal.SIGKILL, r.stderr.decode()[-2000:]
    s = read_checkpoint(tmp_path / CHECKPOINT)
    assert (s["epoch"], s["batch"]) == (1, 1)  # six steps of five an epoch
    again = learner(digits).fit_recipe(tmp_path, every=3, resume=True, quiet=True)
    assert same(whole[0], again) and (tmp_path / HISTORY).read_bytes() == whole[1]
    assert not list(tmp_path.glob(".*tmp"))


def test_resume_with_dropout_and_other_loaders(digits, tmp_path):
    "A loader that cannot skip draws and drops; the generators stand where they stood"
    class Net(mhex.SmallResNet):
        def forward(self, x): return super().forward(torch.nn.functional.dropout(x, .3, self.training))
    ds = [(digits.normalize(x), y) for x, y in digits.train]
    def run(folder, stop=None, **kw):
        torch.manual_seed(3)
        dls = DataLoaders(FastLoader(ds, bs=40, shuffle=True), FastLoader(ds[:50], bs=50), device=torch.device("cpu"))
        dls.c = 10
        l = learner(dls, backbone=Net(10, 1, **NARROW), backbone_kw=None)
        if stop: l.add_cb(StopAt(stop, "after_step"))
        return l.fit_recipe(folder, every=2, quiet=True, **kw)
    one = run(tmp_path / "a")
    with pytest.raises(RuntimeError, match="power cut"): run(tmp_path / "b", stop=8)
    assert same(one, run(tmp_path / "b", resume=True))


def test_resume_with_selection_and_patience(digits, tmp_path):
    "The best epoch so far, its weights and the patience are taken up as well"
    r = replace(QUICK, epochs=6, select="accuracy", patience=2, lr=.05, schedule="constant")
    one = learner(digits, recipe=r).fit_recipe(tmp_path / "a", quiet=True)
    with pytest.raises(RuntimeError): learner(digits, recipe=r).add_cb(StopAt(13, "after_step")).fit_recipe(tmp_path / "b", every=4, quiet=True)
    two = learner(digits, recipe=r).fit_recipe(tmp_path / "b", resume=True, quiet=True)
    assert same(one, two) and (tmp_path / "a" / HISTORY).read_bytes() == (tmp_path / "b" / HISTORY).read_bytes()
    best = max(r["accuracy"] for r in one.history.rows)
    assert evaluate(one, digits, "valid")["accuracy"] == pytest.approx(best)
    assert len(list((tmp_path / "b").glob("best-*"))) == 1


def test_fit_one_cycle_resumes(digits, tmp_path):
    "The checkpoint callback works with any single fit"
    def run(d, stop=None, **kw):
        l = learner(digits)
        if stop: l.add_cb(StopAt(stop, "after_step"))
        with l.no_bar(), l.no_logging(): l.fit_one_cycle(2, 3e-3, cbs=CheckpointCallback(d, every=2, **kw))
        return l
    one = run(tmp_path / "a")
    with pytest.raises(RuntimeError): run(tmp_path / "b", stop=7)
    assert same(one, run(tmp_path / "b", resume=True))
    l = learner(digits)
    with l.no_bar(), l.no_logging(), pytest.raises(ValueError, match="scheduled was \\['lr', 'mom'\\], here it is \\[\\]"):
        l.fit(2, 3e-3, cbs=CheckpointCallback(tmp_path / "b", resume=True))


@pytest.mark.parametrize("kw,said", [(dict(seed=1), "seed was 0, here it is 1"), (dict(backbone_kw=dict(width=16, blocks=(1, 1))), "not from this architecture"),
    (dict(explain=False), "not from this architecture"), (dict(recipe=replace(QUICK, name="mine")), "name='quick', here 'mine'"), (dict(bs=20), "bs was 40, here it is 20"),
    (dict(predict="mean"), "predict='last', here 'mean'")])
def test_foreign_checkpoint(digits, tmp_path, kw, said):
    learner(digits).fit_recipe(tmp_path, epochs=1, quiet=True)
    other = learner(digits, **kw)
    before = {k: v.clone() for k, v in other.model.state_dict().items()}
    with pytest.raises(ValueError, match=said): other.fit_recipe(tmp_path, epochs=1, resume=True, quiet=True)
    assert all(torch.equal(v, before[k]) for k, v in other.model.state_dict().items())


def test_damaged_checkpoint(digits, tmp_path):
    learner(digits).fit_recipe(tmp_path, epochs=1, quiet=True)
    f = tmp_path / CHECKPOINT
    good = f.read_bytes()
    for bad in (b"", good[: len(good) // 2], b"not a checkpoint"):
        f.write_bytes(bad)
        with pytest.raises(ValueError, match="truncated or of another kind"): learner(digits).fit_recipe(tmp_path, epochs=1, resume=True, quiet=True)
    torch.save({"schema": 7}, f)
    with pytest.raises(ValueError, match="schema 7, expected 1"): learner(digits).fit_recipe(tmp_path, epochs=1, resume=True, quiet=True)
    torch.save({"x": Path("a")}, f)  # what would run code is refused
    with pytest.raises(ValueError, match="of another kind"): learner(digits).fit_recipe(tmp_path, epochs=1, resume=True, quiet=True)


def test_folder_in_use(digits, tmp_path):
    learner(digits).fit_recipe(tmp_path, epochs=1, quiet=True)
    with pytest.raises(ValueError, match="holds a run already"): learner(digits).fit_recipe(tmp_path, epochs=1, quiet=True)
    learner(digits, seed=4).fit_recipe(tmp_path, epochs=1, overwrite=True, quiet=True)
    assert [r["seed"] for r in csv.DictReader(open(tmp_path / HISTORY))] == ["4"]
    with pytest.warns(UserWarning, match="starts at the beginning"): learner(digits).fit_recipe(tmp_path / "new", epochs=1, resume=True, quiet=True)
    with pytest.raises(ValueError, match="needs the folder"): learner(digits).fit_recipe(resume=True)
    (tmp_path / "file").write_text("")
    with pytest.raises(PermissionError, match="choose another"): learner(digits).fit_recipe(tmp_path / "file" / "x", epochs=1, quiet=True)


# twins and seeds

def test_twin_has_the_same_start_and_batches(digits):
    torch.manual_seed(9)
    a = learner(digits, seed=2, recipe=replace(QUICK, augment="shift-flip"))
    torch.manual_seed(1)
    b = learner(digits, seed=2, explain=False, recipe=replace(QUICK, augment="shift-flip"))
    pa, pb = a.model.backbone.state_dict(), b.model.state_dict()
    assert list(pa) == list(pb) and all(torch.equal(pa[k], pb[k]) for k in pa)
    seen = []
    class Seen(Callback):
        def before_batch(self): seen.append((self.learn.training, self.learn.xb[0].clone(), self.learn.yb[0].clone()))
    for l in (a, b): l.add_cb(Seen()).fit_recipe(epochs=2, quiet=True)
    n = len(seen) // 2
    assert all(p[0] == q[0] and torch.equal(p[1], q[1]) and torch.equal(p[2], q[2]) for p, q in zip(seen[:n], seen[n:]))
    assert not torch.equal(seen[0][1], seen[n // 2][1])  # another order in the second epoch


def test_making_a_learner_leaves_the_generators_alone(digits):
    torch.manual_seed(0); np.random.seed(0)
    want = torch.get_rng_state(), np.random.get_state()[2]
    learner(digits, seed=5)
    assert torch.equal(torch.get_rng_state(), want[0]) and np.random.get_state()[2] == want[1]


def test_seed_matters(digits): assert not same(learner(digits, seed=0), learner(digits, seed=1))


# deep supervision

def test_training_loss_is_the_heads_and_validation_loss_the_prediction(digits):
    l, got = learner(digits, recipe=replace(QUICK, reduction="sum")), []
    class Watch(Callback):
        order = 5
        def before_backward(self):
            y, ps = self.learn.yb[0], self.learn.model.head_logits
            got.append((self.learn.loss_grad.item(), sum(torch.nn.functional.cross_entropy(p, y).item() for p in ps)))
    l.add_cb(Watch()).fit_recipe(epochs=1, quiet=True)
    assert len(got) == 5 and all(a == pytest.approx(b, rel=1e-5) for a, b in got)
    assert l.history.rows[-1]["valid_loss"] == pytest.approx(evaluate(l, digits, "valid")["loss"], rel=1e-4)


def test_history_row(digits):
    l = learner(digits).fit_recipe(epochs=2, quiet=True)
    row, v = l.history.rows[-1], evaluate(l, digits, "valid")
    assert row["epoch"] == 1 and row["seed"] == 0 and row["recipe"] == "quick"
    assert row["accuracy"] == pytest.approx(v["accuracy"]) and row["auc"] == pytest.approx(v["auc"], abs=1e-6)
    assert row["accuracy layer2.0"] == pytest.approx(row["accuracy"])  # the last head predicts
    l.validate()
    assert len(l.history.rows) == 2  # looking is not an epoch


def test_probe_learns_and_changes_nothing(digits):
    plain = learner(digits, explain=False).fit_recipe(epochs=1, quiet=True).model.eval()
    x, _ = digits.batch("test", slice(0, 20))
    before = {k: v.clone() for k, v in plain.state_dict().items()}
    with torch.no_grad(): logits = plain(x)
    for targets in ("labels", "backbone"):
        l = learner(digits, backbone=plain, backbone_kw=None, mode="probe", targets=targets).fit_recipe(epochs=3, quiet=True)
        assert l.history.rows[-1]["loss layer2.0"] < l.history.rows[0]["loss layer2.0"]
        with torch.no_grad(): assert torch.equal(l.model.eval()(x), logits)
        l.model.detach()
        assert all(torch.equal(v, before[k]) for k, v in plain.state_dict().items())


def test_callback_needs_mhex(digits):
    l = learner(digits, explain=False).add_cb(MHEXCallback())
    with pytest.raises(TypeError, match="trains what mhex.attach returns"): l.fit_recipe(epochs=1, quiet=True)
    with pytest.raises(ValueError, match="'labels' or 'backbone'"): MHEXCallback(targets="teacher")


# several labels an image

@pytest.fixture(scope="module")
def many():
    rng = np.random.default_rng(0)
    def part(n):
        y = (rng.random((n, 3)) < .4).astype(float)
        x = .1 * rng.random((n, 12, 12))
        for i in range(3): x[:, 4 * i:4 * i + 4] += .8 * y[:, i, None, None]
        return x, y
    return ImageData.from_arrays("many", part(200), part(60), part(60), class_names=["top", "middle", "bottom"], multi_label=True)


def test_multi_label(many, tmp_path):
    l = learner(many).fit_recipe(tmp_path, epochs=4, quiet=True)
    assert l.model.multi_label and l.model.class_names == ["top", "middle", "bottom"]
    e = evaluate(l, many)
    assert e["auc"] > .8 and e["n"] == 60
    p, y = predict_split(l, many)
    assert e["accuracy"] == pytest.approx(((p > 0) == (y > .5)).double().mean().item())
    i = MHEXInterpretation.from_learner(l, "test")
    cm = i.confusion_matrix()
    assert cm.shape == (3, 2, 2) and (cm.sum((1, 2)) == 60).all()
    assert cm[0, 1].sum() == int(y[:, 0].sum()) and cm[0, 0, 1] == int(((p[:, 0] > 0) & (y[:, 0] < .5)).sum())
    assert len(i.plot_confusion_matrix().axes) == 3 and i.plot_top_losses(2).axes
    m = l.model.save_pretrained(tmp_path / "m") or mhex.from_pretrained(tmp_path / "m")
    assert m.multi_label and m.preprocess == many.preprocess


# numbers as MedMNIST's

@pytest.mark.parametrize("task,k", [("multi-class", 4), ("binary-class", 2), ("multi-label, binary-class", 5)])
def test_parity_with_medmnist(task, k):
    ev = pytest.importorskip("medmnist.evaluator")
    rng = np.random.default_rng(1)
    for ties in (False, True):
        s = rng.normal(size=(80, k))
        s = torch.from_numpy(np.round(s) if ties else s)
        label = "label" in task
        y = torch.from_numpy(rng.integers(0, 2, (80, k)).astype(float) if label else np.arange(80) % k)
        probs = s.sigmoid() if label else s.softmax(1)
        want = y.numpy() if label else y.numpy()[:, None]
        assert auc_score(probs, y, label) == pytest.approx(ev.getAUC(want, probs.numpy(), task), abs=1e-12)
        if not (ties and task == "binary-class"):  # at exactly one half argmax says class 0, as the threshold does
            assert accuracy_score(probs, y, label) == pytest.approx(ev.getACC(want, probs.numpy(), task), abs=1e-12)
    assert accuracy_score(torch.tensor([[.5, .5]] * 2), torch.tensor([0, 0])) == 1 == ev.getACC(np.array([[0]] * 2), np.array([[.5, .5]] * 2), "binary-class")


def test_evaluate_takes_what_there_is(digits):
    l = learner(digits)
    want = evaluate(l, digits, "valid")
    for model, data, split in [(l.model, digits, "val"), (l, l.dls, "valid"), (l.model, l.dls.valid, "any")]:
        got = evaluate(model, data, split, bs=17)
        assert got["n"] == want["n"] and got["loss"] == pytest.approx(want["loss"], rel=1e-5)
    plain = l.model.detach()
    plain.train()
    assert evaluate(plain, digits)["n"] == 60 and plain.training
    with pytest.raises(ValueError, match="no split"): evaluate(plain, digits, "holdout")
    with pytest.raises(TypeError, match="expected a torch.nn.Module"): evaluate("model", digits)
    with pytest.raises(ValueError, match="model has 4 classes"): evaluate(mhex.create_backbone("resnet18_28", 4, in_channels=1, **NARROW), digits)


# recipes

def test_recipes_are_consistent():
    assert {"mhex-paper", "mhex-imagenet", "medmnist-v2", "medmnist-plus", "quick"} <= set(recipes)
    for name, r in recipes.items():
        assert r.name == name and r.reduction in ("mean", "sum") and (r.augment is None or r.augment in augments)
    p = get_recipe("mhex-paper")
    assert p.on("organamnist").bs == 32 and p.on("pneumoniamnist").augment == "flip-rotate" and p.on("bloodmnist") == replace(p, for_data={})


@pytest.mark.parametrize("name", ["mhex-paper", "mhex-imagenet", "medmnist-v2", "medmnist-plus"])
def test_every_recipe_runs(digits, name):
    r = replace(get_recipe(name), size=None, bs=40)
    l = learner(digits, recipe=r, bs=None).fit_recipe(epochs=2, quiet=True)
    assert len(l.history.rows) == 2 and len(l.opt.param_lists) == 2


def test_medmnist_schedule(digits):
    r = replace(get_recipe("medmnist-v2"), size=None, bs=40)
    l = learner(digits, recipe=r, bs=None).fit_recipe(epochs=4, quiet=True)
    assert np.allclose(l.recorder.lrs[::5], [1e-3, 1e-3, 1e-4, 1e-5]) and isinstance(l.opt.opt, torch.optim.Adam)


def test_best_epoch_is_kept(digits):
    l = learner(digits)
    b = BestCallback("valid_loss")
    with l.no_bar(), l.no_logging(): l.fit(3, .3, cbs=b)  # a rate that spoils the weights
    assert evaluate(l, digits, "valid")["loss"] == pytest.approx(min(r["valid_loss"] for r in l.history.rows), rel=1e-4)
    with l.no_bar(), l.no_logging(), pytest.raises(ValueError, match="select is 'f1'"): l.fit(1, cbs=BestCallback("f1"))


def test_interpretation_finds_the_worst(digits):
    l = learner(digits).fit_recipe(epochs=1, quiet=True)
    i = MHEXInterpretation.from_learner(l, "train")  # shuffled for training, in order here
    logits, y = predict_split(l, digits, "train")
    losses = torch.nn.functional.cross_entropy(logits, y, reduction="none")
    got, idx = i.top_losses(3)
    torch.testing.assert_close(got, losses.topk(3).values)
    torch.testing.assert_close(i.inputs(idx), digits.batch("train", idx)[0])
    assert i.confusion_matrix().sum() == 200 and sum(n for *_, n in i.most_confused()) == int((logits.argmax(1) != y).sum())
    assert len(i.plot_top_losses(4, ncols=2).axes) == 8


# wrong input

def test_errors(digits):
    with pytest.raises(ValueError, match="recipe is 'fast'; there are"): learner(digits, recipe="fast")
    with pytest.raises(ValueError, match="torchvision or timm model name"): learner(digits, backbone="resnet99", backbone_kw=None)
    with pytest.raises(ValueError, match="n_classes is 3, the data have 10 classes: 0, 1"): learner(digits, n_classes=3)
    with pytest.raises(ValueError, match="multi_label is True, the data say False"): learner(digits, multi_label=True)
    with pytest.raises(ValueError, match="takes 28-px images, digits is loaded at 10 px"): learner(digits, recipe="medmnist-v2")
    with pytest.raises(TypeError, match="expected what mhex.load_data returns"): mhex_learner("digits")
    with pytest.raises(TypeError, match="a name or a torch.nn.Module"): learner(digits, backbone=18)
    with pytest.raises(ValueError, match="built already"): learner(digits, backbone=mhex.SmallResNet(10, 1, **NARROW))
    with pytest.raises(ValueError, match="augment is 'mixup'"): learner(digits, recipe=replace(QUICK, augment="mixup"))
    with pytest.raises(ValueError, match="optimizer 'lion'"): learner(digits, recipe=replace(QUICK, optimizer="lion"))
    with pytest.raises(ValueError, match="schedule 'warm'"): learner(digits, recipe=replace(QUICK, schedule="warm")).fit_recipe(quiet=True)
    with pytest.raises(ValueError, match="epochs is 0"): learner(digits).fit_recipe(epochs=0, quiet=True)
    with pytest.raises(TypeError, match="what mhex_learner returns"): fit_recipe(digits)
    with pytest.raises(ValueError, match="number of steps"): CheckpointCallback("x", every=0)
    with pytest.raises(ValueError, match="choose one"): CheckpointCallback("x", resume=True, overwrite=True)


def loaders(x, y, k=3, bs=10, drop_last=False):
    ds = torch.utils.data.TensorDataset(x, y)
    dls = DataLoaders(*[torch.utils.data.DataLoader(ds, batch_size=bs, shuffle=s, drop_last=drop_last and s) for s in (True, False)])
    dls.c = k
    return dls


@pytest.mark.parametrize("y,error,said", [(torch.arange(20)[:, None] % 3, ValueError, "squeeze"), (torch.arange(20) % 3 + 1, ValueError, "labels run from 1 to 3; there are 3 classes, 0 to 2"),
    (torch.arange(20) % 3 - 1, ValueError, "labels run from -1"), ((torch.arange(20) % 3).float(), TypeError, "integers"),
    (torch.full((20, 3), 2.), ValueError, "they are 0 or 1"), (torch.zeros(20, 4).long(), ValueError, "expected class indices")])
@pytest.mark.parametrize("explain", [True, False])
def test_wrong_labels(y, error, said, explain):
    l = mhex_learner(loaders(torch.rand(20, 1, 10, 10), y), recipe=QUICK, backbone_kw=NARROW, explain=explain)
    with pytest.raises(error, match=said): l.fit_recipe(epochs=1, quiet=True)


def test_empty_loader():
    with pytest.raises(ValueError, match="the training loader is empty: 20 images in batches of 30, incomplete ones dropped"):
        mhex_learner(loaders(torch.rand(20, 1, 10, 10), torch.arange(20) % 3, bs=30, drop_last=True), recipe=QUICK)


def test_backbone_with_other_outputs():
    net = mhex.SmallResNet(5, 1, **NARROW)
    l = mhex_learner(loaders(torch.rand(20, 1, 10, 10), torch.arange(20) % 3), backbone=net, explain=False)
    with pytest.raises(ValueError, match=r"returns \(10, 5\), the data have 3 classes"): l.fit_recipe(epochs=1, quiet=True)


def test_channels_last_input_with_odd_widths(digits):
    "torch 2.15 corrupts memory in the backward pass of such batches (layer width no multiple of 8, no AVX-512); they are stored anew"
    x = torch.rand(20, 10, 10, 1).permute(0, 3, 1, 2)
    seen = []
    class Strides(Callback):
        def after_pred(self): seen.append(self.learn.xb[0].stride())
    l = mhex_learner(loaders(x, torch.arange(20) % 3), recipe=QUICK, backbone_kw=NARROW).add_cb(Strides())
    l.fit_recipe(epochs=1, quiet=True)
    assert set(seen) == {(100, 100, 10, 1)}
