"Bad input, the whole table: what is wrong, the error that names it, and nothing half-written."
import errno, os, shutil, warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np, pytest, torch
from PIL import Image

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
import mhex
from mhex import files
from mhex.bench import latency
from mhex.data import ImageData, load_data, read_image
from mhex.demo import run_demo
from mhex.explainers.base import explain_with
from mhex.metrics import pointing_game
from mhex.report import write_report
from mhex.train import MHEXInterpretation, evaluate, mhex_learner, predict_split
from mhex.viz import save_figure
from fastai.data.core import DataLoaders
from torch.utils.data import DataLoader, TensorDataset

NAMES = ["cat", "dog", "owl"]


def net(k=3, c=1, width=8): return mhex.create_backbone("resnet18_28", k, in_channels=c, width=width, blocks=(1, 1))


def loaders(x, y, k=3):
    d = DataLoaders(*[DataLoader(TensorDataset(x, y), batch_size=2)]*2)
    d.c = k
    return d


def fit(x, y, model=None, **kw): return mhex_learner(loaders(x, y), model or net(), device="cpu", **kw).fit_recipe(epochs=1, quiet=True)


def images(n=8, size=8): return np.random.default_rng(0).integers(0, 256, (n, size, size), dtype=np.uint8), np.arange(n) % 2


def medmnist_file(path, **changes):
    x, y = images(6, 28)
    parts = {f"{s}_{w}": v for s in ("train", "val", "test") for w, v in (("images", x), ("labels", y[:, None].astype(np.uint8)))}
    np.savez(path, **{k: v for k, v in {**parts, **changes}.items() if v is not None})


def image_folder(d):
    for c in ("cat", "dog"):
        (d/c).mkdir(parents=True)
        for i in range(6): Image.fromarray(images(6)[0][i]).save(d/c/f"{i}.png")
    return d


@pytest.fixture(scope="module")
def ready(tmp_path_factory):
    "A model, images, its explanation, and a folder with every kind of file that is read"
    d = tmp_path_factory.mktemp("ready")
    torch.manual_seed(0)
    model, x = mhex.attach(net(), 3, class_names=NAMES).eval(), torch.rand(4, 1, 28, 28)
    model.save_pretrained(d/"model")
    torch.save(net().state_dict(), d/"w.pt")
    medmnist_file(d/"breastmnist.npz")
    image_folder(d/"pets")
    learner(x).fit_recipe(d/"run", epochs=1, quiet=True)
    return SimpleNamespace(model=model, x=x, y=torch.tensor([0, 1, 2, 0]), exp=mhex.explain(model, x), folder=d)


def learner(x, width=8):
    torch.manual_seed(0)
    return mhex_learner(loaders(x, torch.tensor([0, 1, 2, 0])), net(width=width), device="cpu")


@pytest.fixture
def e(ready, tmp_path):
    "The same, with the files copied to `e.d`"
    d = shutil.copytree(ready.folder, tmp_path/"d")
    return SimpleNamespace(**{**vars(ready), "d": d})


def listing(d):
    "Every file with its content, every folder"
    return {p.relative_to(d).as_posix(): p.read_bytes() if p.is_file() else None for p in sorted(d.rglob("*"))}


def refused(d, error, says, act):
    "`act` raises, the message says all of it, and `d` holds what it held"
    before = listing(d)
    with pytest.raises(error) as got: act()
    text = str(got.value)
    for s in [says] if isinstance(says, str) else says: assert s in text, text
    assert max(map(len, text.splitlines())) < 700 and listing(d) == before


def table(rows): return pytest.mark.parametrize("error, says, act", [r[1:] for r in rows], ids=[r[0] for r in rows])


# ---- images

def nan_in(x, i, v=float("nan")): return torch.where(torch.arange(len(x))[:, None, None, None] == i, v, x)


