"""Cards and other text files as HTML that is safe to show.

Two things keep code and other sites out: every tag and attribute that is not on a list is dropped by nh3, last of all;
and every address passes `_link` or `_inside`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from html import escape, unescape
from posixpath import normpath
from typing import Any
from urllib.parse import quote, unquote

import nh3
from markdown_it import MarkdownIt
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token
from markdown_it.utils import EnvType, OptionsDict
from pygments import highlight  # type: ignore[import-untyped]
from pygments.formatters import HtmlFormatter  # type: ignore[import-untyped]
from pygments.lexers import get_lexer_by_name  # type: ignore[import-untyped]
from pygments.token import STANDARD_TYPES  # type: ignore[import-untyped]

__all__ = ["render", "render_text", "stylesheet"]

MAX_CARD = 128 << 10  # characters
MAX_COST = 8_000  # what a card may cost to parse: about the number of its lines and of characters that mean something
MAX_HIGHLIGHTED = 32 << 10  # characters of code that are coloured, in one card or file
_CUT = '<p class="cut">This text is too long to be shown here in full. The file holds the rest.</p>\n'


@dataclass(frozen=True)
class Place:
    """Where a text lies, so that its relative links can be followed."""

    repo: str
    revision: str
    folder: str = ""

    def url(self, view: str, path: str) -> str:
        """The address of another file of the repository: its page (`blob`) or its bytes (`resolve`)."""
        rooted = path if path.startswith("/") else f"/{self.folder}/{path}"
        parts = [quote(part, safe="") for part in normpath(f"/{rooted}").split("/") if part]
        return "/".join(("", self.repo, view, quote(self.revision, safe=""), *parts))


def render(text: str, *, repo: str, revision: str = "main", folder: str = "") -> str:
    """A card's Markdown as HTML.

    Args:
        text: the Markdown, without front matter.
        repo: `namespace/name`, to which relative links and images lead.
        revision: its branch, tag or commit.
        folder: the folder of the file.
    """
    place = Place(repo, revision, folder.strip("/"))
    shown = text[: _affordable(text)]
    env: dict[str, Any] = {"place": place, "highlighted": 0}
    tokens = _MARKDOWN.parse(shown, env)
    _prepare(tokens)
    html = _MARKDOWN.renderer.render(tokens, _MARKDOWN.options, env)
    return _clean(html, place) + (_CUT if len(shown) < len(text) else "")


def render_text(name: str, text: str) -> str:
    """A text file as HTML, coloured if its name tells the language; each line has the anchor `L-<number>`."""
    language = _LANGUAGES.get(name.rpartition(".")[2].lower(), "text")
    code = text if len(text) <= 4 * MAX_CARD else text[: 4 * MAX_CARD]
    html = _highlight(code, language if len(code) <= MAX_HIGHLIGHTED else "text", _FILE_FORMATTER)
    return html + (_CUT if len(code) < len(text) else "")


def stylesheet(style: str = "default", selector: str = ".highlight") -> str:
    """The CSS of one of Pygments' styles for the classes in highlighted code."""
    return str(HtmlFormatter(style=style).get_style_defs(selector))


# ---- limits ---------------------------------------------------------------------------------------------------------

_SPECIAL = re.compile(r"[\[\]!*_~|<&`\n]")
_DELIMITER_ROW = re.compile(r"[ \t|:>-]*-[ \t|:>-]*")


def _affordable(text: str) -> int:
    """How much of a text to show: the parser's time grows with brackets, emphasis, lines and the cells of tables."""
    cost, position, columns = 0, 0, 0
    for line in text[:MAX_CARD].splitlines(keepends=True):
        bars = line.count("|")
        if not line.strip():
            columns = 0
        elif bars and _DELIMITER_ROW.fullmatch(line.strip()):
            columns = bars + 1
        # A row that is too short is filled up with cells.
        cost += len(_SPECIAL.findall(line)) + max(0, columns - bars)
        if cost > MAX_COST:
            return position + (_cut_line(line) if position == 0 else 0)
        position += len(line)
    return position


def _cut_line(line: str) -> int:
    for count, match in enumerate(_SPECIAL.finditer(line)):
        if count == MAX_COST // 2:
            return match.start()
    return len(line)


# ---- Markdown -------------------------------------------------------------------------------------------------------


