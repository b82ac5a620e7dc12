"The tutorials keep their form, and reach the people who install the package: in the wheel, and copied by `mhex tutorials`."
import json, os, re, subprocess, sys, zipfile
from pathlib import Path
import pytest
from mhex import cli
from test_docs import copy_tree

ROOT = Path(__file__).resolve().parent.parent
TOP = ROOT / "nbs/tutorials"
NBS = sorted(TOP.glob("*.ipynb"))
each = pytest.mark.parametrize("nb", NBS, ids=lambda p: p.stem)


def cells(nb): return [(c["cell_type"], "".join(c["source"]), c) for c in json.loads(nb.read_text(encoding="utf-8"))["cells"]]
def prose(nb): return [s for kind, s, _ in cells(nb) if kind == "markdown"]
def shown(nb): return [s for kind, s, _ in cells(nb) if kind == "code" and not s.startswith("#| hide")]


# Form ----------------------------------------------------------------------------------------------------------------------

def test_found(): assert len(NBS) >= 5 and [int(p.stem[:2]) for p in NBS] == sorted({int(p.stem[:2]) for p in NBS})


@each
def test_begins_and_ends(nb):
    "Its number, one line, what one will be able to do, how to open it; at the end what to try next."
    first, able, opens, *_, last = prose(nb)
    assert re.fullmatch(rf"# {int(nb.stem[:2])}\. \S[^\n]+\n\n> \S[^\n]+", first.strip())
    assert able.startswith("**After this page you can**") and len(re.findall(r"^\* ", able, re.M)) >= 3
    assert opens.startswith("*Open in JupyterLab:*") and 'pip install "mhex[' in opens and "mhex tutorials" in opens and "jupyter lab" in opens
    assert last.startswith("## What to try next") and len(re.findall(r"^\* ", last, re.M)) >= 3
    assert cells(nb)[-1][1] == last


@each
def test_more_prose_than_code(nb):
    "Four cells of prose for each cell of code that is shown, none of them long."
    assert len(prose(nb)) >= 4 * len(shown(nb)), (len(prose(nb)), len(shown(nb)))
    long = [s[:60] for s in prose(nb) if len(s.split()) > 150]
    assert not long, long


@each
def test_stands_alone(nb):
    "It exports nothing and reaches for nothing beside itself: it also runs where it is copied to."
    code = "\n".join(s for kind, s, _ in cells(nb) if kind == "code")
    assert not re.search(r"#\|\s*(?:export|default_exp)", code)
    assert not [o for o in ("../", "MHEX_DATA", "download=True", "urlopen", "requests.") if o in code]


@each
def test_has_pictures(nb):
    "A page that only talks is none; the paper's page shows tables."
    outputs = [d for _, _, c in cells(nb) for o in c.get("outputs", []) for d in o.get("data", {})]
    assert any(d in ("image/png", "text/html", "text/markdown") for d in outputs)


@each
def test_links(nb):
    "Every notebook and picture that it links to exists."
    bad = [m for s in prose(nb) for m in re.findall(r"\]\(((?!https?:|#)[^)#\s]+)", re.sub(r"`[^`\n]*`", "", s)) if not (nb.parent / m).exists()]
    assert not bad, bad


# mhex tutorials ------------------------------------------------------------------------------------------------------------

@pytest.fixture
def run(capsys):
    def _run(*words):
        capsys.readouterr()
        try: code = cli.main(["tutorials", *map(str, words)])
        except SystemExit as e: code = e.code
        return code, *capsys.readouterr()
    return _run


def files(d): return {p.relative_to(d).as_posix(): p.read_bytes() for p in d.rglob("*") if p.is_file()}


def test_copies(run, tmp_path):
    code, out, err = run(tmp_path / "my lessons")
    got = files(tmp_path / "my lessons")
    assert code == 0 and not err and {p.name for p in NBS} <= got.keys() and any(n.startswith("images/") for n in got)
    assert all(json.loads(b)["nbformat"] == 4 for n, b in got.items() if n.endswith(".ipynb"))
    last = out.strip().splitlines()[-1]
    assert last.startswith("next: ") and last.endswith(f"jupyter lab '{tmp_path}/my lessons'") and "01_ten_minutes.ipynb: 1. " in out