IMAGES = [
    ("no batch",       lambda x: x[0],                        ValueError, ["x has shape (1, 28, 28)", "expected (b, c, h, w)", "x[None]"]),
    ("one dimension too many", lambda x: x[None],             ValueError, ["x has shape (1, 4, 1, 28, 28)", "expected (b, c, h, w)"]),
    ("colour for grey", lambda x: x.expand(-1, 3, -1, -1),    ValueError, ["x has 3 channels", "takes 1", "channels=1"]),
    ("empty batch",    lambda x: x[:0],                       ValueError, ["x is an empty batch, shape (0, 1, 28, 28)", "at least one image"]),
    ("no pixels",      lambda x: x[..., :0],                  ValueError, ["x is an empty batch, shape (4, 1, 28, 0)"]),
    ("NaN",            lambda x: nan_in(x, 2),                ValueError, ["x holds NaN or infinite values in sample 2;", "nan_to_num"]),
    ("infinite",       lambda x: x/0,                         ValueError, ["NaN or infinite values in samples 0, 1, 2, 3", "leave these images out"]),
    ("uint8",          lambda x: (x*255).byte(),              TypeError, ["x is torch.uint8", "x.float()/255"]),
    ("int64",          lambda x: (x*255).long(),              TypeError, ["x is torch.int64", "normalise as in training"]),
    ("bool",           lambda x: x > .5,                      TypeError, ["x is torch.bool", "scale images"]),
    ("half",           lambda x: x.half(),                    TypeError, ["x is torch.float16, the model is in torch.float32", "x.float()"]),
    ("numpy",          lambda x: x.numpy(),                   TypeError, ["x is ndarray", "float tensor"]),
]
USES = {"explain": lambda e, x: mhex.explain(e.model, x), "gradcam": lambda e, x: explain_with("gradcam", e.model, x), "layercam of a plain network": lambda e, x: explain_with("layercam", net(), x),
        "CaptumDoor": lambda e, x: mhex.CaptumDoor(e.model).attribute(x, target=0), "CAMDoor": lambda e, x: mhex.CAMDoor(e.model)(x)}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("bad, error, says", [r[1:] for r in IMAGES], ids=[r[0] for r in IMAGES])
def test_images(e, use, bad, error, says): refused(e.d, error, says, lambda: USES[use](e, bad(e.x)))


TRAINED = [r for r in IMAGES if r[0] not in ("numpy", "empty batch", "no pixels", "one dimension too many", "no batch")]


@pytest.mark.parametrize("bad, error, says", [r[1:] for r in TRAINED], ids=[r[0] for r in TRAINED])
def test_images_in_training(e, bad, error, says):
    "Found in the first batch that holds them, before a step is made from it; the sample counts from that batch's beginning"
    said = [s for s in says if "sample" not in s]
    for explain in (True, False):
        if explain or "channels=1" not in says: refused(e.d, error, said, lambda: fit(bad(e.x), e.y, explain=explain))
    refused(e.d, error, said, lambda: evaluate(e.model, loaders(bad(e.x), e.y), "valid"))


def test_first_pass_with_nan_does_not_blame_the_adapter():
    "The check of an adapter compares sums; NaN compares with nothing"
    model = mhex.attach(net(), 3)
    model(nan_in(torch.rand(4, 1, 28, 28), 1))
    model(torch.rand(2, 1, 28, 28))
    assert all(t.checked for t in model.taps)


@table([
    ("rank", ValueError, ["train images have shape (8, 8)", "expected (n, h, w)"], lambda: own(images()[0][0], images()[1])),
    ("two channels", ValueError, ["(8, 8, 8, 2)", "1 or 3 channels"], lambda: own(np.stack([images()[0]]*2, -1))),
    ("not square", ValueError, ["4 by 8 px", "square"], lambda: own(images()[0][:, :4])),
    ("empty", ValueError, "the train split of own is empty", lambda: own(images()[0][:0], images()[1][:0])),
    ("NaN", ValueError, ["nan or infinite pixels in 8 of 8", "index 0"], lambda: own(images()[0]*np.nan)),
    ("infinite", ValueError, "nan or infinite", lambda: own(np.where(images()[0] > 250, np.inf, images()[0]/255))),
    ("int64", TypeError, ["train images are int64", "uint8 in 0..255 or floats in [0,1]"], lambda: own(images()[0].astype(int))),
    ("0 to 255 as floats", ValueError, ["expected floats in [0,1]", "divide by"], lambda: own(images()[0]*1.)),
    ("normalize", ValueError, ["x has shape (2, 3, 8, 8)", "1 channel(s)"], lambda: own().normalize(torch.rand(2, 3, 8, 8))),
    ("empty loader", ValueError, "the test split is empty", lambda: predict_split(net(), [])),
    ("no masks", ValueError, "hold no pixels", lambda: pointing_game(torch.rand(0, 3, 3), torch.zeros(0, 3, 3).bool())),
])
def test_arrays(tmp_path, error, says, act): refused(tmp_path, error, says, act)


