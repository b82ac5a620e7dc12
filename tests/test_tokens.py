"Rendering of tokens: nothing that comes from a text acts, numbers are the scores, colours can be read; and it looks right in a browser."
import html, importlib.util, re, shutil, subprocess
from html.parser import HTMLParser
from pathlib import Path
import pytest, torch
from hypothesis import given, settings, strategies as st
from torch.testing import assert_close
from mhex.tokens import TokenHTML, _columns, contrast, latex_escape, luminance, merge_words, piece_texts, score_color, token_ansi, token_html, token_latex, visible, want_color

NASTY = ["<script>alert(1)</script>", "<img src=x onerror=alert(1)>", "&lt;b&gt;", "&amp;", '"', "'", "`", "</span></p></div>", "</style>", "javascript:", "\\", "--><!--", "]]>",
         "\x00", "\x1b[31m", "\x9b2J", "\r\n", "\t", "\u202e", "\u2066", "\u200b", "\u200d", "\ufeff", "\u00ad", "\ud800", "\U000e0041", "שלום", "سلام", "🙂", "👨\u200d👩\u200d👧", "é", "e\u0301", "\u0301", "漢字",
         "\\input{/etc/passwd}", "$x_1^2$", "%", "#1", "~", "{", "}"]
ROW = torch.linspace(-1, 1, len(NASTY))
ANSI = re.compile(r"\x1b\[[\d;]*m")


class Reader(HTMLParser):
    "The elements, attributes and texts that a browser would make of it"
    def __init__(self, page):
        super().__init__()
        self.tags, self.spans, self.attrs, self.open, self.style = [], [], [], [], False
        self.feed(page); self.close()
        assert not self.open, f"not closed: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag); self.attrs += attrs; self.open.append(tag)
        if tag == "span": self.spans.append([dict(attrs), ""])

    def handle_endtag(self, tag): assert self.open.pop() == tag
    def handle_data(self, data):
        if self.open and self.open[-1] == "span": self.spans[-1][1] += data

    def tokens(self): return [(a, t) for a, t in self.spans if a.get("title")]


@pytest.mark.parametrize("theme", ["light", "dark", "auto"])
def test_nothing_acts_in_html(theme):
    page = token_html(NASTY, torch.stack([ROW, -ROW]), class_names=['"><script>x</script>', "</th>"], values=["<i>", "0.5"], title="<h1>", unit="<u>&", theme=theme)
    r = Reader(page)
    assert {*r.tags} <= {"div", "style", "table", "tr", "th", "td", "p", "span", "u"} and r.tags.count("style") == 1
    assert not [k for k, _ in r.attrs if k.startswith("on") or k in ("src", "href")]
    assert [t for _, t in r.tokens()] == [visible(t) for t in NASTY] * 2
    page.encode("utf-8")
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ufeff\u200b]", page)


@settings(max_examples=150, deadline=None)
@given(st.lists(st.text(st.characters(), max_size=12), min_size=1, max_size=6))
def test_any_text(tokens):
    "Whatever the text: the same tokens come out, and no more elements than without it."
    s = torch.ones(len(tokens))
    r = Reader(token_html(tokens, s))
    assert [t for _, t in r.tokens()] == [visible(t) for t in tokens]
    out = token_ansi(tokens, s, color=True, width=80)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ANSI.sub("", out))
    plain = latex_escape("".join(tokens))
    assert not re.search(r"(?<!\\)[#%&_]", plain) and not re.search(r"[\x00-\x1f]", plain)
    depth = 0
    for c in re.sub(r"\\[{}]", "", plain):
        depth += (c == "{") - (c == "}")
        assert depth >= 0
    assert not depth