def test_links_out_of_the_folder_become_addresses(run, tmp_path):
    "`../20_saliency.ipynb` would lead nowhere in a copy; links between tutorials and to pictures stay."
    run(tmp_path / "t")
    text = "".join(b.decode() for n, b in files(tmp_path / "t").items() if n.endswith(".ipynb"))
    if not cli._site(): pytest.skip("mhex is not installed, so the address of its documentation is not known")
    assert not re.findall(r"\]\(\.\./[^)]+", text)
    assert re.search(r"\]\(https://[^)]+/docs/core\.html\)", text) and re.search(r"/docs/studies/medmnist\.html", text)
    assert "](images/idea.svg)" in text and re.search(r"\]\(0\d_\w+\.ipynb\)", text)


def test_changes_are_kept(run, tmp_path):
    "A second copy changes nothing; a notebook that somebody worked in is replaced only when they say so."
    run(tmp_path)
    before = files(tmp_path)
    code, out, _ = run(tmp_path)
    assert code == 0 and files(tmp_path) == before and "0 of " in out
    mine = tmp_path / NBS[0].name
    mine.write_text("my notes")
    (tmp_path / NBS[1].name).unlink()
    code, out, err = run(tmp_path)
    assert code == 2 and not out and NBS[0].name in err and "--overwrite" in err and len(err.splitlines()) == 1
    assert mine.read_text() == "my notes" and not (tmp_path / NBS[1].name).exists()  # all or nothing
    code, out, _ = run(tmp_path, "--overwrite")
    assert code == 0 and files(tmp_path) == before


def test_bad_places(run, tmp_path):
    (tmp_path / "file").write_text("x")
    for words in ([tmp_path / "file"], []):
        code, _, err = run(*words)
        assert code == 2 and len(err.strip().splitlines()) == 1
    code, _, err = run(TOP)
    assert code == 2 and "come from" in err and files(TOP).keys() == {p.relative_to(TOP).as_posix() for p in TOP.rglob("*") if p.is_file()}


# The wheel -----------------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    top = tmp_path_factory.mktemp("build")
    copy_tree(top)
    for o in ("setup.py", "MANIFEST.in"): (top / o).write_bytes((ROOT / o).read_bytes())
    r = subprocess.run([sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-q", "-w", top / "dist", top], capture_output=True, text=True)
    assert not r.returncode, r.stdout + r.stderr
    return next((top / "dist").glob("*.whl"))


def test_wheel_has_them(wheel):
    "Notebooks and pictures, and no other notebook of the project."
    names = [n for n in zipfile.ZipFile(wheel).namelist() if n.endswith((".ipynb", ".svg", ".png"))]
    assert sorted(names) == sorted(f"mhex/tutorials/{p.relative_to(TOP).as_posix()}" for p in [*NBS, *TOP.glob("images/*")])


def test_installed_wheel_copies_them(wheel, tmp_path):
    "Installed into an empty folder, away from the checkout."
    site = tmp_path / "site"
    r = subprocess.run([sys.executable, "-m", "pip", "install", "--no-deps", "--no-index", "-q", "--target", site, wheel], capture_output=True, text=True)
    assert not r.returncode, r.stdout + r.stderr
    env = {**os.environ, "PYTHONPATH": str(site)}
    r = subprocess.run([sys.executable, "-c", "import mhex, sys; from mhex.cli import main; print(mhex.__file__); sys.exit(main(['tutorials', 'out']))"], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert not r.returncode and str(site) in r.stdout, r.stdout + r.stderr
    got = files(tmp_path / "out")
    assert got.keys() == files(TOP).keys() - {n for n in files(TOP) if "checkpoint" in n}
    assert not any(b"](../" in b for b in got.values())


def test_source_distribution_has_them(tmp_path):
    "Everything that the wheel is built from is named in MANIFEST.in."
    said = (ROOT / "MANIFEST.in").read_text()
    assert "recursive-include nbs/tutorials" in said and {p.suffix for p in TOP.rglob("*") if p.is_file()} <= {f".{o}" for o in re.findall(r"\*\.(\w+)", said)}