def own(x=None, y=None): return ImageData.from_arrays("own", (images()[0] if x is None else x, images()[1] if y is None else y), images(), images())


# ---- targets

TARGETS = [
    ("too high", 3, ValueError, ["target is 3", "3 classes, 0 to 2"]), ("negative", -1, ValueError, ["target is -1", "0 to 2"]),
    ("name", "bat", ValueError, ["target is 'bat'", "'cat', 'dog', 'owl'"]), ("one name of a list", ["cat", "dog", "bat", "cat"], ValueError, ["'bat'", "'owl'"]),
    ("tensor", torch.tensor([0, 1, 2, 3]), ValueError, ["target holds 0 to 3", "3 classes, 0 to 2"]), ("too short", [0], ValueError, ["1 entries", "4 samples"]),
    ("rank", torch.zeros(4, 2, 2).long(), ValueError, ["(4, 2, 2)", "expected (4,) or (4, t)"]), ("floats", torch.rand(4), TypeError, ["float32", "integers"]),
    ("a float", 1.5, TypeError, ["target is float", "class index or name"]), ("a bool", True, TypeError, ["target is bool", "class index"]),
    ("a function without logits", lambda p: 1., TypeError, ["callable", "one number"]),
]


@pytest.mark.parametrize("target, error, says", [r[1:] for r in TARGETS], ids=[r[0] for r in TARGETS])
def test_targets(e, target, error, says):
    for act in (lambda: mhex.explain(e.model, e.x, target), lambda: e.exp.map(target), lambda: e.exp.block_maps(target), lambda: explain_with("gradcam", e.model, e.x, target)):
        refused(e.d, error, says, act)


def test_name_without_names(e):
    refused(e.d, ValueError, ["target is the class name 'cat'", "class_names="], lambda: mhex.explain(mhex.attach(net(), 3), e.x, "cat"))
    refused(e.d, ValueError, ["class_names has 2 names", "3 classes"], lambda: mhex.explain(e.model, e.x, class_names=["a", "b"]))


# ---- labels and numbers of classes

def digits(): return load_data("digits", size=8).subset(train=40, valid=20, test=20)


@table([
    ("learner", ValueError, ["n_classes is 3", "10 classes: 0, 1", "leave n_classes out"], lambda: mhex_learner(digits(), n_classes=3)),
    ("backbone", ValueError, ["returns (20, 3)", "10 classes", "10 outputs"], lambda: mhex_learner(digits(), net(), explain=False, bs=20).fit_recipe(epochs=1, quiet=True)),
    ("evaluate", ValueError, ["labels run from 0 to 9", "3 classes"], lambda: evaluate(net(), digits())),
    ("attach: names", ValueError, ["2 names", "n_classes is 3"], lambda: mhex.attach(net(), 3, class_names=["a", "b"])),
    ("attach: probe", ValueError, ["n_classes is 5", "has 3", "leave n_classes out or pass 3"], lambda: mhex.attach(net(), 5, mode="probe")),
    ("attach: none", ValueError, ["n_classes is None", ">= 1"], lambda: mhex.attach(net())),
    ("arrays", ValueError, ["run from 0 to 1", "1 classes (0 to 0)"], lambda: ImageData.from_arrays("own", *[images()]*3, class_names=["a"])),
    ("loss", ValueError, ["labels 1 to 3", "n_classes=3 (0 to 2)"], lambda: mhex.DeepSupervisionLoss()([torch.rand(3, 3)], torch.tensor([1, 2, 3]))),
    ("training", ValueError, ["labels run from 2 to 3", "3 classes, 0 to 2"], lambda: fit(torch.rand(2, 1, 28, 28), torch.tensor([2, 3]))),
    ("training: negative", ValueError, "labels run from -1 to 0", lambda: fit(torch.rand(2, 1, 28, 28), torch.tensor([0, -1]))),
    ("unknown number", ValueError, ["dls.c", "n_classes="], lambda: mhex_learner(loaders(torch.rand(2, 1, 8, 8), torch.tensor([0, 1]), None), net())),
])
def test_numbers_of_classes(tmp_path, error, says, act): refused(tmp_path, error, says, act)


