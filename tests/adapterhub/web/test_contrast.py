"""Colours of the style sheet against WCAG 2.2: 4.5 for text, 3 for lines that tell where something is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

import adapterhub.web

CSS = (Path(adapterhub.web.__file__).parent / "static" / "site.css").read_text(encoding="utf-8")
CODE = ("keyword", "string", "number", "name", "comment")
GROUNDS = ("page", "surface", "sunken")
TEXT = [
    *((ink, ground) for ink in ("text", "muted", "accent") for ground in (*GROUNDS, "code")),
    *((f"code-{kind}", ground) for kind in CODE for ground in ("code", "surface")),
    *((ink, ground) for ink in ("trained", "good", "warn", "bad") for ground in ("surface", f"{ink}-soft")),
    ("accent", "accent-soft"),
    ("on-accent", "accent"),
    ("text", "accent-soft"),
    ("muted", "accent-soft"),
    ("bad", "page"),
]  # fmt: skip
LINES = [("field-line", ground) for ground in ("page", "surface")] + [("accent", "page"), ("trained", "surface")]


def themes() -> dict[str, dict[str, str]]:
    """Variables of the light theme, of the dark one by preference, and of the dark one by choice."""
    blocks = re.findall(r"(:root[^{]*)\{([^}]*)\}", CSS)
    found = {selector.strip(): dict(re.findall(r"--([a-z-]+):\s*(#[0-9a-f]{6})", body)) for selector, body in blocks}
    return {name: found[":root"] | colours for name, colours in found.items()}


def luminance(colour: str) -> float:
    parts = [int(colour[index : index + 2], 16) / 255 for index in (1, 3, 5)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_as_the_standard_says() -> None:
    assert contrast("#ffffff", "#000000") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.01)


@pytest.mark.parametrize("theme", themes())
@pytest.mark.parametrize(("least", "pairs"), [(4.5, TEXT), (3.0, LINES)], ids=["text", "lines"])
def test_colours_can_be_told_apart(theme: str, least: float, pairs: list[tuple[str, str]]) -> None:
    colours = themes()[theme]
    low = {pair: contrast(colours[pair[0]], colours[pair[1]]) for pair in pairs}
    assert {pair: round(value, 2) for pair, value in low.items() if value < least} == {}


def test_both_dark_themes_are_the_same() -> None:
    dark = [colours for name, colours in themes().items() if name != ":root"]
    assert len(dark) == 2
    assert dark[0] == dark[1]