def test_numbers_and_signs():
    r = Reader(token_html(["a", "b", "c", "d"], [[1.25, -.5, 0, .001], [2.5, 0, -2.5, 0]], ["x", "y"]))
    t = r.tokens()
    assert [a["title"] for a, _ in t] == ["+1.25 logits for x", "−0.50 logits for x", "0.00 logits for x", "0.00 logits for x", "+2.50 logits for y", "0.00 logits for y", "−2.50 logits for y", "0.00 logits for y"]
    assert ["underline" in a.get("style", "") for a, _ in t] == [False, True, False, False, False, False, True, False]
    assert ["background" in a.get("style", "") for a, _ in t] == [True, True, False, False, True, False, True, False]


def test_one_scale():
    "The same number has the same colour in every row, and with scale= in every call."
    def colors(page): return [re.search(r"background:(#\w+)", a.get("style", "")) and re.search(r"background:(#\w+)", a["style"])[1] for a, _ in Reader(page).tokens()]
    two = colors(token_html(["a", "b"], [[1., -.5], [4., 1.]], ["x", "y"]))
    assert two[0] == two[3] == score_color(.25)[0] and two[2] == score_color(1.)[0] and two[1] == score_color(-.125)[0]
    assert colors(token_html(["a", "b"], [1., -.5], scale=4.)) == two[:2]
    assert colors(token_html(["a"], [9.], scale=4.)) == [score_color(1.)[0]]
    assert "background:#" not in re.sub(r"<style>.*</style>", "", token_html(["a", "b"], [0., 0.]))


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_contrast(theme):
    "Ink on every colour reads (WCAG 2: 4.5), and absolute score and distance from the page's colour grow together."
    assert abs(contrast("#000000", "#ffffff") - 21) < 1e-9 and luminance("#ffffff") == 1
    for sign in (1, -1):
        cs = [score_color(sign * v / 200, theme) for v in range(201)]
        assert min(contrast(*c) for c in cs) >= 4.5
        far = [contrast(cs[0][0], c[0]) for c in cs]
        assert all(b >= a - .02 for a, b in zip(far, far[1:])) and far[-1] > 4.5
    page = token_html(["a", "b"], [1., -1.], muted=[False, False], theme=theme)
    for bg, ink in re.findall(r"background:(#\w{6});color:(#\w{6})", page): assert contrast(bg, ink) >= 4.5


def test_colour_blind():
    "Full red and full blue differ for the three kinds of colour blindness (Machado, Oliveira and Fernandes 2009, severity 1)."
    kinds = {"protan": [[.152286, 1.052583, -.204868], [.114503, .786281, .099216], [-.003882, -.048116, 1.051998]],
             "deutan": [[.367322, .860646, -.227968], [.280085, .672501, .047413], [-.011820, .042940, .968881]],
             "tritan": [[1.255528, -.076749, -.178779], [-.078411, .930809, .147602], [.004733, .691367, .303900]]}
    for theme in ("light", "dark"):
        for m in kinds.values():
            a, b = (torch.tensor(m) @ torch.tensor([int(score_color(v, theme)[0][i:i + 2], 16) / 255 for i in (1, 3, 5)]) for v in (1., -1.))
            assert (a - b).norm() > .3


def test_special_tokens_are_zero():
    page = token_html(["[CLS]", "good", "[SEP]"], [50., 1., -50.], muted=[True, False, True])
    t = Reader(page).tokens()
    assert t[0][0]["title"] == t[2][0]["title"] == "special token, 0" and t[1][0]["title"] == "+1.00 logits"
    assert score_color(1.)[0] in t[1][0]["style"]  # they do not stretch the scale either
    assert token_ansi(["[CLS]", "good"], [50., 1.], muted=[True, False], color=False, legend=False) == "[CLS] good(+1.00)"


def test_direction():
    assert 'dir="rtl"' in token_html(["[CLS]", "سلام", "abc"], [0, 1, 1], muted=[True, False, False])
    assert 'dir="ltr"' in token_html(["42", "abc", "سلام"], [0, 1, 1])


