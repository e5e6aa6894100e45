"""Drawings of where adapters sit: golden files, and facts that are read back from the drawing.

`ADAPTERHUB_REGENERATE=1 pytest tests/adapterhub/web/test_drawing.py` writes the golden files anew; look at them then.
"""

import os
from pathlib import Path
from xml.etree import ElementTree

import pytest

from adapterhub.web.drawing import placement_svg
from adapterhub.web.placement import left_out, marks, placement_text

from .configs_of_drawings import NAMED, OTHERS

GOLDEN = Path(__file__).parent / "golden"
ALL = {**NAMED, **OTHERS}
SVG = "{http://www.w3.org/2000/svg}"


def drawn(name: str) -> str:
    return placement_svg(ALL[name], layers=12, model_type="bert")


@pytest.mark.parametrize("name", ALL)
def test_a_drawing_is_the_golden_one(name: str) -> None:
    path = GOLDEN / f"{name}.svg"
    if os.environ.get("ADAPTERHUB_REGENERATE"):
        path.write_text(drawn(name), encoding="utf-8")
    assert drawn(name) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize("name", ALL)
def test_a_drawing_has_a_text_for_those_who_cannot_see_it_and_no_style_of_its_own(name: str) -> None:
    root = ElementTree.fromstring(drawn(name))
    assert root.get("role") == "img"
    assert root.findtext(f"{SVG}title") == "Where the adapter sits"
    assert root.findtext(f"{SVG}desc") == placement_text(ALL[name], layers=12)
    assert not [node for node in root.iter() if node.get("style") or node.tag.endswith(("style", "script"))]


def sites(name: str) -> set[tuple[str, str]]:
    return {(mark.site, mark.kind) for mark in marks(ALL[name])}


# Read from the papers' figures, not from the code.
@pytest.mark.parametrize(
    ("name", "expected"),
    {
        "seq_bn": {("ffn", "bottleneck")},
        "double_seq_bn": {("attention", "bottleneck"), ("ffn", "bottleneck")},
        "seq_bn_inv": {("ffn", "bottleneck"), ("embeddings", "invertible")},
        "par_bn": {("ffn", "parallel")},
        "lora": {("q", "lowrank"), ("v", "lowrank")},
        "ia3": {("k", "scale"), ("v", "scale"), ("intermediate", "scale")},
        "prefix_tuning": {("keys", "prefix")},
        "prompt_tuning": {("tokens", "prompt")},
        "loreft": {("layer", "reft")},
        "mam": {("keys", "prefix"), ("ffn", "parallel")},
        "unipelt": {("keys", "prefix"), ("ffn", "bottleneck"), ("q", "lowrank"), ("v", "lowrank")},
        "peft_lora": {("q", "lowrank"), ("v", "lowrank"), ("o", "lowrank"), ("output", "lowrank")},
        "peft_ia3": {("k", "scale"), ("v", "scale"), ("output", "scale")},
        "peft_prefix_tuning": {("keys", "prefix")},
        "unknown": set(),
        "placed": {("o", "lowrank"), ("intermediate", "lowrank"), ("output", "lowrank")},
        "inward": {("k", "scale"), ("output", "scale")},
        "by_path": {("q", "lowrank")},
    }.items(),
)
def test_an_adapter_is_where_its_paper_says(name: str, expected: set[tuple[str, str]]) -> None:
    assert sites(name) == expected


def test_layers_that_are_left_out_are_hollow() -> None:
    assert left_out(ALL["leave_out"], 12) == (12, frozenset((0, 1, 2, 3, 11)))
    assert left_out(ALL["reft_some_layers"], 12) == (12, frozenset(range(12)) - {2, 5, 8})
    assert left_out(ALL["leave_out"], None) == (12, frozenset((0, 1, 2, 3, 11)))
    assert left_out(ALL["seq_bn"], None) == (None, frozenset())
    strip = [node for node in ElementTree.fromstring(drawn("leave_out")).iter(f"{SVG}rect") if node.get("x") == "426"]
    assert [node.get("class") for node in strip].count("drawing-off") == 5
    assert len(strip) == 12


def test_a_union_leaves_out_only_what_all_members_leave_out() -> None:
    config = {
        "architecture": "union",
        "configs": [{"leave_out": [0, 1]}, {"architecture": "lora", "leave_out": [1, 2]}],
    }
    assert left_out(config, 3) == (3, frozenset((1,)))


def test_the_text_names_sizes_and_places() -> None:
    assert placement_text(ALL["leave_out"], layers=12) == (
        "Each layer has a bottleneck (d/16) after the multi-head attention and the feed-forward network. "
        "Left out: layers 0–3, 11."
    )


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"architecture": "union", "configs": None},
        {"architecture": "union", "configs": [1, "x"]},
        {"output_adapter": True, "reduction_factor": "<script>"},
        {"architecture": "lora", "r": "<script>alert(1)</script>", "attn_matrices": ["q"]},
        {"architecture": "reft", "r": None, "prefix_positions": "many"},
        {"architecture": "lora", "attn_matrices": 5},
        {"peft_type": "LORA", "target_modules": 5},
        {"architecture": ["lora"]},
        {"architecture": "lora", "places": 5},
        {"architecture": "lora", "places": ["[", 3, None, "*" * 10**5, "ffn.up"]},
        {"peft_type": "LORA", "target_modules": "all-linear"},
        {"peft_type": "LORA", "target_modules": {"q": 1}},
        {"leave_out": ["x", -1, 10**9]},
    ],
)
def test_a_strange_config_does_no_harm(config: dict[str, object]) -> None:
    svg = placement_svg(config, layers=4, model_type="<b>")
    ElementTree.fromstring(svg)
    assert "<script" not in svg and "<b>" not in svg