COLUMN = torch.tensor([[0], [1]])


@table([
    ("loss", ValueError, ["y has shape (2, 1)", "expected (2,)", "y.squeeze(1)"], lambda: mhex.DeepSupervisionLoss()([torch.rand(2, 3)], COLUMN)),
    ("training", ValueError, ["labels have shape (2, 1)", "expected (2,)", "y.squeeze(1)"], lambda: fit(torch.rand(2, 1, 28, 28), COLUMN)),
    ("evaluate", ValueError, ["labels have shape (2, 1)", "gives (2, 3)", "y.squeeze(1)"], lambda: evaluate(net(), loaders(torch.rand(2, 1, 28, 28), COLUMN), "valid")),
    ("interpretation", ValueError, ["labels have shape (2, 1)", "y.squeeze(1)"],
     lambda: MHEXInterpretation.from_learner(mhex_learner(loaders(torch.rand(2, 1, 28, 28), COLUMN), net(), device="cpu"))),
])
def test_labels_in_a_column(tmp_path, error, says, act): refused(tmp_path, error, says, act)


def test_labels_in_a_column_of_arrays():
    "MedMNIST stores them so; there is nothing to mistake, and they are taken as they are meant"
    assert own(y=images()[1][:, None]).train.y.tolist() == images()[1].tolist()


# ---- files that are read

def cut(path, n): path.write_bytes(path.read_bytes()[:n])


def renamed(path, old, new):
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))


