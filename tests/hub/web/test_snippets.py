"""Code to copy: it is valid, and holds names as data whatever stands in them."""

from __future__ import annotations

import ast
import shlex
from typing import Any

import pytest

from adapterhub.web.snippets import snippets

ENDPOINT = "http://127.0.0.1:8090"
STRANGE = "x'); import os; os.system('true') #\n\"\"\"; $(reboot) `id`"


def info(**changes: Any) -> dict[str, Any]:
    """An adapter as the index tells of it."""
    row = {"full_name": "org/name", "library": "adapters", "base_model": "bert-base-uncased", "config": {}}
    return {**row, "pipeline_tag": None, "weights": "adapter.safetensors", **changes}


def names_in(code: str) -> set[object]:
    return {node.value for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Constant)}


@pytest.mark.parametrize("library", ["adapters", "peft"])
@pytest.mark.parametrize("revision", [None, "v1", STRANGE])
@pytest.mark.parametrize("base", ["bert-base-uncased", None, STRANGE])
def test_strange_names_stay_data(library: str, revision: str | None, base: str | None) -> None:
    for snippet in snippets(info(library=library, base_model=base), endpoint=ENDPOINT, revision=revision):
        if snippet.language == "python":
            constants = names_in(snippet.code)
            assert "org/name" in constants and ENDPOINT in constants
            assert (base or "<base model>") in constants
            assert revision is None or revision in constants
            assert "system" not in {
                node.attr for node in ast.walk(ast.parse(snippet.code)) if isinstance(node, ast.Attribute)
            }
        elif snippet.id == "hf":
            words = shlex.split(snippet.code)
            assert "org/name" in words
            assert revision is None or revision in words
        else:
            assert len(shlex.split(snippet.code)) == 4


def test_tabs_are_those_of_the_library() -> None:
    assert [one.id for one in snippets(info(), endpoint=ENDPOINT)] == ["adapters", "upstream", "hf", "curl"]
    tabs = [one.id for one in snippets(info(library="peft"), endpoint=ENDPOINT)]
    assert tabs == ["peft", "transformers", "hf", "curl"]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"config": {"task_type": "SEQ_CLS"}}, "AutoModelForSequenceClassification"),
        ({"pipeline_tag": "text-generation"}, "AutoModelForCausalLM"),
        ({}, "AutoModel"),
    ],
)
def test_the_class_of_the_base_model_fits_the_task(changes: dict[str, Any], expected: str) -> None:
    peft = snippets(info(library="peft", **changes), endpoint=ENDPOINT)[0]
    assert f"import {expected}\n" in peft.code
