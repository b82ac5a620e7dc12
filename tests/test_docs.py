"The site, built by smalldocs from _quarto.yml in a copy of the tree: links, pictures, mathematics, reference pages; then in a browser."
import ast, importlib.util, re, shutil, subprocess, sys, threading
from functools import partial
from html.parser import HTMLParser
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag
import pytest

ROOT = Path(__file__).resolve().parent.parent
SHOTS = ROOT / "artifacts/docs"
PARTS = "nbs mhex tools assets _quarto.yml pyproject.toml settings.ini README.md CONTRIBUTING.md CHANGELOG.md LICENSE".split()
OUTSIDE = re.compile(r"^(?:https?:)?//")
pytestmark = pytest.mark.xdist_group("docs")  # one worker builds the site once


def copy_tree(to):
    for p in (ROOT / o for o in PARTS):
        if p.is_dir(): shutil.copytree(p, to / p.name, ignore=shutil.ignore_patterns("__pycache__", ".ipynb_checkpoints", "*.tmp"))
        elif p.exists(): shutil.copy(p, to)


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    "A copy of the tree with the site built in _docs."
    top = tmp_path_factory.mktemp("site")
    copy_tree(top)
    r = subprocess.run([sys.executable, "-m", "smalldocs.cli", "render", "--strict", "."], cwd=top, capture_output=True, text=True)
    if r.returncode: pytest.fail(f"smalldocs render --strict\n{r.stdout}{r.stderr}", pytrace=False)
    return top


@pytest.fixture(scope="module")
def site(project): return project / "_docs"


class Page(HTMLParser):
    "What a page links to, what it loads, and the ids it has."
    def __init__(self, html):
        super().__init__()
        self.links, self.loads, self.ids = [], [], set()
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        a = dict(attrs)
        if "id" in a: self.ids.add(a["id"])
        if tag == "a" and a.get("href"): self.links.append(a["href"])
        if tag == "link" and a.get("rel") in ("stylesheet", "icon"): self.loads.append(a["href"])
        if a.get("src"): self.loads.append(a["src"])


@pytest.fixture(scope="module")
def pages(site): return {p: Page(p.read_text(encoding="utf-8")) for p in site.rglob("*.html")}


def test_links(site, pages):
    "Each link inside the site has a file, and each #anchor an id on it."
    bad = []
    for p, page in pages.items():
        for link in page.links + page.loads:
            if OUTSIDE.match(link) or link.startswith(("data:", "mailto:", "javascript:")): continue
            path, frag = urldefrag(link)
            to = (p.parent / unquote(path.split("?")[0])).resolve() if path else p
            if to.is_dir(): to /= "index.html"
            if not to.exists(): bad.append(f"{p.relative_to(site)}: no file for {link}")
            elif frag and to in pages and unquote(frag) not in pages[to].ids: bad.append(f"{p.relative_to(site)}: no id for {link}")
    assert not bad, "\n".join(bad)


def test_nothing_from_outside(site, pages):
    bad = [f"{p.relative_to(site)}: {o}" for p, page in pages.items() for o in page.loads if OUTSIDE.match(o)]
    bad += [f"{p.relative_to(site)}: {m[0]}" for p in site.rglob("*.css") for m in re.finditer(r"(?:@import|url\()\s*[\"']?(?:https?:)?//[^)\s]*", p.read_text("utf-8"))]
    assert not bad, "\n".join(bad)


def test_mathematics_is_local(site, pages):
    maths = [p for p in pages if 'class="math' in p.read_text(encoding="utf-8")]
    assert maths, "no page has mathematics"
    for p in maths: assert any(o.endswith("assets/katex/katex.min.js") for o in pages[p].loads), p
    assert len(list((site / "assets/katex/fonts").glob("*.woff2"))) == 20 and (site / "assets/katex/LICENSE").exists()


def test_every_notebook_has_a_page(project, site, pages):
    "The sidebar's globs find each of them: no list is kept by hand."
    want = {p.relative_to(project).with_suffix(".html").as_posix() for d in ("docs", "api") for p in (project / d).rglob("*") if p.suffix in (".ipynb", ".qmd")}
    assert len([o for o in want if o.startswith("docs/")]) == len(list((project / "nbs").rglob("*.ipynb"))) - 1  # the landing page
    assert want <= set(pages[site / "index.html"].links), "not in the sidebar: a folder in nbs/ without a section in _quarto.yml"


def test_reference_pages(project, site, pages):
    "A page for each module, an entry for each public name, and the way to its notebook."
    mods = [p for p in (project / "mhex").rglob("*.py") if not p.name.startswith("_")]
    for p in mods:
        page = pages[site / f"api/{p.stem}.html"]
        body = ast.parse(p.read_text(encoding="utf-8")).body
        public = next(ast.literal_eval(n.value) for n in body if isinstance(n, ast.Assign) and n.targets[0].id == "__all__")
        shown = {n.name for n in body if isinstance(n, (ast.FunctionDef, ast.ClassDef))} & {*public}  # not constants, nor methods patched in
        assert shown <= page.ids, (p.stem, shown - page.ids)
        assert any("/docs/" in o for o in page.links), p.stem


