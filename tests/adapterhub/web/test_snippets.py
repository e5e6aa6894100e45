"""Code to copy: it is valid, and holds names as data whatever stands in them."""

from __future__ import annotations

import ast
import inspect
import shlex
from typing import Any

import pytest

from adapterhub.web.snippets import snippets

ENDPOINT = "http://127.0.0.1:8090"
STRANGE = "x'); import os; os.system('true') #\n\"\"\"; $(reboot) `id`"


# Of the former library, as recorded.
def load_adapter(
    self: Any,
    adapter_name_or_path: str,
    config: Any = None,
    version: Any = None,
    model_name: Any = None,
    load_as: Any = None,
    custom_weights_loaders: Any = None,
    leave_out: Any = None,
    id2label: Any = None,
    set_active: bool = False,
    use_safetensors: bool = False,
) -> None: ...


LOAD_ADAPTER = inspect.signature(load_adapter)


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


def test_without_weights_there_is_nothing_to_load() -> None:
    assert snippets(info(bytes=0), endpoint=ENDPOINT) == []
    assert snippets(info(bytes=0, card={"versions": "x"}), endpoint=ENDPOINT) == []
    versions = [{"version": "1", "url": "https://a.org/1"}, {"version": 2.5, "url": STRANGE}, {"version": 3}]
    for default in (None, "2.5", "3"):
        found = snippets(info(bytes=0, card={"versions": versions, "default_version": default}), endpoint=ENDPOINT)
        if default is None:
            assert "https://a.org/1" in names_in(found[0].code)
        else:
            assert found == []


def test_the_former_library_is_told_to_look_for_safetensors() -> None:
    """Else it looks for `pytorch_adapter.bin` alone. It cannot stand beside this library, so its signature is tried."""
    (code,) = (one.code for one in snippets(info(), endpoint=ENDPOINT) if one.id == "upstream")
    (call,) = (
        node
        for node in ast.walk(ast.parse(code))
        if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_adapter"
    )
    bound = LOAD_ADAPTER.bind(None, *call.args, **{keyword.arg: keyword.value for keyword in call.keywords})
    assert ast.literal_eval(bound.arguments["use_safetensors"]) is True
