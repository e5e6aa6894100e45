"""A drawing of where an adapter sits in a transformer layer.

What the base model brings is grey, what is trained has the colour of `trained`. Colours stand as attributes, so that a
file shows them everywhere; a page's style sheet replaces them through the classes `drawing-*`.
"""

from __future__ import annotations

from collections.abc import Iterable
from html import escape

from .placement import ONCE, Config, Mark, left_out, marks, placement_text

__all__ = ["placement_svg", "placement_text"]

_WIDTH, _HEIGHT = 460, 640
_CENTRE, _LEFT, _RIGHT = 190, 70, 310  # of the blocks
_SIDE = 356  # centre of what stands beside a block
_STRIP = 426  # left edge of the strip of layers

# Rows, from the output at the top to the tokens at the bottom: (top, height).
_ROWS = {
    "output": (12, 30),
    "inverse": (52, 26),
    "layer": (100, 30),
    "norm2": (142, 24),
    "after ffn": (176, 36),
    "ffn": (222, 88),
    "norm1": (340, 24),
    "after attention": (372, 36),
    "attention": (416, 104),
    "embeddings": (590, 28),
    "invertible": (552, 26),
}
_FRAME = (88, 448)  # top and height of the layer
_LINEAR = {  # centres of the linear layers inside the blocks
    "o": (_CENTRE, 454),
    "q": (112, 487),
    "k": (186, 487),
    "v": (260, 487),
    "output": (_CENTRE, 258),
    "intermediate": (_CENTRE, 290),
}
_NAMES = {"q": "Q", "k": "K", "v": "V", "o": "O", "output": "down", "intermediate": "up"}
_FONT = 'font-family="system-ui, -apple-system, Segoe UI, Roboto, Liberation Sans, Arial, sans-serif"'


def placement_svg(
    config: Config, *, layers: int | None = None, model_type: str | None = None, title: str = "Where the adapter sits"
) -> str:
    """The drawing of a config.

    Args:
        config: of this library or of PEFT.
        layers: how many layers the base model has, if known.
        model_type: of the base model, such as `bert`.
        title: for those who cannot see it.
    """
    pieces = marks(config)
    known, out = left_out(config, layers)
    if all(mark.kind in ONCE for mark in pieces):
        out = frozenset(range(known or 0))
    body = [
        *_wires(),
        *_blocks(pieces),
        *(line for mark in pieces for line in _piece(mark)),
        *_notes(pieces),
        *_tokens(pieces),
        *_strip(known, out, model_type),
    ]
    lines = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" {_FONT} font-size="13">\n'
        f"<title>{escape(title)}</title>\n<desc>{escape(placement_text(config, layers=layers))}</desc>\n"
        f"{lines}\n</svg>\n"
    )


# ---- shapes ---------------------------------------------------------------------------------------------------------

_STYLE = {
    "box": 'class="drawing-box" fill="#eef1f1" stroke="#7d8a94"',
    "linear": 'class="drawing-linear" fill="#ffffff" stroke="#7d8a94"',
    "frame": 'class="drawing-layer" fill="none" stroke="#7d8a94" stroke-dasharray="5 5"',
    "wire": 'class="drawing-wire" fill="none" stroke="#7d8a94" stroke-width="1.5"',
    "tip": 'class="drawing-tip" fill="#7d8a94"',
    "off": 'class="drawing-off" fill="none" stroke="#7d8a94" stroke-dasharray="2 2"',
    "new": 'class="drawing-new" fill="#fde8dc" stroke="#b83c09" stroke-width="1.8" stroke-linejoin="round"',
    "new-wire": 'class="drawing-new-wire" fill="none" stroke="#b83c09" stroke-width="1.8"',
    "text": 'class="drawing-text" fill="#17212b"',
    "note": 'class="drawing-note" fill="#53616d" font-size="12"',
    "new-text": 'class="drawing-new-text" fill="#b83c09" font-size="12" font-weight="600"',
}


def _rect(x: float, y: float, width: float, height: float, style: str = "box", radius: float = 7) -> str:
    return f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{height:g}" rx="{radius:g}" {_STYLE[style]}/>'


def _text(x: float, y: float, words: str, style: str = "text", anchor: str = "middle") -> str:
    return f'<text x="{x:g}" y="{y + 4.5:g}" text-anchor="{anchor}" {_STYLE[style]}>{escape(words)}</text>'


def _path(data: str, style: str = "wire") -> str:
    return f'<path d="{data}" {_STYLE[style]}/>'


