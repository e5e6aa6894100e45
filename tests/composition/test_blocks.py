"""Are blocks the values they claim to be, and are meaningless set-ups refused?"""

from __future__ import annotations

import copy
import itertools
import json
import pickle
from dataclasses import FrozenInstanceError
from typing import Any

import pytest

from adapters.composition import (
    AdapterCompositionBlock,
    Average,
    BatchSplit,
    Fuse,
    MultiTask,
    Parallel,
    Route,
    Split,
    Stack,
    parse_composition,
    parse_heads_from_composition,
    validate_composition,
)
from adapters.composition.blocks import BLOCK_TYPES, MAX_DEPTH
from adapters.errors import CompositionError, HeadError

KEYWORDS: dict[str, dict[str, Any]] = {"Split": {"splits": 2}, "BatchSplit": {"batch_sizes": [1, 3]}}
EXAMPLES = [
    Stack("a"),
    Stack("a", Fuse("b", "c"), "d"),
    Fuse(Stack("a", "b"), "c"),
    Fuse("a", "b", name="mine"),
    Split("a", Average("b", "c"), splits=[3, 4]),
    BatchSplit("a", None, batch_sizes=[2, 1]),
    Parallel(BatchSplit("a", "b", batch_sizes=1), "c"),
    Average("a", "b", "c", weights=[1, 2, 5]),
    Average("a", "b", weights=[3, 4], normalize_weights=False),
    MultiTask("a", Stack("b", "c")),
    Route("a", None, Stack("b", "c")),
    Route("a", "b", by="sequence", top_k=1, name="mine"),
    Route("a", "b", by="arrow"),
]
VALID_NESTINGS = {
    "Stack": {"Fuse", "Split", "Parallel", "BatchSplit", "Average", "MultiTask", "Route"},
    "Fuse": {"Stack"},
    "Split": {"Split", "Stack", "BatchSplit", "Average", "Fuse", "Route"},
    "BatchSplit": {"Stack", "Split", "BatchSplit", "Average", "Fuse", "Route"},
    "Parallel": {"Stack", "Split", "BatchSplit", "Average", "Fuse", "MultiTask", "Route"},
    "Average": {"Stack", "Split", "BatchSplit", "Fuse"},
    "MultiTask": {"Stack", "Average", "Fuse", "Route"},
    "Route": {"Stack", "Split", "BatchSplit", "Fuse"},
}


def build(kind: str, *children: Any) -> AdapterCompositionBlock:
    return BLOCK_TYPES[kind](*children, **KEYWORDS.get(kind, {}))


@pytest.mark.parametrize("block", EXAMPLES, ids=repr)
def test_survives_json_pickle_and_copy(block: AdapterCompositionBlock) -> None:
    stored = json.loads(json.dumps(block.to_dict()))
    for twin in (AdapterCompositionBlock.from_dict(stored), pickle.loads(pickle.dumps(block)), copy.deepcopy(block)):
        assert twin == block and hash(twin) == hash(block) and repr(twin) == repr(block)
        assert twin.to_dict() == stored


def test_all_examples_differ() -> None:
    assert len(set(EXAMPLES)) == len(EXAMPLES)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Stack("a"), Stack("a", "b")),
        (Stack("a", "b"), Stack("b", "a")),
        (Stack("a", "b"), Parallel("a", "b")),
        (Split("a", "b", splits=1), Split("a", "b", splits=[1, 2])),
        (BatchSplit("a", "b", batch_sizes=1), BatchSplit("a", "b", batch_sizes=2)),
        (Average("a", "b"), Average("a", "b", weights=[1, 2])),
        (Fuse("a", "b"), Fuse("a", "b", name="c")),
        (Route("a", "b"), Route("a", "b", by="sequence")),
        (Route("a", "b"), Route("a", "b", top_k=1)),
        (Route("a", "b"), Route("a", "b", name="c")),
        (BatchSplit("a", None, batch_sizes=1), BatchSplit("a", "None", batch_sizes=1)),
    ],
)
def test_unequal(one: AdapterCompositionBlock, other: AdapterCompositionBlock) -> None:
    assert one != other and other != one