def test_portable_markdown(project):
    "Written pages keep to what smalldocs and Quarto both read."
    from smalldocs.check import scan
    assert not [(f, o) for f in ("CONTRIBUTING.md", "CHANGELOG.md") for o in scan((project / f).read_text("utf-8"))]


# In a browser ---------------------------------------------------------------------------------------------------------------

CHROME = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
needs_browser = pytest.mark.skipif(not (CHROME and importlib.util.find_spec("playwright")),
                                   reason="needs chromium (apt-get install chromium) and the playwright package")


class Quiet(SimpleHTTPRequestHandler):
    def log_message(self, *_): pass


@pytest.fixture(scope="module")
def url(site):
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=site)) as s:
        threading.Thread(target=s.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{s.server_port}/"
        s.shutdown()


@pytest.fixture(scope="module")
def chrome():
    from playwright.sync_api import sync_playwright
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=CHROME, args=FLAGS)
        yield b
        b.close()


@pytest.fixture
def visit(chrome, url):
    "visit(path, width) opens a page and notes all that went wrong on it; nothing may have at the end."
    bad, opened = [], []
    def go(path, width=1280, **kw):
        pg = chrome.new_page(viewport={"width": width, "height": 844 if width < 600 else 900}, **kw)
        opened.append(pg)
        pg.on("console", lambda m: bad.append(f"console: {m.text}") if m.type == "error" else None)
        pg.on("pageerror", lambda e: bad.append(f"script: {e}"))
        pg.on("requestfailed", lambda r: bad.append(f"failed: {r.url}"))
        pg.on("response", lambda r: bad.append(f"{r.status}: {r.url}") if r.status >= 400 else None)
        pg.on("request", lambda r: bad.append(f"outside: {r.url}") if not r.url.startswith((url, "data:", "blob:")) else None)
        pg.goto(url + path, wait_until="networkidle", timeout=60_000)
        return pg
    yield go
    for pg in opened: pg.close()
    assert not bad, "\n".join(bad)


def shot(pg, name):
    SHOTS.mkdir(parents=True, exist_ok=True)
    pg.screenshot(path=SHOTS / f"{name}.png")


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
@pytest.mark.parametrize("path,maths", [("index.html", False), ("docs/core.html", True), ("docs/explainers/cam.html", False), ("api/core.html", False),
                                        ("docs/tutorials/ten_minutes.html", False), ("docs/tutorials/training.html", False), ("docs/tutorials/inspect.html", False), ("docs/howto/kinds.html", False)])
def test_page(visit, path, maths, width):
    pg = visit(path, width)
    name = f"{path.removesuffix('.html').replace('/', '-')}-{width}"
    shot(pg, name)
    assert pg.locator("h1").first.is_visible()
    assert pg.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), "wider than the screen"
    assert pg.evaluate("[...document.images].filter(i => i.getAttribute('src')).every(i => i.complete && i.naturalWidth > 0)"), "a picture did not load"
    if maths:
        assert pg.locator(".katex").count() > 5 and not pg.locator(".katex-error").count()
        assert pg.evaluate("document.fonts.check('16px KaTeX_Main')")
    pg.evaluate("window.scrollTo(0, 1400)"); pg.wait_for_timeout(200)
    shot(pg, name + "-below")


@needs_browser
def test_navigation(visit, url):
    "The sidebar leads on, the search finds a name, the dark theme switches."
    pg = visit("index.html")
    pg.locator("#quarto-sidebar a", has_text=re.compile("^core$")).click()
    pg.wait_for_url("**/docs/core.html")
    pg.locator("#quarto-search input").fill("equiv_matrix")
    pg.locator(".smalldocs-search-results a").first.wait_for(timeout=10_000)
    shot(pg, "search")
    pg.keyboard.press("Escape")
    pg.locator(".quarto-color-scheme-toggle").first.click()
    pg.wait_for_function("document.documentElement.classList.contains('quarto-dark')")
    pg.wait_for_timeout(800)  # colours fade over
    shot(pg, "core-dark")


@needs_browser
@pytest.mark.parametrize("width", [1280, 390])
def test_static_panel(visit, width):
    "A panel on a page works without Python: its slider goes back to the untrained network, and the evidence changes."
    pg = visit("docs/tutorials/training.html", width)
    panel = pg.locator(".mhex-panel").first
    panel.scroll_into_view_if_needed()
    before = panel.inner_text()
    panel.locator("input[type=range]").first.focus()
    pg.keyboard.press("Home")
    pg.wait_for_function("([p, old]) => p.innerText !== old", arg=[panel.element_handle(), before], timeout=10_000)
    shot(pg, f"panel-untrained-{width}")
    pg.keyboard.press("End")
    pg.wait_for_function("([p, old]) => p.innerText === old", arg=[panel.element_handle(), before], timeout=10_000)


@needs_browser
def test_phone_menu(visit):
    pg = visit("docs/core.html", 390)
    pg.locator(".quarto-btn-toggle").click()
    pg.locator("#quarto-sidebar").get_by_text("losses", exact=True).wait_for(timeout=5_000)
    pg.wait_for_timeout(500); shot(pg, "phone-menu")