def _tip(x: float, y: float) -> str:
    """The tip of an arrow that points up."""
    return _path(f"M{x:g} {y:g}l4.5 7.5h-9z", "tip")


def _plus(x: float, y: float, sign: str = "+", style: str = "new") -> str:
    cross = f"M{x - 4:g} {y:g}h8M{x:g} {y - 4:g}v8" if sign == "+" else f"M{x - 3:g} {y - 3:g}l6 6m0 -6l-6 6"
    wire = "new-wire" if style == "new" else "wire"
    return f'<circle cx="{x:g}" cy="{y:g}" r="8.5" {_STYLE[style]}/>{_path(cross, wire)}'


def _hourglass(x: float, y: float, width: float, height: float, neck: float) -> str:
    """Down to fewer dimensions, and up again."""
    outer, inner, half = width / 2, width * neck / 2, height / 2
    right = f"L{x + outer:g} {y - half:g}L{x + inner:g} {y:g}L{x + outer:g} {y + half:g}"
    left = f"L{x - outer:g} {y + half:g}L{x - inner:g} {y:g}Z"
    return _path(f"M{x - outer:g} {y - half:g}{right}{left}", "new")


# ---- the base model -------------------------------------------------------------------------------------------------


def _wires() -> Iterable[str]:
    yield _rect(22, _FRAME[0], 382, _FRAME[1], "frame", 14)
    yield _path(f"M{_CENTRE} 590V46")
    for bottom, target in ((530, 352), (327, 154)):  # around attention and feed-forward
        yield _path(f"M{_CENTRE} {bottom}H56a12 12 0 0 1 -12 -12V{target + 12}a12 12 0 0 1 12 -12H{_LEFT}")
        yield _path(f"M{_LEFT} {target}l-7.5 -4.5v9z", "tip")
    yield _tip(_CENTRE, 43)


def _blocks(pieces: list[Mark]) -> Iterable[str]:
    for row, label in (
        ("output", "Output"),
        ("norm2", "Add & norm"),
        ("norm1", "Add & norm"),
        ("embeddings", "Embeddings"),
    ):
        top, height = _ROWS[row]
        yield _rect(_LEFT, top, _RIGHT - _LEFT, height)
        yield _text(_CENTRE, top + height / 2, label)
    for row, label in (("ffn", "Feed forward"), ("attention", "Multi-head attention")):
        top, height = _ROWS[row]
        yield _rect(_LEFT, top, _RIGHT - _LEFT, height)
        yield _text(_CENTRE, top + 13, label)
    lowrank = {mark.site for mark in pieces if mark.kind == "lowrank"}
    for site, (x, y) in _LINEAR.items():
        half = 26 if site in ("output", "intermediate") else 13
        shift = -16 if site in lowrank else 0
        yield _rect(x + shift - half, y - 12, 2 * half, 24, "linear", 5)
        yield _text(x + shift, y, _NAMES[site], "note")


# ---- what is trained ------------------------------------------------------------------------------------------------


def _piece(mark: Mark) -> Iterable[str]:
    draw = {
        "bottleneck": _draw_bottleneck,
        "parallel": _draw_parallel,
        "lowrank": _draw_lowrank,
        "scale": _draw_scale,
        "prefix": _draw_prefix,
        "reft": _draw_reft,
        "invertible": _draw_invertible,
    }.get(mark.kind)
    return draw(mark) if draw else ()


def _draw_bottleneck(mark: Mark) -> Iterable[str]:
    top, height = _ROWS[f"after {mark.site}"]
    yield _hourglass(_CENTRE, top + height / 2, 110, height - 4, mark.neck)
    yield _text(_CENTRE + 66, top + height / 2, mark.note, "new-text", "start")


def _draw_parallel(mark: Mark) -> Iterable[str]:
    top, height = _ROWS[mark.site]
    middle = top + height / 2
    above, below = top - 24, top + height + (12 if mark.site == "ffn" else 10)
    yield _path(
        f"M{_CENTRE} {below}H{_SIDE - 10}a10 10 0 0 0 10 -10V{above + 10}a10 10 0 0 0 -10 -10H{_CENTRE + 9}", "new-wire"
    )
    yield _hourglass(_SIDE, middle, 62, 48, mark.neck)
    yield _plus(_CENTRE, above)
    first, _, rest = mark.note.partition(" · ")
    yield _text(_SIDE + 12, middle + 38, first, "new-text", "start")
    yield _text(_SIDE + 12, middle - 38, rest, "new-text", "start")