def test_immutable() -> None:
    block = Split("a", "b", splits=2)
    for name in ("children", "splits", "new"):
        with pytest.raises(FrozenInstanceError):
            setattr(block, name, 1)
    with pytest.raises(FrozenInstanceError):
        del block.children
    block.splits.append(5)
    assert block.splits == [2, 2]


def test_is_a_sequence() -> None:
    block = Stack("a", Fuse("b", "c"), "d")
    assert (len(block), block[0], block[-1], list(block)) == (3, "a", "d", ["a", Fuse("b", "c"), "d"])
    assert (block.first(), block.last(), block.flatten()) == ("a", "d", set("abcd"))
    assert (Fuse(Stack("a", "b"), "c").first(), Parallel("a", Stack("b", "c")).last()) == ("a", "c")
    assert repr(block) == "Stack[a, Fuse[b, c], d]"


def test_none_means_no_adapter() -> None:
    block = BatchSplit(None, "a", None, batch_sizes=1)
    assert (block.first(), block.last(), block.flatten()) == (None, None, {"a"})
    assert block.to_dict()["children"][0] == {"type": "single", "children": [None]}
    assert parse_composition(block) is block
    with pytest.raises(CompositionError, match="cannot be fused"):
        Fuse("a", None)


def test_parallel_channels() -> None:
    assert Stack("a", "b").parallel_channels == 1
    assert Parallel("a", "b", "c").parallel_channels == 3
    assert Stack("a", Parallel("b", "c")).parallel_channels == 2


def test_fuse_name() -> None:
    assert Fuse("a", Stack("b", "c")).name == "a,c"
    assert Fuse("a", "b", name="mine").to_dict()["kwargs"] == {"name": "mine"}
    assert "kwargs" not in Fuse("a", "b", name="a,b").to_dict()


def test_route() -> None:
    assert Route("a", Stack("b", "c"), None).name == "a,c,"
    assert Route("a", "b", name="mine", top_k=1).to_dict()["kwargs"] == {"by": "token", "top_k": 1, "name": "mine"}
    assert "name" not in Route("a", "b", name="a,b").to_dict()["kwargs"]
    assert (Route("a", "b").owned_name, Route("a", "b", by="arrow").owned_name) == ("a,b", None)
    for top_k in (0, 3, -1, True, 1.5, "1"):
        with pytest.raises(CompositionError, match=r"top_k is .* from 1 to 2"):
            Route("a", "b", top_k=top_k)  # type: ignore[arg-type]
    for by in ("tokens", "xlora", None):
        with pytest.raises(CompositionError, match=r"by is .*token, sequence, arrow"):
            Route("a", "b", by=by)  # type: ignore[arg-type]
    for children in ((), (None, None)):
        with pytest.raises(CompositionError, match="at least one"):
            Route(*children)
    with pytest.raises(CompositionError, match="name is ''"):
        Route("a", name="")


def test_average_weights() -> None:
    assert Average("a", "b", "c", weights=[1, 2, 5]).weights == [1 / 8, 2 / 8, 5 / 8]
    assert Average("a", "b").weights == [0.5, 0.5]
    raw = Average("a", "b", weights=[3, 4], normalize_weights=False)
    assert AdapterCompositionBlock.from_dict(raw.to_dict()).weights == [3, 4]
    for weights in ([1], [1, 2, 3], ["x", 1], [1, -1], 3):
        with pytest.raises(CompositionError, match="weights"):
            Average("a", "b", weights=weights)  # type: ignore[arg-type]