FILES = [
    # a truncated or foreign npz
    ("npz: empty",     lambda d: cut(d/"breastmnist.npz", 0), ValueError, ["breastmnist.npz is truncated or not an npz file", "delete it"], "npz"),
    ("npz: half",      lambda d: cut(d/"breastmnist.npz", 9000), ValueError, ["truncated or not an npz file", "get it again"], "npz"),
    ("npz: a picture", lambda d: shutil.copy(d/"pets/cat/0.png", d/"breastmnist.npz"), ValueError, "truncated or not an npz file", "npz"),
    ("npz: foreign",   lambda d: np.savez(d/"breastmnist.npz", weights=np.zeros(3)), ValueError, ["not a MedMNIST file", "lacks train_images", "holds weights"], "npz"),
    ("npz: no labels", lambda d: medmnist_file(d/"breastmnist.npz", val_labels=None), ValueError, "lacks val_labels", "npz"),
    ("npz: float images", lambda d: medmnist_file(d/"breastmnist.npz", test_images=np.zeros((6, 28, 28))), ValueError, ["test_images is float64", "expected uint8"], "npz"),
    ("npz: labels out of range", lambda d: medmnist_file(d/"breastmnist.npz", test_labels=np.full((6, 1), 2)), ValueError, ["run from 2 to 2", "2 classes"], "npz"),
    ("npz: missing",   lambda d: (d/"breastmnist.npz").unlink(), FileNotFoundError, ["breastmnist.npz is missing", "Looked in", "Get it with: python -c"], "npz"),
    # a corrupt image in a folder
    ("image: cut",     lambda d: cut(d/"pets/cat/3.png", 60), ValueError, ["1 of 12 images cannot be read", "3.png", "skip_corrupt=True"], "pets"),
    ("image: empty",   lambda d: cut(d/"pets/cat/3.png", 0), ValueError, ["3.png", "mend or delete"], "pets"),
    ("image: text",    lambda d: (d/"pets/dog/x.jpg").write_text("no picture"), ValueError, ["1 of 13", "x.jpg"], "pets"),
    ("image: no picture", lambda d: [(d/f"pets/dog/{i}.png").rename(d/f"pets/dog/{i}.dcm") for i in range(6)], ValueError, ["holds no image", "6 other files"], "pets"),
    ("one image",      lambda d: cut(d/"pets/cat/3.png", 60), ValueError, ["3.png cannot be read as an image"], "one"),
    # a saved model, truncated or from another architecture
    ("model: empty",   lambda d: cut(d/"model/model.safetensors", 0), ValueError, ["model.safetensors cannot be read as weights", "truncated", "save it again"], "model"),
    ("model: half",    lambda d: cut(d/"model/model.safetensors", 5000), ValueError, ["model.safetensors cannot be read as weights", "truncated"], "model"),
    ("model: foreign", lambda d: shutil.copy(d/"w.pt", d/"model/model.safetensors"), ValueError, "of another format", "model"),
    ("model: no weights", lambda d: (d/"model/model.safetensors").unlink(), FileNotFoundError, "no weight file at", "model"),
    ("model: wider",   lambda d: renamed(d/"model/config.json", '"width": 8', '"width": 16'), ValueError, ["not from this architecture", "backbone.bn1.bias is (8,), here (16,)"], "model"),
    ("model: more classes", lambda d: renamed(d/"model/config.json", '"n_classes": 3', '"n_classes": 4'), ValueError, ["3 names", "n_classes is 4"], "model"),
    ("config: none",   lambda d: (d/"model/config.json").unlink(), FileNotFoundError, ["holds no config.json", "save_pretrained", "mhex train"], "model"),
    ("config: cut",    lambda d: cut(d/"model/config.json", 60), ValueError, ["config.json", "not valid JSON", "cut short or edited"], "model"),
    ("config: binary", lambda d: (d/"model/config.json").write_bytes(bytes(range(128, 256))), ValueError, "not valid JSON", "model"),
    ("config: foreign", lambda d: (d/"model/config.json").write_text('{"model_type": "bert"}'), ValueError, ["schema_version None", "reads 1"], "model"),
    ("config: later",  lambda d: renamed(d/"model/config.json", '"schema_version": 1', '"schema_version": 2'), ValueError, ["schema_version 2", "reads 1"], "model"),
    ("config: bare",   lambda d: (d/"model/config.json").write_text('{"schema_version": 1}'), ValueError, ["lacks backbone, attach, preprocess", "save_pretrained"], "model"),
    ("config: backbone", lambda d: renamed(d/"model/config.json", "resnet18_28", "resnet99"), ValueError, ["backbone is 'resnet99'", "expected one of"], "model"),
    # a weight file
    ("weights: empty", lambda d: cut(d/"w.pt", 0), ValueError, ["w.pt cannot be read as weights", "truncated"], "weights"),
    ("weights: half",  lambda d: cut(d/"w.pt", 5000), ValueError, ["w.pt cannot be read as weights", "truncated"], "weights"),
    ("weights: a picture", lambda d: shutil.copy(d/"pets/cat/0.png", d/"w.pt"), ValueError, ["cannot be read as weights (UnpicklingError)", "another format"], "weights"),
    ("weights: would run code", lambda d: torch.save(net(), d/"w.pt"), ValueError, "cannot be read as weights (UnpicklingError)", "weights"),
    ("weights: no state dict", lambda d: torch.save([1, 2], d/"w.pt"), ValueError, ["holds list", "state dict"], "weights"),
    ("weights: another architecture", lambda d: torch.save(net(width=16).state_dict(), d/"w.pt"), ValueError, ["w.pt is not from this architecture (SmallResNet)", "here (8, 1, 3, 3)"], "weights"),
    ("weights: missing", lambda d: (d/"w.pt").unlink(), FileNotFoundError, "no weight file", "weights"),
    # a checkpoint of a run
    ("checkpoint: empty", lambda d: cut(d/"run/checkpoint.pt", 0), ValueError, ["checkpoint.pt' cannot be read", "truncated", "delete the folder"], "resume"),
    ("checkpoint: half", lambda d: cut(d/"run/checkpoint.pt", 5000), ValueError, ["checkpoint.pt' cannot be read", "truncated"], "resume"),
    ("checkpoint: foreign", lambda d: shutil.copy(d/"w.pt", d/"run/checkpoint.pt"), ValueError, ["not a checkpoint", "schema None, expected 1"], "resume"),
    ("checkpoint: another architecture", lambda d: learner(torch.rand(4, 1, 28, 28), width=16).fit_recipe(d/"run", epochs=1, overwrite=True, quiet=True), ValueError,
     "not from this architecture", "resume"),
    ("a run is there", lambda d: None, ValueError, ["holds a run already", "resume=True", "another folder"], "start"),
]
READ = {"npz": lambda e: load_data("breastmnist", root=e.d), "pets": lambda e: load_data(e.d/"pets", size=8), "one": lambda e: read_image(e.d/"pets/cat/3.png", 8),
        "model": lambda e: mhex.from_pretrained(e.d/"model"), "weights": lambda e: mhex.load_weights(e.into, e.d/"w.pt"),
        "resume": lambda e: e.learner.fit_recipe(e.d/"run", epochs=1, resume=True, quiet=True), "start": lambda e: e.learner.fit_recipe(e.d/"run", epochs=1, quiet=True)}


