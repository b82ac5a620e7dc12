"The text inspector in a real browser: type, choose, move a slider by keys, hide words by pointer and keyboard; the numbers on the page change, and to the right values."
import re
import pytest
from browser import MARKS, changes, chromium, opened, overflow, press, read, served, shot

pytestmark = MARKS

CODE = '''
import torch
from mhex.adapt import attach
from mhex.minibert import mini_bert
from mhex.text_panel import TextInspector

SAID = ["The striker scored a late goal after the break.", "Shares fell as the bank missed its forecast.", "Robots explore a distant planet.", "<b>Markup</b> & marks"]
net,tok = mini_bert(3, pretrained=False, texts=SAID*2, vocab_size=150, layers=4, seed=1)
with torch.no_grad():
    for p in net.parameters(): p.mul_(1.5)
torch.manual_seed(0)
model = attach(net, 3, tokenizer=tok, predict="mean", class_names=["sport","<i>business</i>","science"]).eval()
panel = TextInspector(model, SAID, labels=[0,1,2,0], target=0)
'''


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    with served(tmp_path_factory.mktemp("voila"), dict(text=[CODE, "panel"])) as url: yield url + "text"


@pytest.fixture(scope="module")
def browser():
    with chromium() as b: yield b


@pytest.fixture(scope="module")
def page(address, browser):
    with opened(browser, address) as p: yield p


WORDS, CLASSES, HIDDEN = ".mx-part--words", ".mx-part--classes", ".mx-part--hidden"


def quiet(page):
    "Nothing asked of elsewhere and no error, but for the icon font that Voila's own template wants, and what other extensions of JupyterLab say"
    outside, errors = [o for o in page.outside if "fontawesome" not in o], [o for o in page.errors if "Failed to load resource" not in o and "/labextensions/" not in o]
    return not outside + errors or print(outside, errors)


def word(page, name): return page.locator(f"{WORDS} .mx-t [data-pick]", has_text=re.compile(f"^{re.escape(name)}$")).first


def test_opens(page):
    assert "add up to" in read(page, WORDS) and "What the model says" in read(page, CLASSES) and "Nothing is hidden" in read(page, HIDDEN)
    assert quiet(page)
    assert overflow(page) <= 0
    shot(page, "text_1280")


def test_names_are_text(page):
    "Markup in class names and texts is shown, never made."
    assert "<i>business</i>" in read(page, CLASSES) and not page.locator(f"{CLASSES} td i:not([style])").count()
    with changes(page, WORDS): page.get_by_label("Pick").select_option(label="4: <b>Markup</b> & marks")
    assert "<" in read(page, WORDS) and not page.locator(f"{WORDS} .mx-t b").count()
    with changes(page, WORDS): page.get_by_label("Pick").select_option(index=1)


def test_type_and_choose(page):
    with changes(page, WORDS):
        page.get_by_label("Text", exact=True).fill("The goal fell after the late shares.")
        page.keyboard.press("Tab")
    assert "shares" in read(page, WORDS) and "7 words" not in read(page, WORDS) or "8 words" in read(page, WORDS)
    with changes(page, WORDS): page.get_by_label("Class", exact=True).select_option(label="science")
    assert "logit of science" in read(page, WORDS)
    with changes(page, WORDS): page.get_by_label("Beside", exact=True).select_option(label="sport")
    assert page.locator(f"{WORDS} .mx-card").count() == 3 and "science − sport" in read(page, WORDS)
    shot(page, "text_versus")
    with changes(page, WORDS): page.get_by_label("Beside", exact=True).select_option(index=0)


def test_layer_by_keys(page):
    with changes(page, WORDS): press(page, "Layers", "ArrowRight", "ArrowRight")
    page.wait_for_function("document.querySelector('.mx-part--words').innerText.includes('in the head of layer 1')")
    with changes(page, WORDS): press(page, "Layers", "ArrowLeft", "ArrowLeft")
    page.wait_for_function("document.querySelector('.mx-part--words').innerText.includes('the logit of science')")


def test_hover_and_focus_show_the_number(page):
    w = word(page, "late")
    tip = w.get_attribute("data-tip")
    assert re.fullmatch(r"[+−]\d+\.\d+ logits", tip)
    shown = "e=>getComputedStyle(e,'::after').content"
    assert tip not in w.evaluate(shown)
    w.hover()
    assert tip in w.evaluate(shown)
    page.mouse.move(5, 5)
    page.get_by_label("Units").first.focus()
    w.evaluate("e=>e.focus({focusVisible:true})")
    assert tip in w.evaluate(shown) and "late" in w.get_attribute("aria-label")