@pytest.mark.parametrize("sizes", [0, -1, [1], [1, 2, 3], [1, 0], 1.5, [1, 1.0], "ab", True, [True, 1], None])
def test_bad_sizes(sizes: Any) -> None:
    with pytest.raises(CompositionError, match="splits"):
        Split("a", "b", splits=sizes)
    if sizes == [1, 0]:  # a child may have no rows
        assert BatchSplit("a", "b", batch_sizes=sizes).batch_sizes == sizes
        return
    with pytest.raises(CompositionError, match="batch_sizes"):
        BatchSplit("a", "b", batch_sizes=sizes)


@pytest.mark.parametrize("child", ["", 1, ["a"], ("a", "b"), b"a", True])
def test_bad_children(child: Any) -> None:
    with pytest.raises(CompositionError):
        Stack("a", child)


@pytest.mark.parametrize(("outer", "inner"), list(itertools.product(VALID_NESTINGS, VALID_NESTINGS)))
def test_nestings(outer: str, inner: str) -> None:
    block = build(outer, build(inner, "a", "b"), "c")
    if inner in VALID_NESTINGS[outer]:
        assert parse_composition(block) is block
    else:
        with pytest.raises(CompositionError, match="cannot contain"):
            validate_composition(block)


def test_only_stacks_below_two_blocks() -> None:
    assert validate_composition(Stack("a", Parallel(Stack("a", "b"), "c"))) is None
    for deep in (BatchSplit("b", "c", batch_sizes=1), Average("b", "c")):
        with pytest.raises(CompositionError, match="too deep"):
            parse_composition(Stack("a", Parallel(Stack("a", "b"), deep)))


def test_nesting_is_bounded() -> None:
    block: Any = "a"
    stored: dict[str, Any] = {"type": "single", "children": ["a"]}
    for _ in range(MAX_DEPTH):
        block = Stack(block)
    for _ in range(500):
        stored = {"type": "Stack", "children": [stored]}
    with pytest.raises(CompositionError):
        Stack(block)
    with pytest.raises(CompositionError):
        AdapterCompositionBlock.from_dict(stored)


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"type": "Stack"},
        {"type": "Pile", "children": []},
        {"type": "single", "children": []},
        {"type": "single", "children": [3]},
        {"type": "Stack", "children": ["a"]},
        {"type": "Stack", "children": [], "kwargs": {"name": "x"}},
        {"type": "Split", "children": []},
        "a",
    ],
)
def test_bad_stored_blocks(stored: Any) -> None:
    with pytest.raises(CompositionError):
        AdapterCompositionBlock.from_dict(stored)


def test_parse() -> None:
    assert parse_composition("a") == Stack("a")
    assert parse_composition("a", level=1) == "a"
    assert parse_composition(None) is None and parse_composition("") is None and parse_composition([]) is None
    with pytest.warns(FutureWarning, match="deprecated"):
        assert parse_composition(["a", ["b", "c"]]) == Stack("a", Fuse("b", "c"))
    for odd in (3, ("a", "b"), {"a"}):
        with pytest.raises(TypeError, match="not an adapter set-up"):
            parse_composition(odd)


@pytest.mark.parametrize(
    ("setup", "heads"),
    [
        ("a", "a"),
        (None, None),
        (Stack("a", "b"), "b"),
        (Parallel("a", Stack("b", "c")), ["a", "c"]),
        (Stack("a", Parallel("b", "c")), ["b", "c"]),
        (BatchSplit("a", Stack("b", "c"), batch_sizes=[2, 1]), BatchSplit("a", "c", batch_sizes=[2, 1])),
        (BatchSplit("a", None, batch_sizes=1), None),
        (Fuse("a", "b"), None),
        (Stack("a", Average("b", "c")), None),
    ],
)
def test_heads(setup: Any, heads: Any) -> None:
    assert parse_heads_from_composition(setup) == heads
    assert parse_heads_from_composition(setup, ["a", "b", "c"]) == heads


def test_missing_heads() -> None:
    assert parse_heads_from_composition("a", ["b"]) is None
    with pytest.raises(HeadError, match="'b'"):
        parse_heads_from_composition(BatchSplit("a", "b", batch_sizes=1), ["a"])