@pytest.mark.parametrize("spoil, error, says, read", [r[1:] for r in FILES], ids=[r[0] for r in FILES])
def test_files(e, capsys, spoil, error, says, read):
    e.into, e.learner = net(), learner(e.x)
    kept = [{k: v.clone() for k, v in m.state_dict().items()} for m in (e.into, e.learner.model)]
    spoil(e.d)
    refused(e.d, error, says, lambda: READ[read](e))
    for m, k in zip((e.into, e.learner.model), kept): assert all(torch.equal(v, k[n]) for n, v in m.state_dict().items()), "weights changed all the same"


def test_own_backbone_comes_back(e):
    "A backbone that does not fit the saved model goes back without hooks, and the right one is taken"
    other = net(width=16)
    refused(e.d, ValueError, "not from this architecture", lambda: mhex.from_pretrained(e.d/"model", backbone=other))
    assert mhex.hooks.hook_count(other) == 0 and all(p.requires_grad for p in other.parameters())
    assert torch.equal(mhex.from_pretrained(e.d/"model", backbone=net())(e.x), e.model(e.x))


# ---- models

@table([
    ("attached", RuntimeError, ["MHEX attached already", "mhex.detach(model)"], lambda: mhex.attach(mhex.attach(net(), 3), 3)),
    ("its backbone", RuntimeError, ["MHEX attached already", "mhex.detach(model)"], lambda: mhex.attach(mhex.attach(net(), 3).backbone, 3)),
    ("learner", RuntimeError, ["MHEX attached already", "mhex.detach(model)"], lambda: mhex_learner(digits(), mhex.attach(net(10), 10))),
    ("plain twin", RuntimeError, ["MHEX attached already", "mhex.detach(model)"], lambda: mhex_learner(digits(), mhex.attach(net(10), 10), explain=False)),
    ("detached", RuntimeError, ["was detached", "mhex.attach"], lambda: used_after_detach()),
    ("half", ValueError, ["backbone is in torch.float16", "float32 or float64", "backbone.float()"], lambda: mhex.attach(net().half(), 3)),
    ("bfloat16", ValueError, ["backbone is in torch.bfloat16", "backbone.float()"], lambda: mhex.attach(net().bfloat16(), 3)),
    ("half, learner", ValueError, ["backbone is in torch.float16", "backbone.float()"], lambda: mhex_learner(digits(), net(10).half())),
    ("made half later", TypeError, ["the model is in torch.float16", "model.float()"], lambda: mhex.explain(mhex.attach(net(), 3).half(), torch.rand(1, 1, 28, 28).half())),
    ("half, images not", TypeError, ["the model is in torch.float16", "model.float()"], lambda: mhex.explain(mhex.attach(net(), 3).half(), torch.rand(1, 1, 28, 28))),
    ("not attached", TypeError, ["model is SmallResNet", "mhex.attach"], lambda: mhex.explain(net(), torch.rand(1, 1, 28, 28))),
    ("no module", TypeError, ["backbone is str", "torch.nn.Module"], lambda: mhex.attach("resnet18", 3)),
    ("no residual blocks", TypeError, ["no adapter knows Sequential", "Looked for", "register_adapter"], lambda: mhex.attach(torch.nn.Sequential(torch.nn.Conv2d(1, 3, 3)), 3)),
])
def test_models(tmp_path, error, says, act): refused(tmp_path, error, says, act)