def _draw_lowrank(mark: Mark) -> Iterable[str]:
    x, y = _LINEAR[mark.site]
    wide = mark.site in ("output", "intermediate")
    yield _hourglass(x + (28 if wide else 16), y, 24, 22, 0.3)


def _draw_scale(mark: Mark) -> Iterable[str]:
    if mark.site.startswith("norm"):
        top, height = _ROWS[mark.site]
        yield _plus(_RIGHT - 14, top + height / 2, "×")
        return
    x, y = _LINEAR[mark.site]
    yield _plus(x + (26 if mark.site in ("output", "intermediate") else 13), y - 9, "×")


def _draw_prefix(mark: Mark) -> Iterable[str]:
    """Tokens that come in from the right, to keys and values."""
    (key, y), (value, _) = _LINEAR["k"], _LINEAR["v"]
    bottom = y + 12
    yield _path(f"M{_RIGHT + 12} 510H{key + 6}a6 6 0 0 1 -6 -6V{bottom}M{value} 510V{bottom}", "new-wire")
    for index in range(3):
        yield _rect(_RIGHT + 12 + 17 * index, 503, 14, 14, "new", 3)
    for part, row in zip(mark.note.split(" · "), (526, 492), strict=False):
        yield _text(_RIGHT + 36, row, part, "new-text")


def _draw_reft(mark: Mark) -> Iterable[str]:
    top, height = _ROWS["layer"]
    yield _rect(_LEFT, top, _RIGHT - _LEFT, height, "new")
    yield _text(_LEFT + 14, top + height / 2, "ReFT", "new-text", "start")
    first, last = (min(count, 3) for count in mark.positions)
    for index in range(8):
        style = "new" if index < first or index >= 8 - last else "off"
        x, y = _LEFT + 62 + 21.0 * index, top + height / 2 - 7
        yield _rect(x, y, 14, 14, style, 3)
        if style == "new":
            yield f'<circle cx="{x + 7:g}" cy="{y + 7:g}" r="3" class="drawing-new-text" fill="#b83c09"/>'
    yield _text(_RIGHT + 10, top + height / 2, mark.note, "new-text", "start")


def _draw_invertible(mark: Mark) -> Iterable[str]:
    for row, label in (("invertible", mark.note), ("inverse", f"{mark.note}⁻¹")):
        top, height = _ROWS[row]
        yield _rect(_LEFT + 50, top, _RIGHT - _LEFT - 100, height, "new", 13)
        yield _text(_CENTRE, top + height / 2, f"{label} invertible" if row == "invertible" else label, "new-text")


def _notes(pieces: list[Mark]) -> Iterable[str]:
    """Sizes of low-rank updates, once per block."""
    for sites, row in ((("q", "k", "v", "o"), 446), (("intermediate", "output"), 274)):
        notes = {mark.note for mark in pieces if mark.kind == "lowrank" and mark.site in sites}
        for index, part in enumerate(" · ".join(sorted(notes)).split(" · ")):
            yield from [_text(_RIGHT + 10, row - 10 + 16 * index, part, "new-text", "start")] if part else []


def _tokens(pieces: list[Mark]) -> Iterable[str]:
    prompt = next((mark for mark in pieces if mark.kind == "prompt"), None)
    count = 11
    for index in range(count):
        style = "new" if prompt and index < 4 else "off"
        yield _rect(_LEFT + 2 + index * (_RIGHT - _LEFT) / count, 623, 14, 11, style, 3)
    yield _text(_RIGHT + 10, 629, prompt.note if prompt else "tokens", "new-text" if prompt else "note", "start")


def _strip(layers: int | None, out: frozenset[int], model_type: str | None) -> Iterable[str]:
    """One square per layer, the first at the bottom; those without the adapter are hollow."""
    label = model_type or "layers"
    if not layers or layers > 200:
        yield _text(396, 104, "× N", "note", "end")
        return
    yield _text(396, 104, f"× {layers}", "note", "end")
    step = min(40.0, _FRAME[1] / layers)
    size = step * 0.8
    bottom = _FRAME[0] + _FRAME[1]
    for index in range(layers):
        y = round(bottom - step * (index + 1) + (step - size) / 2, 2)
        yield _rect(_STRIP, y, 16, round(size, 2), "off" if index in out else "new", min(4, size / 4))
        if index in (0, layers - 1):
            yield _text(_STRIP + 20, y + size / 2, str(index), "note", "start")
    yield _text(_STRIP + 8, bottom + 14, label[:12], "note")