def test_click_hides_a_word(page):
    "The numbers are the model's own, called by hand here."
    space = {}
    exec(CODE, space)
    torch, model, tok = space["torch"], space["model"], space["tok"]
    x = tok("The goal fell after the late shares.", return_tensors="pt")
    at = [i for i, w in enumerate(x.word_ids()) if w == 1]  # "goal"
    with torch.no_grad():
        before = model(x).clone()
        x["input_ids"][0, at] = tok.mask_token_id
        after = model(x).clone()
    with changes(page, CLASSES), changes(page, HIDDEN): word(page, "goal").click()
    for p in after.softmax(1)[0]: assert f"{float(p) * 100:.1f} %" in read(page, CLASSES)
    change = f"{float(after[0, 2] - before[0, 2]):+.3f}".replace("-", "−")
    assert change in read(page, HIDDEN) and change in read(page, CLASSES)
    assert "line-through" in word(page, "goal").evaluate("e=>getComputedStyle(e).textDecorationLine") and "line-through" not in word(page, "late").evaluate("e=>getComputedStyle(e).textDecorationLine")


def test_keyboard_hides_and_keeps_its_place(page):
    w = word(page, "late")
    w.focus()
    with changes(page, HIDDEN): page.keyboard.press("Enter")
    assert "all together" in read(page, HIDDEN) and page.evaluate("document.activeElement.innerText") == "late"
    shot(page, "text_hidden")
    with changes(page, HIDDEN): page.keyboard.press(" ")
    assert "all together" not in read(page, HIDDEN)
    with changes(page, HIDDEN): page.get_by_role("button", name="Hide the strongest").click()
    assert "all together" in read(page, HIDDEN)
    with changes(page, HIDDEN): page.get_by_role("button", name="Show all").click()
    assert "Nothing is hidden" in read(page, HIDDEN)


def test_controls_do_what_clicks_do(page):
    page.get_by_label("Word", exact=True).select_option(index=2)
    page.wait_for_timeout(300)
    with changes(page, HIDDEN): page.get_by_role("button", name="Hide / show it").click()
    assert "fell" in read(page, HIDDEN)
    with changes(page, CLASSES): page.get_by_label("Instead").select_option(label="nothing")
    assert "deleted" in read(page, HIDDEN)
    with changes(page, HIDDEN): page.get_by_role("button", name="Show all").click()


def test_save(page, tmp_path):
    page.get_by_label("Folder").fill(str(tmp_path / "kept"))
    page.keyboard.press("Tab")
    page.get_by_role("button", name="Save", exact=True).click()
    page.locator(".mx-said", has_text="Written to").wait_for()
    assert sorted(p.name for p in (tmp_path / "kept").iterdir()) == ["inspector.html", "manifest.json", "maps.npz", "words.html"]


def test_refused_and_empty(page):
    with changes(page, WORDS):
        page.get_by_label("Text", exact=True).fill("")
        page.keyboard.press("Tab")
    assert "There is no text yet" in read(page, WORDS)
    page.get_by_role("button", name="Hide the strongest").click()
    page.locator(".mx-said").wait_for()
    assert "no text" in read(page, ".mx-said")
    shot(page, "text_empty")
    with changes(page, WORDS): page.get_by_label("Pick").select_option(index=2)
    assert "Shares" in read(page, WORDS)


def test_wrong_ones_and_peers(page):
    with changes(page, WORDS): page.get_by_label("Model is").select_option(label="wrong")
    assert "the model says" in read(page, WORDS)
    with changes(page, ".mx-part--peers"): page.get_by_label("Other methods too").check()
    assert "rollout" in read(page, ".mx-part--peers") and "knows no class" in read(page, ".mx-part--peers")
    shot(page, "text_peers")
    assert quiet(page)


def test_narrow(address, browser):
    with opened(browser, address, width=800) as p:
        assert overflow(p) <= 0
        shot(p, "text_800")


def test_static_page(browser, tmp_path):
    "One file: classes, layers and hidden words by its own controls, without a kernel."
    space = {}
    exec(CODE, space)
    path = space["panel"].to_html(tmp_path / "inspector.html")
    with opened(browser, path.as_uri(), ready=".mhex-panel", color_scheme="dark") as p:
        first = read(p, f"{WORDS},[data-part='2']")
        with changes(p, "[data-part='2']"): p.get_by_label("Layers").press("ArrowRight")
        with changes(p, "[data-part='4']"): p.get_by_label("Hidden").select_option(index=1)
        assert p.locator(".mx-t [data-pick]").evaluate_all("es=>es.filter(e=>getComputedStyle(e).textDecorationLine.includes('line-through')).length") == 1
        shot(p, "text_static_dark")
        assert first and not p.errors and not p.outside and overflow(p) <= 0