def test_no_color(monkeypatch):
    tokens, s = ["good", "bad"], [1., -1.]
    for k in ("NO_COLOR", "FORCE_COLOR"): monkeypatch.delenv(k, raising=False)
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    assert want_color() and "\x1b" in token_ansi(tokens, s)
    monkeypatch.setenv("NO_COLOR", "")  # the convention: an empty value does not count
    assert want_color()
    monkeypatch.setenv("NO_COLOR", "1")
    assert not want_color() and token_ansi(tokens, s, legend=False) == "good(+1.00) bad(−1.00)"
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert not want_color()
    monkeypatch.delenv("NO_COLOR")
    monkeypatch.setattr("sys.stdout.isatty", lambda: False, raising=False)
    assert want_color()
    monkeypatch.delenv("FORCE_COLOR")
    assert not want_color()
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("TERM", "dumb")
    assert not want_color()


@pytest.mark.parametrize("color", [True, False])
def test_width(color):
    tokens = ("The quick 漢字 fox jumps over 🙂 the lazy dog " * 4).split()
    out = token_ansi(tokens, torch.linspace(-1, 1, len(tokens)), ["class"], width=30, color=color, legend=False)
    lines = ANSI.sub("", out).split("\n")[1:]
    assert len(lines) > 3 and all(_columns(o) <= 30 for o in lines)
    back = re.sub(r"\([+−\d.]+\)", "", " ".join(o.strip() for o in lines))
    assert back.split() == tokens
    for line in out.split("\n"): assert line.count("\x1b[0m") * 2 == line.count("\x1b[")  # no colour runs over the end of a line


