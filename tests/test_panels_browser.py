"The image inspector and the error panel in Chromium, live behind Voila and as static files: what a person does, and what changes on the page."
import pytest
from browser import MARKS, changes, chromium, click_at, opened, overflow, press, read, served, shot

pytestmark = MARKS
CODE = """
import torch
from mhex.adapt import attach
from mhex.cnn import SmallResNet
torch.manual_seed(0)
names = ["cat", "<img src=x onerror=window.hurt=1>", "owl"]
model = attach(SmallResNet(3, in_channels=1, width=8, blocks=(1, 1)), 3, predict="mean", class_names=names)
torch.manual_seed(1)
x, y = torch.nn.functional.interpolate(torch.randn(12, 1, 5, 5), size=(28, 28), mode="bicubic"), torch.arange(12) % 3
"""
INSPECTOR = CODE + "from mhex.image_panel import ImageInspector\npanel = ImageInspector(model, (x, y), kind=\"exact\", sign=\"both\")\n"
ERRORS = CODE + "from mhex.error_panel import ErrorPanel\npanel = ErrorPanel(model, (x, y))\n"
FIRST, PIXEL = "img.mx-part--first", ".mx-part--blocks"


@pytest.fixture(scope="module")
def browser():
    with chromium() as b: yield b


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    with served(tmp_path_factory.mktemp("voila"), dict(inspector=[INSPECTOR, "panel"], errors=[ERRORS, "panel"], few=[INSPECTOR + "panel = panel.update(true=0)", "panel"])) as u: yield u


@pytest.fixture(scope="module")
def page(browser, url):
    with opened(browser, url + "inspector", height=1700) as p: yield p


def test_shown(page):
    shot(page, "inspector_1280")
    assert page.get_by_text("Image inspector").first.is_visible() and overflow(page) <= 0
    assert page.evaluate("window.hurt") is None and not [o for o in page.outside if "fontawesome" not in o]  # Voila's own page asks for that style sheet
    assert page.locator(FIRST).get_attribute("alt").startswith("exact map of")


def test_names_for_screen_readers(page):
    for label in ("Sample", "Block", "Sharpness", "Depth decay", "Row", "Column", "Opacity", "Threshold"): assert page.get_by_role("slider", name=label, exact=True).count() == 1, label
    for label in ("True class", "Predicted", "Outcome", "Class", "Beside", "Map", "Evidence", "Method", "Take away"): assert page.get_by_role("combobox", name=label, exact=True).count() == 1, label


def test_class(page):
    with changes(page, FIRST, "src"): page.get_by_label("Class", exact=True).select_option("owl")
    page.wait_for_function("document.querySelector('.mx-part--first_said').innerText.includes('owl')")
    with changes(page, ".mx-part--second_said"): page.get_by_label("Beside", exact=True).select_option("cat")
    page.locator("img.mx-part--difference").wait_for(state="visible")
    page.wait_for_function("document.querySelector('.mx-part--difference_said').innerText.includes('owl − cat')")


def test_block_by_keys(page):
    with changes(page, FIRST, "src"): press(page, "Block", "ArrowLeft")
    page.wait_for_function("document.querySelector('.mx-part--first_said').innerText.includes('layer')")
    with changes(page, FIRST, "src"): press(page, "Block", "ArrowRight")


def test_click_on_a_pixel(page):
    with changes(page, PIXEL): click_at(page, FIRST, (20 + .5) / 28, (7 + .5) / 28)
    page.wait_for_function("document.querySelector('.mx-part--blocks').innerText.includes('Row 7, column 20')")
    assert "completeness delta" in read(page, PIXEL)
    page.locator(FIRST).focus()
    with changes(page, PIXEL): page.keyboard.press("ArrowDown")
    page.wait_for_function("document.querySelector('.mx-part--blocks').innerText.includes('Row 8, column 20')")
    with changes(page, PIXEL): press(page, "Row", "ArrowLeft")
    page.wait_for_function("document.querySelector('.mx-part--blocks').innerText.includes('Row 7, column 20')")


def test_sample_and_filter(page):
    with changes(page, "img.mx-part--picture", "src"): press(page, "Sample", "ArrowRight")
    page.wait_for_function("document.querySelector('.mx-part--picture_said').innerText.includes('Sample 1')")
    for outcome in ("right", "wrong"):
        page.get_by_label("Outcome", exact=True).select_option(outcome)
        page.wait_for_function("o => document.querySelector('.mx-part--picture_said').innerText.includes(o)", arg=outcome)