class _Renderer(RendererHTML):
    """HTML without images of other sites, and with coloured code."""

    def image(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        text = self.renderInlineAsText(token.children or [], options, env)
        in_link = sum({"link_open": 1, "link_close": -1}.get(token.type, 0) for token in tokens[:idx]) > 0
        return _image_tag(str(token.attrs.get("src", "")), text, {"title": token.attrs.get("title")}, env, in_link)

    def html_inline(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return _IMAGE_TAG.sub(lambda match: _rewrite_image(match, env), tokens[idx].content)

    def html_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return self.html_inline(tokens, idx, options, env)

    def fence(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        token = tokens[idx]
        language = _LANGUAGES.get((token.info.split() or [""])[0].strip("{}.").lower(), "text")
        env["highlighted"] += len(token.content) + 100  # to begin costs something, too
        return _highlight(token.content, language if env["highlighted"] <= MAX_HIGHLIGHTED else "text", _FORMATTER)

    def code_block(self, tokens: Sequence[Token], idx: int, options: OptionsDict, env: EnvType) -> str:
        return _highlight(tokens[idx].content, "text", _FORMATTER)


_MARKDOWN = MarkdownIt("commonmark", {"html": True, "maxNesting": 20}, renderer_cls=_Renderer)
_MARKDOWN.enable(["table", "strikethrough"])
_ALIGNED = re.compile(r"text-align:(left|center|right)")


def _prepare(tokens: list[Token]) -> None:
    """Gives headings an anchor, and cells an alignment that needs no style."""
    seen: dict[str, int] = {}
    for token, following in zip(tokens, [*tokens[1:], Token("", "", 0)]):
        if token.type == "heading_open":
            slug = "-".join(re.findall(r"\w+", following.content.lower()))[:80] or "section"
            seen[slug] = seen.get(slug, 0) + 1
            token.attrs["id"] = f"{_ANCHOR}{slug}" + (f"-{seen[slug]}" if seen[slug] > 1 else "")
        elif aligned := _ALIGNED.fullmatch(str(token.attrs.pop("style", ""))):
            token.attrs["align"] = aligned[1]


# ---- images ---------------------------------------------------------------------------------------------------------

_IMAGE_TAG = re.compile(r"<img\b[^>]*>", re.IGNORECASE)
_ATTRIBUTE = re.compile(r"""\b(src|alt|title|width|height|align)\s*=\s*("[^"]*"|'[^']*'|[^\s"'>]+)""", re.IGNORECASE)


def _rewrite_image(match: re.Match[str], env: EnvType) -> str:
    found = {name.lower(): unescape(value.strip("\"'")) for name, value in _ATTRIBUTE.findall(match[0])}
    return _image_tag(found.pop("src", ""), found.pop("alt", ""), found, env)


def _image_tag(src: str, text: str, more: dict[str, Any], env: EnvType, in_link: bool = False) -> str:
    """An image of the repository; for one of another site, a link to it, so that no page calls that site by itself."""
    if _inside(src, env["place"], "resolve"):
        attributes = {"src": src, "alt": text, **more}
        shown = " ".join(f'{name}="{escape(str(value))}"' for name, value in attributes.items() if value is not None)
        return f"<img {shown}>"
    text = escape(text or "image")
    return text if in_link or not _REMOTE.match(src) else f'<a href="{escape(src)}">{text}</a>'


# ---- addresses ------------------------------------------------------------------------------------------------------

_ANCHOR = "card-"  # in front of every id, so that none is one of the page's own
_REMOTE = re.compile(r"https?://[^/\\\s@]+(?:[/?#]\S*)?", re.IGNORECASE)
_MAIL = re.compile(r"mailto:[^\s<>\"']+", re.IGNORECASE)
_OTHER_SCHEME = re.compile(r"[^/?#]*:")
_INVISIBLE = re.compile(r"[\x00-\x20\x7f-\xa0\u200b-\u200f\u2028-\u202f\ufeff]")


def _link(href: str, place: Place) -> str | None:
    """Where a link may lead: another site by its whole address, a heading, or a file of the repository."""
    if _REMOTE.fullmatch(href) or _MAIL.fullmatch(href):
        return href
    if href.startswith("#"):
        return f"#{_ANCHOR}{href[1:].removeprefix(_ANCHOR).lower()}"
    return _inside(href, place, "blob")


def _inside(address: str, place: Place, view: str) -> str | None:
    """The address of a file that is named relative to the text; None for anything else."""
    path, hash_sign, fragment = address.partition("#")
    path = unquote(path.partition("?")[0])
    if not path or path.startswith("//") or "\\" in path or _OTHER_SCHEME.match(path) or _INVISIBLE.match(path):
        return None
    return place.url(view, path) + (f"#{quote(unquote(fragment))}" if hash_sign else "")


# ---- code -----------------------------------------------------------------------------------------------------------

# How languages and file endings are called, and the lexer for them: those that are fast whatever they are given.
_LANGUAGES = {
    **dict.fromkeys(("python", "py", "python3", "ipython"), "python"),
    **dict.fromkeys(("json", "jsonl", "ipynb"), "json"),
    **dict.fromkeys(("yaml", "yml"), "yaml"),
    **dict.fromkeys(("bash", "sh", "shell", "zsh", "console"), "bash"),
    **dict.fromkeys(("bibtex", "bib"), "bibtex"),
    **dict.fromkeys(("toml",), "toml"),
    **dict.fromkeys(("diff", "patch"), "diff"),
}


def _highlight(code: str, language: str, formatter: Any) -> str:
    if max(map(len, code.splitlines()), default=0) > _LONGEST_LINE:
        language = "text"  # some lexers take time that grows with the square of a line
    return str(highlight(code, _lexer(language), formatter))


@lru_cache
def _lexer(language: str) -> Any:
    return get_lexer_by_name(language, stripnl=False)


_LONGEST_LINE = 2000
_FORMATTER = HtmlFormatter(cssclass="highlight", wrapcode=True)
_FILE_FORMATTER = HtmlFormatter(cssclass="highlight", wrapcode=True, linespans="L")


# ---- the list -------------------------------------------------------------------------------------------------------

_TAGS = set(
    re.findall(
        r"\w+",
        "a abbr b blockquote br caption code dd del details div dl dt em figcaption figure h1 h2 h3 h4 h5 h6 hr i img "
        "ins kbd li mark ol p pre q s samp small span strong sub summary sup table tbody td tfoot th thead tr u ul var",
    )
)
_HEADINGS = frozenset(("h1", "h2", "h3", "h4", "h5", "h6"))
_CELL = {"align", "colspan", "rowspan"}
_ATTRIBUTES = {
    "a": {"href", "title"},
    "abbr": {"title"},
    "img": {"src", "alt", "title", "width", "height", "align"},
    "td": _CELL,
    "th": _CELL,
    "ol": {"start"},
    "details": {"open"},
    "p": {"align"},
    "div": {"align"},
    **{heading: {"id", "align"} for heading in _HEADINGS},
}
_CLASSES = {"div": {"highlight"}, "span": set(STANDARD_TYPES.values()) - {""}}
_VALUES = {
    **dict.fromkeys(("width", "height"), re.compile(r"[0-9]{1,4}%?")),
    **dict.fromkeys(("colspan", "rowspan"), re.compile(r"[0-9]{1,2}")),
    "start": re.compile(r"[0-9]{1,9}"),
    "align": re.compile(r"left|center|right"),
    "open": re.compile(r""),
    "id": re.compile(rf"{_ANCHOR}[\w-]+"),
}
# What may be wider than the page is scrolled there, which keys can do only where they can go.
_SCROLLABLE = {tag: {"tabindex": "0"} for tag in ("pre", "table")}
_DROPPED = {"script", "style", "title", "template", "noscript", "iframe", "object", "textarea", "svg", "math", "select"}


def _clean(html: str, place: Place) -> str:
    def keep(tag: str, attribute: str, value: str) -> str | None:
        if attribute == "href":
            return _link(value.strip(), place)
        if attribute == "src":
            return _inside(value.strip(), place, "resolve")
        allowed = _VALUES.get(attribute)
        return value if allowed is None or allowed.fullmatch(value) else None

    return nh3.clean(
        html,
        tags=_TAGS,
        attributes=_ATTRIBUTES,
        allowed_classes=_CLASSES,
        clean_content_tags=_DROPPED,
        attribute_filter=keep,
        url_schemes={"http", "https", "mailto"},
        link_rel="nofollow noopener",
        set_tag_attribute_values=_SCROLLABLE,
    )
