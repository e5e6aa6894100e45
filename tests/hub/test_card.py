"""Does a card hold the facts, in metadata that tools read and in code that runs?"""

from __future__ import annotations

import ast
import re
from dataclasses import replace
from typing import Any

import pytest
from huggingface_hub import ModelCard

from adapters.errors import ConfigError
from adapters.hub.card import CardInfo, pipeline, render
from adapters.hub.upload import card_entries

PLAIN = CardInfo("org/name", "a")
FULL = CardInfo(
    repo_id="org/name",
    name="a",
    model_name="bert-base-uncased",
    model_type="bert",
    model_class="BertAdapterModel",
    method="lora",
    config={"architecture": "lora", "r": 8, "attn_matrices": ["q", "v"], "init": "a|b\nc", "none": None},
    head={"config": {"head_type": "classification", "num_labels": 3}},
    parameters=1234567,
    versions={"adapters": "2.0.0", "torch": "2.13.0"},
    endpoint="http://hub.example",
    task="sentiment/sst-2",
    datasets=["glue"],
    language=["no", "en"],
    license="apache-2.0",
    metrics=["accuracy"],
    tags=["mine"],
    description="Made for a test.",
    architecture_training="Three epochs.",
    results=[
        {"dataset": "glue", "name": "GLUE", "config": "sst2", "split": "test", "metric": "accuracy", "value": 0.9}
    ],
    citation="@article{key, title={T}}",
)


def test_metadata() -> None:
    data: Any = ModelCard(render(FULL)).data
    assert data.tags == ["adapter-transformers", "adapters", "adapterhub:sentiment/sst-2", "bert", "mine"]
    assert (data.base_model, data["base_model_relation"]) == ("bert-base-uncased", "adapter")
    assert (data.license, data.language, data.datasets) == ("apache-2.0", ["no", "en"], ["glue"])
    assert (data.metrics, data.pipeline_tag) == (["accuracy"], "text-classification")
    result = data.eval_results[0]
    assert (result.dataset_type, result.dataset_name, result.dataset_config) == ("glue", "GLUE", "sst2")
    assert (result.dataset_split, result.metric_type, result.metric_value) == ("test", "accuracy", 0.9)


def test_a_card_of_little() -> None:
    card = render(PLAIN)
    data = ModelCard(card).data.to_dict()
    assert data == {"library_name": "adapter-transformers", "tags": ["adapter-transformers", "adapters"]}
    assert "None" not in card
    assert "Evaluation results" not in card
    assert "adapters.hub.use" not in card


def test_text() -> None:
    card = render(FULL)
    for fact in (
        "# Adapter `a` for bert-base-uncased",
        "with a prediction head for classification (3 labels).",
        "[glue](https://huggingface.co/datasets/glue)",
        "Made for a test.",
        "| trained parameters | 1,234,567 |",
        "| saved with | adapters 2.0.0, torch 2.13.0 |",
        "| r | `8` |",
        r"| init | `a\|b c` |",
        "Three epochs.",
        "| GLUE | glue | sst2 | test | accuracy | 0.9 |",
        "```bibtex\n@article{key, title={T}}\n```",
    ):
        assert fact in card
    assert "| none |" not in card


def test_results_and_citation_as_text() -> None:
    card = render(replace(FULL, results="It is good.", citation="Somebody, 2026."))
    assert "## Evaluation results\n\nIt is good." in card
    assert "## Citation\n\nSomebody, 2026." in card
    assert "model-index" not in card


@pytest.mark.parametrize("name", ["bert", 'a"b', "a'b", "a\\b", "`` ` ```", "ü"])
def test_the_snippet_is_code(name: str) -> None:
    card = render(replace(FULL, model_name=name, repo_id="org/x"))
    (code,) = re.findall(r"^(`{3,})python\n(.*?)\n\1$", card, re.M | re.S)
    literals = [node.value for node in ast.walk(ast.parse(code[1])) if isinstance(node, ast.Constant)]
    assert literals == ["http://hub.example", name, "org/x", True]


def test_a_set_up() -> None:
    card = render(replace(PLAIN, name="Stack[a, b]", is_setup=True))
    assert "# Set-up `Stack[a, b]`" in card
    assert 'model.load_adapter_setup("org/name", set_active=True)' in card


def test_options_of_a_union_are_told_apart() -> None:
    card = render(replace(PLAIN, config={"architecture": "union", "configs": [{"r": 1}, {"r": 2}]}))
    assert "| 0.r | `1` |\n| 1.r | `2` |" in card


@pytest.mark.parametrize(
    ("head", "tag"),
    [
        (None, None),
        ({"config": {"head_type": "tagging"}}, "token-classification"),
        ({"config": {"head_type": "of my own"}}, None),
        ({"config": None, "model_class": "GPT2LMHeadModel"}, "text-generation"),
        ({"config": None, "model_class": "BertForMaskedLM"}, "fill-mask"),
        ({"config": None, "model_class": "BertModel"}, None),
    ],
)
def test_what_a_head_does(head: Any, tag: str | None) -> None:
    assert pipeline(head) == tag


def test_what_people_tell() -> None:
    assert card_entries({"language": "de", "license": None}, "glue") == {"language": ["de"], "datasets": ["glue"]}
    assert card_entries(None) == {}
    with pytest.raises(ConfigError, match="Did you mean 'license'"):
        card_entries({"licence": "mit"})
    with pytest.raises(ConfigError, match="'dataset', 'metric', 'value'"):
        card_entries({"results": [{"metric": "f1"}]})
