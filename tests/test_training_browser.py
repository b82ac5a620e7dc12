"The training panel in a real browser: started, watched, paused, resumed, stopped."
import re, time
import pytest
from functools import partial
from browser import MARKS, changes, chromium, opened, overflow, press, read, served, shot

pytestmark = MARKS
changes = partial(changes, timeout=90_000)  # a training on the same cores may slow everything down
CODE = '''
import warnings; warnings.filterwarnings("ignore")
import torch; torch.set_num_threads(1)
from mhex.data import load_data
from mhex.training_panel import TrainingPanel
data = load_data("digits", size=14).subset(train=%d, valid=40, test=40)
panel = TrainingPanel(data, epochs=%d, bs=10, backbone_kw=dict(width=8, blocks=(1,1)), device="cpu")
panel
'''
NOTEBOOKS = dict(long=CODE % (120, 60), short=CODE % (60, 2))


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    with served(tmp_path_factory.mktemp("voila"), NOTEBOOKS) as url, chromium() as b: yield b, url


@pytest.fixture(scope="module")
def page(site):
    with opened(site[0], site[1] + "long", height=1700) as p: yield p


@pytest.fixture
def short(site):
    with opened(site[0], site[1] + "short", height=1700) as p: yield p


def click(page, name): page.get_by_role("button", name=name, exact=True).click()
def enabled(page, name): return page.get_by_role("button", name=name, exact=True).is_enabled()
def state(page, name, timeout=120_000): page.locator(f".mx-part--status .mx-badge.{name}").wait_for(timeout=timeout)


def where(page): return tuple(int(read(page, f".mx-part--status .{c}")) for c in ("mx-epoch", "mx-batch"))


def looks(page, name):
    "Pictures at both widths; nothing wider than its window"
    for w in (1280, 800):
        page.set_viewport_size(dict(width=w, height=1700))
        page.wait_for_timeout(250)
        shot(page, f"training_{name}_{w}")
        assert overflow(page) <= 0
    page.set_viewport_size(dict(width=1280, height=1700))


def test_idle(page):
    assert enabled(page, "Start") and enabled(page, "Load") and not any(enabled(page, n) for n in ("Pause", "Resume", "Stop", "Compare with plain twin", "Save"))
    assert "No maps yet" in read(page, ".mx-part--maps") and "60 epochs" in read(page, ".mx-part--status")
    looks(page, "idle")


def test_start(page):
    "The batch under way changes on the page by itself, and so do the curves"
    click(page, "Start")
    state(page, "running")
    page.locator(".mx-part--status .mx-batch").wait_for(timeout=120_000)
    for _ in range(3):
        with changes(page, ".mx-part--status .mx-batch"): pass
    with changes(page, ".mx-part--charts", "html"): pass
    assert not page.get_by_role("textbox", name="Epochs", exact=True).is_visible()  # settings fold away
    page.wait_for_function("document.querySelectorAll('.mx-part--charts svg[role=img] desc').length==3", timeout=120_000)
    looks(page, "running")


def test_pause(page):
    "The number stands still"
    page.wait_for_function("+document.querySelector('.mx-part--status .mx-epoch').innerText>2", timeout=120_000)
    click(page, "Pause")
    state(page, "paused")
    here, curves = where(page), read(page, ".mx-part--charts", "html")
    page.wait_for_timeout(1500)
    assert where(page) == here and read(page, ".mx-part--charts", "html") == curves
    assert enabled(page, "Resume") and enabled(page, "Stop") and not enabled(page, "Start")
    looks(page, "paused")


def test_look_back(page):
    "While it is paused the kernel answers: an earlier epoch, another block, another kind of map"
    picture = ".mx-part--maps figure img:nth-of-type(2)"
    with changes(page, picture, "src"): press(page, "After epoch", "Home")
    assert "before training" in read(page, ".mx-part--maps .mx-head")
    with changes(page, picture, "src"): press(page, "After epoch", "End")
    assert f"after epoch {where(page)[0] - 1}" in read(page, ".mx-part--maps .mx-head")
    with changes(page, picture, "src"): page.get_by_label("Block").select_option(index=1)
    with changes(page, picture, "src"): page.get_by_label("Map", exact=True).select_option(label="exact, in logits")
    assert "red speaks for" in read(page, ".mx-part--maps .mx-head")


def test_resume(page):
    here = where(page)
    with changes(page, ".mx-part--status .mx-batch"): click(page, "Resume")
    state(page, "running")
    page.wait_for_function("([e,b])=>{const n=c=>+document.querySelector('.mx-part--status .'+c).innerText;return n('mx-epoch')>e||n('mx-batch')!==b}", arg=list(here), timeout=120_000)


def test_stop(page):
    click(page, "Stop")
    state(page, "stopped")
    here = where(page)
    page.wait_for_timeout(600)
    assert where(page) == here and enabled(page, "Resume") and enabled(page, "Start")
    looks(page, "stopped")
    click(page, "Resume")
    state(page, "running")
    with changes(page, ".mx-part--status .mx-batch"): pass
    click(page, "Stop")
    state(page, "stopped")
    assert where(page)[0] >= here[0]


def test_finished_and_twin(short):
    click(short, "Start")
    state(short, "finished", 120_000)
    assert re.search(r"epoch 2 of 2\s+loss \d", " ".join(read(short, ".mx-part--status").split()))
    looks(short, "finished")
    with changes(short, ".mx-part--maps figure img:nth-of-type(2)", "src"): press(short, "After epoch", "ArrowLeft")
    click(short, "Compare with plain twin")
    short.locator(".mx-part--compare table").wait_for(timeout=120_000)
    assert re.search(r"accuracy\s+[01]\.\d+\s+[01]\.\d+\s+[+−]?\d", read(short, ".mx-part--compare"))
    looks(short, "compared")


def test_bad_choice_and_failure(short):
    "A message beside the buttons, what was typed stays; a failure in the thread is shown, and can be mended"
    field = lambda n: short.get_by_role("textbox", name=n, exact=True)
    def type_(n, v): field(n).fill(v); short.keyboard.press("Tab")
    with changes(short, ".mx-part--notice"): type_("Epochs", "many")
    assert "epochs is 'many'; expected a whole number" in read(short, ".mx-part--notice") and field("Epochs").input_value() == "many"
    click(short, "Start")
    short.wait_for_timeout(500)
    assert "epochs is 'many'" in read(short, ".mx-part--notice") and field("Epochs").input_value() == "many" and not enabled(short, "Pause")
    looks(short, "bad")
    type_("Epochs", "1"); type_("Head weights", "1, 2, 3")
    click(short, "Start")
    state(short, "failed")
    assert "Training failed: head_weights has 3 numbers, the network has 2 heads" in read(short, ".mx-part--notice")
    looks(short, "failed")
    type_("Head weights", "1, 2")
    click(short, "Start")
    state(short, "finished", 120_000)
    assert "failed" not in read(short, ".mx-part--notice")


def test_finder(short):
    click(short, "Find learning rate")
    short.locator(".mx-part--finder svg.mx-chart").wait_for(timeout=120_000)
    field = short.get_by_role("textbox", name="Learning rate", exact=True)
    assert field.input_value() == ""
    click(short, "Use suggestion")
    for _ in range(40):
        if field.input_value(): break
        short.wait_for_timeout(100)
    assert 0 < float(field.input_value()) < 10
    looks(short, "finder")


def test_offline(page):
    "Nothing but the icon font of the server's own template is asked of elsewhere"
    assert not [u for u in page.outside if "fontawesome" not in u]
