"""Panels in a real browser: Voila serves a notebook on loopback, Playwright drives the distribution's Chromium, nothing leaves the machine.

    from browser import MARKS, chromium, opened, served, shot, changes, press
    pytestmark = MARKS

    @pytest.fixture(scope="module")
    def page(tmp_path_factory):
        with served(tmp_path_factory.mktemp("voila"), dict(panel=CODE)) as url, chromium() as b, opened(b, url + "panel") as p: yield p

    def test_slider(page):
        with changes(page, "img.mx-part--picture", "src"): press(page, "Block", "ArrowRight")
"""
import importlib.util, json, os, shutil, socket, subprocess, sys, time
from contextlib import contextmanager
from pathlib import Path
import pytest

ROOT = Path(__file__).resolve().parent.parent
CHROME = next((p for o in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(o))), None)
MISSING = [o for o, there in (("chromium", CHROME), *((m, importlib.util.find_spec(m)) for m in ("voila", "playwright", "ipywidgets", "anywidget"))) if not there]
MARKS = [pytest.mark.xdist_group("browser"), pytest.mark.skipif(bool(MISSING), reason=f"needs {', '.join(MISSING)}: pip install \"mhex[dev]\", and Chromium from the distribution's packages")]
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync --disable-dev-shm-usage".split()
SHOTS = ROOT / "artifacts" / "panels"


def _port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def write_notebook(path, code):
    "A notebook of one cell a string; `code` is a string or a list of them."
    cells = [dict(cell_type="code", id=f"c{i}", metadata={}, source=c, outputs=[], execution_count=None) for i, c in enumerate([code] if isinstance(code, str) else code)]
    kernel = dict(display_name="python3", language="python", name="python3")
    Path(path).write_text(json.dumps(dict(cells=cells, metadata=dict(kernelspec=kernel), nbformat=4, nbformat_minor=5)), encoding="utf-8")


@contextmanager
def served(folder, notebooks):
    "Notebooks (name -> code) behind Voila; yields the address that a name is appended to."
    folder, port = Path(folder), _port()
    for name, code in notebooks.items(): write_notebook(folder / f"{name}.ipynb", code)
    env = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]),
           "IPYTHONDIR": str(folder / "ipython"), "JUPYTER_PLATFORM_DIRS": "1"}
    cmd = [Path(sys.executable).with_name("voila"), str(folder), "--no-browser", f"--port={port}", "--Voila.ip=127.0.0.1", "--show_tracebacks=True"]
    with open(folder / "voila.log", "wb") as log:
        proc = subprocess.Popen([str(o) for o in cmd], cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT)
        try:
            end = time.monotonic() + 90
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), 1).close()
                    break
                except OSError:
                    if proc.poll() is not None or time.monotonic() > end: raise RuntimeError("voila did not start:\n" + (folder / "voila.log").read_text("utf-8", "replace")[-3000:]) from None
                    time.sleep(.25)
            yield f"http://127.0.0.1:{port}/voila/render/"
        finally:
            proc.terminate()
            try: proc.wait(20)
            except subprocess.TimeoutExpired: proc.kill()


@contextmanager
def chromium():
    "A headless browser."
    from playwright.sync_api import sync_playwright
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=CHROME, args=FLAGS)
        try: yield b
        finally: b.close()


LOCAL = ("blob:", "data:", "file:", "about:")


@contextmanager
def opened(browser, url, width=1280, height=1000, ready='.mhex-panel[data-hands="ready"]', tries=3, **kw):
    "A page with the panel in it, offline: `page.outside` lists what was asked of elsewhere, `page.errors` what the console said of errors."
    page = browser.new_page(viewport={"width": width, "height": height}, **kw)
    page.outside, page.errors = [], []
    def gate(route):
        u = route.request.url
        if u.startswith(LOCAL) or u.split("/")[2].split(":")[0] == "127.0.0.1": return route.continue_()
        page.outside.append(u)
        route.abort()
    page.route("**/*", gate)
    page.on("pageerror", lambda e: page.errors.append(str(e)))
    page.on("console", lambda m: page.errors.append(m.text) if m.type == "error" else None)
    url = url + ".ipynb" if "/voila/render/" in url and not url.endswith(".ipynb") else url
    try:
        for k in range(tries):  # a kernel now and then does not answer: load again
            page.goto(url, timeout=90_000)
            try:
                page.locator(ready).first.wait_for(state="attached", timeout=60_000)
                break
            except Exception:
                if k == tries - 1: raise AssertionError(f"the panel did not appear: {page.locator('body').inner_text()[-2000:]}\n{page.errors}") from None
        yield page
    finally: page.close()


def shot(page, name, full=True):
    "A picture of the page in artifacts/panels, to be looked at."
    SHOTS.mkdir(parents=True, exist_ok=True)
    path = SHOTS / f"{name}.png"
    page.screenshot(path=path, full_page=full)
    return path


_READ = "([s,a])=>{const e=document.querySelector(s);return e?(a==='text'?e.innerText:a==='html'?e.innerHTML:a==='value'?e.value:e.getAttribute(a)):null}"


def read(page, selector, attr="text"):
    "Text, html, value or an attribute of the first element that fits."
    return page.evaluate(_READ, [selector, attr])


@contextmanager
def changes(page, selector, attr="text", timeout=20_000):
    "What is done inside the block must change what `read` gives; pictures have a new `src` after each change."
    old = read(page, selector, attr)
    yield old
    page.wait_for_function(f"([s,a,old])=>({_READ})([s,a])!==old", arg=[selector, attr, old], timeout=timeout)


def press(page, label, *keys):
    "Keys on the slider with this label, as a screen reader would find it."
    handle = page.get_by_role("slider", name=label, exact=True).first
    handle.focus()
    for k in keys: page.keyboard.press(k)


def click_at(page, selector, x, y):
    "A click on a picture, at fractions of its width and height."
    el = page.locator(selector).first
    el.scroll_into_view_if_needed()
    box = el.bounding_box()
    page.mouse.click(box["x"] + x * box["width"], box["y"] + y * box["height"])


def overflow(page):
    "Pixels by which the page is wider than its window."
    return page.evaluate("document.documentElement.scrollWidth-document.documentElement.clientWidth")