def used_after_detach():
    model = mhex.attach(net(), 3)
    mhex.detach(model)
    model(torch.rand(1, 1, 28, 28))


# ---- folders that cannot be written to

WRITE = {"save_pretrained": lambda e, o: e.model.save_pretrained(o), "explanation": lambda e, o: e.exp.save(o), "training": lambda e, o: learner(e.x).fit_recipe(o, epochs=1, quiet=True),
         "demo": lambda e, o: run_demo(digits(), o, quiet=True), "bench": lambda e, o: latency("resnet18_28", out=o/"rows.jsonl"),
         "report": lambda e, o: write_report(o/"r.html", "title", []), "figure": lambda e, o: save_figure(e.exp.plot(), o/"x.png")}


@pytest.mark.parametrize("write", WRITE)
def test_a_file_is_in_the_way(e, write):
    (e.d/"file").write_text("kept")
    for o in (e.d/"file", e.d/"file"/"below"): refused(e.d, (PermissionError, FileNotFoundError), [o.name, "choose another one"], lambda: WRITE[write](e, o))


@pytest.mark.parametrize("write", [w for w in WRITE if w not in ("report", "figure")])
def test_read_only_folder(e, write, monkeypatch):
    "What the system answers for a folder without the right to write; root would be let through, so the answer is put in"
    def no(*a, **kw): raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    monkeypatch.setattr(files.tempfile, "TemporaryFile", no)
    refused(e.d, PermissionError, ["cannot write to the folder", str(e.d/"model"), "Permission denied", "choose another one"], lambda: WRITE[write](e, e.d/"model"))


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere: run the tests as another user")
def test_really_read_only_folder(e):
    (e.d/"model").chmod(0o500)
    try:
        for write in WRITE.values(): refused(e.d, PermissionError, "model", lambda: write(e, e.d/"model"))
    finally: (e.d/"model").chmod(0o700)


OVER = {"save_pretrained": lambda e: e.model.save_pretrained(e.d/"model"), "explanation": lambda e: e.exp.save(e.d/"saved"),
        "training": lambda e: learner(e.x).fit_recipe(e.d/"run", epochs=1, overwrite=True, quiet=True),
        "report": lambda e: write_report(e.d/"saved/r.html", "title", []), "figure": lambda e: save_figure(e.exp.plot(), e.d/"saved/x.png")}


@pytest.mark.parametrize("there", [False, True], ids=["new", "over an old one"])
@pytest.mark.parametrize("write", OVER)
def test_full_disk(e, write, there, monkeypatch):
    "The last moment at which something can go wrong: what stood there stands there, and nothing else"
    act = OVER[write]
    for d in ("saved", "model", "run"):
        if not there: shutil.rmtree(e.d/d, ignore_errors=True)
        (e.d/d).mkdir(exist_ok=True)
    if there: act(e)
    def full(*a): raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(files.os, "replace", full)
    refused(e.d, OSError, "No space left", lambda: act(e))


def test_preprocess_that_json_does_not_know(e):
    model = mhex.attach(net(), 3)
    model.preprocess = dict(mean=torch.zeros(1))
    refused(e.d, TypeError, "JSON", lambda: model.save_pretrained(e.d/"model"))