def test_terminal_contrast():
    "Ink reads on every ground of the 256-colour palette that is used, and darker means more."
    def cube(c): return "#" + "".join(f"{(0, 95, 135, 175, 215, 255)[o]:02x}" for o in ((c - 16) // 36, (c - 16) // 6 % 6, (c - 16) % 6))
    for sign in (1, -1):
        out = [re.search(r"38;5;(\d+);48;5;(\d+)m", token_ansi(["x", "y"], [sign * v, 0], scale=1., color=True, legend=False)) for v in (.1, .3, .5, .7, 1.)]
        inks, grounds = ([cube(int(m[i])) for m in out] for i in (1, 2))
        assert min(map(contrast, inks, grounds)) >= 4.5 and len({*grounds}) == 5
        light = [luminance(g) for g in grounds]
        assert light == sorted(light, reverse=True)
    assert token_ansi(["x"], [.01], scale=1., color=True, legend=False) == "x"


def test_latex_document():
    out = token_latex(["a_b", "50%", "{x}", "\\foo"], [[1., -1., .5, 0], [0, 0, 0, 0]], ["A & B", "#2"], target="#2", values=[.25, .75])
    assert {*re.findall(r"\\([A-Za-z]+)", out)} <= {"usepackage", "setlength", "fboxsep", "raggedright", "begin", "end", "linewidth", "colorbox", "textcolor", "strut", "underline", "tabularnewline", "textbf",
                                                    "scriptsize", "par", "textbackslash"}
    assert out.count(r"\underline") == 1 and r"\textbf{\#2}" in out and r"A \& B" in out
    body = re.sub(r"\\[{}]", "", re.sub(r"(?m)^%.*$", "", out))
    assert body.count("{") == body.count("}")


@pytest.mark.skipif(not shutil.which("pdflatex"), reason="needs pdflatex with xcolor")
def test_latex_compiles(tmp_path):
    tokens = [chr(i) for i in range(33, 127)] + [t for t in NASTY if t.isascii()] + ["naïve", "\u200b", "−"]
    doc = ["\\documentclass{article}\\usepackage{xcolor}\\begin{document}", token_latex(tokens, torch.linspace(-1, 1, len(tokens)), joined=[i % 3 == 1 for i in range(len(tokens))]),
           token_latex(tokens, torch.randn(2, len(tokens)), ["x_1", "y"], target=0), "\\end{document}"]
    (tmp_path / "t.tex").write_text("\n".join(doc), encoding="utf-8")
    r = subprocess.run(["pdflatex", "-interaction=nonstopmode", "-halt-on-error", "t.tex"], cwd=tmp_path, capture_output=True, timeout=60)
    if b"xcolor.sty' not found" in r.stdout: pytest.skip("pdflatex is here, xcolor is not")
    assert not r.returncode, r.stdout[-1500:].decode("utf-8", "replace")


def test_merge_words():
    "Sums over pieces, in the scores' own precision; text as it was written; zero at special tokens."
    torch.manual_seed(0)
    s = torch.randn(3, 9, dtype=torch.float64)
    ids = [None, 0, 0, 1, 2, 2, 2, None, None]
    text = "Naïve  U.S.-based"
    off = [(0, 0), (0, 2), (2, 5), (7, 11), (11, 12), (12, 14), (14, 17), (0, 0), (0, 0)]
    toks = ["[CLS]", "na", "##ive", "u.s.", "-", "##ba", "##sed", "[SEP]", "[PAD]"]
    w = merge_words(s, ids, toks, off, text, mask=[1] * 8 + [0])
    assert w.text == ["[CLS]", "Naïve", "U.S.", "-based", "[SEP]"] and w.joined == [False, False, False, True, False] and w.muted == [True, False, False, False, True]
    assert w.scores.dtype == torch.float64
    assert_close(w.scores[:, 1:4], torch.stack([s[:, 1:3].sum(1), s[:, 3], s[:, 4:7].sum(1)], 1))
    assert (w.scores[:, [0, -1]] == 0).all()
    assert_close(w.scores.sum(1), s[:, 1:7].sum(1))
    assert len(merge_words(s, ids, toks, special=False)) == 3
    assert merge_words(s, ids, toks, words=["Naïve", "U.S.", "-based"]).text[1:4] == ["Naïve", "U.S.", "-based"]


def test_merge_words_of_a_tokenizer():
    "Against a real fast tokenizer's encoding, with a text pair: equal word numbers on both sides of [SEP] stay apart."
    tf = pytest.importorskip("transformers")
    from mhex.minibert import word_piece_tokenizer
    tok = word_piece_tokenizer(["unbelievable goal scored!", "the goal"], vocab_size=60)
    e = tok("The unbelievable goal!", "Goal scored")
    toks = tok.convert_ids_to_tokens(e["input_ids"])
    w = merge_words(torch.ones(len(toks)), e.word_ids(), toks)
    assert w.text == ["[CLS]", "the", "unbelievable", "goal", "!", "[SEP]", "goal", "scored", "[SEP]"]
    assert w.scores.sum() == len(toks) - 3 and w.spans[0] == (0, 1) and w.spans[-1] == (len(toks) - 1, len(toks))


@pytest.mark.parametrize("tokens, texts, joined", [
    (["[CLS]", "play", "##ing", "##", "[SEP]"], ["[CLS]", "play", "ing", "##", "[SEP]"], [0, 0, 1, 0, 0]),
    (["<s>", "Hello", "Ġwor", "ld", ".", "Ġ", "</s>"], ["<s>", "Hello", "wor", "ld", ".", " ", "</s>"], [0, 0, 0, 1, 1, 0, 0]),
    (["▁Hello", "▁wor", "ld", "</s>"], ["Hello", "wor", "ld", "</s>"], [0, 0, 1, 0]),
    (["ĠðŁĻĤ", "Ã©"], ["🙂", "é"], [0, 1])])
def test_piece_texts(tokens, texts, joined):
    assert piece_texts(tokens) == (texts, [bool(j) for j in joined])


@pytest.mark.parametrize("call, error, says", [
    (lambda f: f("text", [1.]), TypeError, "expected a list of strings"),
    (lambda f: f([1, 2], [1., 2.]), TypeError, "token 0 is int"),
    (lambda f: f(["a"], [1., 2.]), ValueError, r"scores has shape \(2,\) for 1 tokens"),
    (lambda f: f(["a"], [[[1.]]]), ValueError, "one row a class"),
    (lambda f: f(["a", "b"], [1., float("inf")]), ValueError, "first at token 1"),
    (lambda f: f(["a"], [1.], muted=[True, False]), ValueError, "muted has 2 values for 1 tokens"),
    (lambda f: f(["a"], [1.], joined=[]), ValueError, "joined has 0 values"),
    (lambda f: f(["a"], [1.], scale=-1), ValueError, "scale is -1"),
    (lambda f: f(["a"], [[1.], [2.]], ["x", "y"], target="z"), ValueError, "or its name"),
    (lambda f: f(["a"], [[1.], [2.]], ["x", "y"], values=[1.]), ValueError, "values has 1 entries, scores has 2 rows")])
@pytest.mark.parametrize("f", [token_html, token_ansi, token_latex])
def test_errors(f, call, error, says):
    with pytest.raises(error, match=says): call(f)


def test_kinds_of_scores():
    for s in ([1, -2], (1., -2.), torch.tensor([1, -2]), torch.tensor([1., -2.], dtype=torch.float16, requires_grad=True), __import__("numpy").array([1, -2])):
        assert Reader(token_html(["a", "b"], s)).tokens()[1][0]["title"] == "−2.00 logits"
    assert repr(token_html(["a"], [1.])).startswith("TokenHTML of") and token_html(["a"], [1.])._repr_html_() == str(token_html(["a"], [1.]))


CHROME = shutil.which("chromium")


@pytest.mark.skipif(not (CHROME and importlib.util.find_spec("playwright")), reason="needs chromium and playwright")
def test_in_a_browser(tmp_path):
    "Themes side by side on one page keep their colours; hostile text adds no element and runs nothing; ink on computed backgrounds reads."
    from playwright.sync_api import sync_playwright
    good = [token_html(["Stocks", "fell", "today"], [[2., -1., .5], [-2., 1., .01]], ["Business", "Sports"], target=0, theme=t, title=t) for t in ("light", "dark", "auto")]
    evil = token_html(NASTY, ROW, class_names=NASTY[0], title=NASTY[1])
    page = "<!doctype html><meta charset=utf-8><body>" + "".join(good) + f"<section>{evil}</section>"
    (tmp_path / "t.html").write_text(page, encoding="utf-8")
    flags = "--no-sandbox --disable-gpu --disable-quic --no-first-run --disable-background-networking --disable-component-update --disable-sync".split()
    with sync_playwright() as pw:
        b = pw.chromium.launch(executable_path=CHROME, args=flags)
        for scheme in ("light", "dark"):
            pg = b.new_page(viewport={"width": 900, "height": 900}, color_scheme=scheme)
            said = []
            pg.on("dialog", lambda d: (said.append(d.message), d.dismiss()))
            pg.on("console", lambda m: said.append(m.text))
            pg.goto((tmp_path / "t.html").as_uri())
            look = pg.evaluate("""() => [...document.querySelectorAll('.s')].map(e => [getComputedStyle(e).backgroundColor, getComputedStyle(e).color])""")
            paper = pg.evaluate("""() => ['light','dark','auto'].map(t => getComputedStyle(document.querySelector('.mhex-'+t)).backgroundColor)""")
            assert pg.evaluate("document.querySelectorAll('script, img, section section, section ~ *').length") == 0 and not said
            assert [t.strip() for t in pg.locator("section p span").all_inner_texts()] == [visible(t).strip() for t in NASTY]
            folder = Path(__file__).resolve().parent.parent / "artifacts"
            folder.mkdir(exist_ok=True)
            pg.screenshot(path=folder / f"tokens_{scheme}.png", full_page=True)
            pg.close()
            def hexa(c): return "#" + "".join(f"{int(o):02x}" for o in re.findall(r"\d+", c)[:3])
            assert [hexa(p) for p in paper] == ["#ffffff", "#16191d", "#16191d" if scheme == "dark" else "#ffffff"]
            assert look and min(contrast(hexa(a), hexa(c)) for a, c in look) >= 4.5
        b.close()