def test_home_and_end_after_the_range_has_grown(browser, url):
    "A slider that was made for four samples goes to the last of twelve"
    with opened(browser, url + "few", height=1700) as p:
        end = p.get_by_role("slider", name="Sample", exact=True)
        assert end.get_attribute("aria-valuemax") == "3.0"
        with changes(p, ".mx-part--picture_said"): press(p, "Sample", "End")
        p.get_by_label("True class", exact=True).select_option("any")
        p.wait_for_function("document.querySelector('.noUi-handle[aria-label=Sample]').getAttribute('aria-valuemax')==='11.0'")
        press(p, "Sample", "End")
        p.wait_for_function("document.querySelector('.mx-part--picture_said').innerText.includes('Sample 11')")
        press(p, "Sample", "Home")
        p.wait_for_function("document.querySelector('.mx-part--picture_said').innerText.includes('Sample 0')")
        p.get_by_role("slider", name="Confidence", exact=True).first.focus()
        with changes(p, '.noUi-handle[aria-label=Confidence]', "aria-valuenow"): p.keyboard.press("End")
        with changes(p, '.noUi-handle[aria-label=Confidence]', "aria-valuenow"): p.keyboard.press("Home")


def test_erase_and_peer(page):
    assert not page.locator("img.mx-part--left").is_visible()
    with changes(page, "img.mx-part--left", "src"): page.get_by_label("Take away", exact=True).select_option("erase what is marked")
    page.locator("img.mx-part--left").wait_for(state="visible")
    with changes(page, "img.mx-part--left", "src"): press(page, "Share", *["ArrowRight"] * 30)
    with changes(page, ".mx-part--peer_said", timeout=60_000): page.get_by_label("Method", exact=True).select_option("gradcam")
    page.wait_for_function("document.querySelector('.mx-part--peer_said').innerText.includes(' ms')")
    shot(page, "inspector_1280_compared")


def test_refusal_is_said(page):
    page.get_by_label("Folder", exact=True).fill("")
    page.keyboard.press("Enter")
    page.get_by_role("button", name="Save").click()
    page.get_by_role("alert").filter(has_text="folder is empty").wait_for()


def test_narrow(page):
    page.set_viewport_size({"width": 800, "height": 2200})
    page.wait_for_timeout(300)
    shot(page, "inspector_800")
    assert overflow(page) <= 0
    page.set_viewport_size({"width": 1280, "height": 1700})


def test_nothing_wrong_in_the_console(page):
    assert not [e for e in page.errors if "mhex" in e.lower() or "anywidget" in e.lower()] and page.evaluate("window.hurt") is None


def test_errors_open_the_inspector(browser, url):
    with opened(browser, url + "errors", height=2300, ready='.mx-part--matrix') as p:
        p.locator('.mhex-panel[data-hands="ready"]').nth(1).wait_for(state="attached")
        shot(p, "errors_1280")
        cell = p.locator('.mx-box[aria-pressed="false"]').filter(has_not_text="·").last
        want = cell.inner_text()
        with changes(p, ".mx-part--examples", "html"):
            with changes(p, ".mx-part--picture_said"): cell.click()
        assert p.locator('.mx-box[aria-pressed="true"]').inner_text() == want and f"{want} image" in read(p, ".mx-part--examples")
        other = p.locator('.mx-box[aria-pressed="false"]').filter(has_not_text="·").first
        other.focus()
        with changes(p, ".mx-part--examples", "html"): p.keyboard.press("Enter")
        with changes(p, ".mx-part--matrix", "html"): p.get_by_label("Fractions of the row").check()
        assert p.evaluate("window.hurt") is None
        p.set_viewport_size({"width": 800, "height": 2600})
        p.wait_for_timeout(300)
        shot(p, "errors_800")
        assert overflow(p) <= 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_static_inspector(browser, tmp_path, scheme):
    space = {}
    exec(INSPECTOR, space)
    path = space["panel"].update(kind="exact", sign="both", other=1, target=0).to_html(tmp_path / "inspector.html")
    with opened(browser, path.as_uri(), width=800, ready=".mhex-panel", color_scheme=scheme, reduced_motion="reduce") as p:
        img = ".mhex-panel .mx-row .mx-cell:nth-child(2) img"
        with changes(p, img, "src"): p.get_by_label("Class").select_option("owl")
        old = read(p, "output")
        with changes(p, img, "src"):
            p.get_by_role("slider", name="Block").focus()
            p.keyboard.press("ArrowLeft")
        assert read(p, "output") != old
        shot(p, f"static_inspector_{scheme}")
        assert overflow(p) <= 0 and not p.outside and not p.errors and p.evaluate("window.hurt") is None


def test_static_errors(browser, tmp_path):
    space = {}
    exec(ERRORS, space)
    path = space["panel"].to_html(tmp_path / "errors.html")
    with opened(browser, path.as_uri(), ready=".mhex-panel") as p:
        old = p.locator(".mx-box[aria-pressed=true]").get_attribute("data-pick")
        i, j = map(int, old.split(","))
        p.get_by_label("True class").select_option(str((i + 1) % 3))
        assert p.locator(".mx-box[aria-pressed=true]").get_attribute("data-pick") == f"{(i + 1) % 3},{j}"
        shot(p, "static_errors")
        assert overflow(p) <= 0 and not p.outside and not p.errors and p.evaluate("window.hurt") is None
