"""Do prediction heads come back, by name, under another name, and from plain classes into flexible heads?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

import adapters
from adapters.checkpoint.layout import ADAPTER, HEAD
from adapters.errors import CheckpointError, HeadError
from adapters.heads.static import CLASSES
from tests.heads.models import PAIRS, add_head, inputs_for, tiny, tiny_config
from tests.tiny import randomised


def head_values(model: Any, name: str) -> dict[str, Any]:
    return dict(model.heads[name].state_dict())


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


@pytest.mark.parametrize(("kind", "head_type"), PAIRS)
def test_every_head(kind: str, head_type: str, tmp_path: Path) -> None:
    model = tiny(kind)
    add_head(model, head_type)
    randomised(model.heads["h"])
    model.save_head(tmp_path, "h")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([HEAD.config, HEAD.safetensors])
    data = json.loads((tmp_path / HEAD.config).read_text())
    assert (data["name"], data["model_class"], data["config"]) == ("h", type(model).__name__, model.heads["h"].config)
    fresh = tiny(kind)
    state = torch.random.get_rng_state()
    assert fresh.load_head(tmp_path) == "h"
    assert torch.equal(torch.random.get_rng_state(), state)
    assert fresh.active_head == "h"
    assert same(head_values(fresh, "h"), head_values(model, "h"))
    assert fresh.load_head(tmp_path, load_as="other", set_active=False) == "other"
    assert fresh.active_head == "h"
    assert same(head_values(fresh, "other"), head_values(model, "h"))
    given = inputs_for(model, head_type)
    for one, other in zip(model(**given).to_tuple(), fresh(**given).to_tuple()):
        assert not isinstance(one, torch.Tensor) or torch.equal(one, other)


@pytest.mark.parametrize("use_safetensors", [True, False])
def test_with_an_adapter(use_safetensors: bool, tmp_path: Path) -> None:
    model = tiny("bert")
    for name in ("a", "a2"):
        model.add_adapter(name, config="lora")
        model.add_classification_head(name, num_labels=2, id2label={0: "no", 1: "yes"})
    model.save_adapter(tmp_path, "a", meta_dict={"note": 1}, use_safetensors=use_safetensors)
    assert json.loads((tmp_path / HEAD.config).read_text())["note"] == 1
    for kwargs, heads, active in (
        ({}, ["a"], None),
        ({"load_as": "b", "set_active": True}, ["b"], "b"),
        ({"with_head": False}, [], None),
    ):
        fresh = tiny("bert")
        name = fresh.load_adapter(tmp_path, **kwargs)
        assert (list(fresh.heads), fresh.active_head) == (heads, active)
        if heads:
            assert same(head_values(fresh, name), head_values(model, "a"))
            assert fresh.get_labels(name) == ["no", "yes"]
    model.save_adapter(tmp_path / "no", "a", with_head=False)
    assert not (tmp_path / "no" / HEAD.config).exists()


def test_the_head_of_a_setup_without_one(tmp_path: Path) -> None:
    model = tiny("bert")
    model.add_adapter("a", config="lora")
    add_head(model, "tagging", "other")
    model.save_adapter(tmp_path, "a")
    assert not (tmp_path / HEAD.config).exists()


def test_labels_can_be_given(tmp_path: Path) -> None:
    model = tiny("bert")
    add_head(model, "classification")
    model.save_head(tmp_path, "h")
    fresh = tiny("bert")
    fresh.load_head(tmp_path, id2label={0: "x", 1: "y", 2: "z"})
    assert fresh.get_labels() == ["x", "y", "z"]
    assert fresh.config.label2id == {"x": 0, "y": 1, "z": 2}


def test_only_the_head_itself_is_saved_and_loaded(tmp_path: Path) -> None:
    model = tiny("bert")
    for name in ("h", "h2"):
        add_head(model, "classification", name)
    model.save_head(tmp_path, "h")
    tensors = load_file(tmp_path / HEAD.safetensors)
    assert all(key.startswith("heads.h.") for key in tensors)
    more = {key.replace("heads.h.", "heads.h2."): tensor.clone() for key, tensor in tensors.items()}
    save_file({**tensors, **more}, tmp_path / HEAD.safetensors)
    fresh = tiny("bert")
    fresh.load_head(tmp_path)
    assert list(fresh.heads) == ["h"]


def test_which_head(tmp_path: Path) -> None:
    model = tiny("bert")
    with pytest.raises(HeadError, match="Which head"):
        model.save_head(tmp_path)
    for name in ("h", "i"):
        add_head(model, "classification", name)
    model.save_head(tmp_path)
    assert json.loads((tmp_path / HEAD.config).read_text())["name"] == "i"
    model.active_head = ["h", "i"]
    with pytest.raises(HeadError, match="Which head"):
        model.save_head(tmp_path)
    with pytest.raises(HeadError, match="no head 'x'"):
        model.save_head(tmp_path, "x")


def test_all_heads(tmp_path: Path) -> None:
    model = tiny("bert")
    add_head(model, "tagging", "t")
    add_head(model, "classification", "c")
    model.save_all_heads(tmp_path)
    fresh = tiny("bert")
    for name in "tc":
        fresh.load_head(tmp_path / name)
        assert same(head_values(fresh, name), head_values(model, name))


def test_a_head_that_does_not_fit(tmp_path: Path) -> None:
    model = tiny("bert")
    add_head(model, "classification")
    model.save_head(tmp_path, "h")
    tensors = load_file(tmp_path / HEAD.safetensors)
    key = "heads.h.4.weight"
    changes: list[dict[str, Any]] = [
        {k: t for k, t in tensors.items() if k != key},
        {**tensors, key: torch.ones(2, 32)},
        {**tensors, "heads.h.9.weight": torch.ones(1)},
    ]
    fresh = tiny("bert")
    add_head(fresh, "tagging")
    add_head(fresh, "tagging", "other")
    before = fresh.heads["h"], fresh.active_head, fresh.config.id2label, dict(fresh.config.prediction_heads)
    for change in changes:
        save_file(change, tmp_path / HEAD.safetensors)
        for load_as in (None, "new"):
            with pytest.raises(CheckpointError):
                fresh.load_head(tmp_path, load_as=load_as)
            assert (fresh.heads["h"], fresh.active_head, fresh.config.id2label) == before[:3]
            assert fresh.config.prediction_heads == before[3]
            assert sorted(fresh.heads) == ["h", "other"]


def test_an_adapter_whose_head_does_not_fit_is_not_loaded(tmp_path: Path) -> None:
    model = tiny("bert")
    model.add_adapter("a", config="lora")
    add_head(model, "classification", "a")
    model.save_adapter(tmp_path, "a")
    save_file({"heads.a.1.weight": torch.ones(1)}, tmp_path / HEAD.safetensors)
    fresh = tiny("bert")
    with pytest.raises(CheckpointError):
        fresh.load_adapter(tmp_path)
    assert not fresh.has_adapters() and not fresh.heads


def test_classes_with_heads_of_the_predecessor(tmp_path: Path) -> None:
    model = tiny("bert")
    add_head(model, "classification")
    model.save_head(tmp_path, "h")
    data = json.loads((tmp_path / HEAD.config).read_text())
    data["config"].pop("bias")
    for stem, accepted in (("Bert", True), ("Roberta", False)):
        (tmp_path / HEAD.config).write_text(json.dumps({**data, "model_class": f"{stem}ModelWithHeads"}))
        fresh = tiny("bert")
        if accepted:
            assert fresh.load_head(tmp_path) == "h"
        else:
            with pytest.raises(HeadError, match="Open the model as RobertaAdapterModel"):
                fresh.load_head(tmp_path)


# Heads of plain classes

KINDS = ("bert", "distilbert", "gpt2", "llama", "t5", "bart", "vit", "electra")
STATIC = [
    name
    for name, (head_type, kind) in CLASSES.items()
    if kind in KINDS and name not in ("BartForCausalLM", "T5ForTokenClassification")
]


def static_model(class_name: str) -> Any:
    kind = CLASSES[class_name][1]
    torch.manual_seed(0)
    options = {"is_decoder": True} if class_name == "BertLMHeadModel" else {}
    labels = (
        {} if class_name.endswith(("QuestionAnswering", "MultipleChoice")) else {"id2label": {0: "x", 1: "y", 2: "z"}}
    )
    model = getattr(transformers, class_name)(tiny_config(kind, **options, **labels))
    return adapters.init(randomised(model))


@pytest.mark.parametrize("class_name", STATIC)
def test_a_plain_class(class_name: str, tmp_path: Path) -> None:
    model = static_model(class_name)
    model.add_adapter("a", config="lora")
    model.save_adapter(tmp_path, "a")
    model.save_head(tmp_path)  # files of adapters have no output embeddings
    data = json.loads((tmp_path / HEAD.config).read_text())
    assert (data["config"], data["name"], data["model_class"]) == (None, None, class_name)
    assert data["num_labels"] == len(data["label2id"]) == model.config.num_labels
    tensors = load_file(tmp_path / HEAD.safetensors)
    state = model.state_dict(keep_vars=True)
    assert not any(".loras." in key for key in tensors)
    assert all(torch.equal(state[key], tensor) for key, tensor in tensors.items())
    fresh = static_model(class_name)
    with torch.no_grad():
        for key in tensors:
            fresh.state_dict()[key].zero_()
    fresh.config.id2label = {0: "p", 1: "q", 2: "r"}
    fresh.load_adapter(tmp_path)
    assert all(torch.equal(fresh.state_dict()[key], tensor) for key, tensor in tensors.items())
    assert fresh.config.label2id == data["label2id"]
    assert fresh.load_head(tmp_path) is None


@pytest.mark.parametrize("class_name", [name for name in STATIC if name not in ("T5ForQuestionAnswering",)])
def test_a_plain_class_into_a_flexible_head(class_name: str, tmp_path: Path) -> None:
    model = static_model(class_name)
    model.add_adapter("a", config="lora")
    model.save_adapter(tmp_path, "a")
    model.save_head(tmp_path)  # files of adapters have no output embeddings
    kind = model.config.model_type
    flexible = adapters.AutoAdapterModel.from_config(model.config).eval()
    flexible.base_model.load_state_dict(
        {k: v for k, v in model.base_model.state_dict().items() if ".loras." not in k}, strict=False
    )
    assert flexible.load_adapter(tmp_path, set_active=True) == "a"
    assert flexible.active_head == "a"
    assert flexible.heads["a"].head_type == CLASSES[class_name][0]
    if "num_labels" in flexible.heads["a"].config and not class_name.endswith("QuestionAnswering"):
        assert flexible.get_labels("a") == ["x", "y", "z"]
    model.set_active_adapters("a")
    given = inputs_for(model, CLASSES[class_name][0])
    if kind in ("bart", "t5"):
        given["decoder_input_ids"] = given["input_ids"]
    expected, found = model(**given), flexible(**given)
    field = "start_logits" if "QuestionAnswering" in class_name else "logits"
    assert torch.allclose(expected[field], found[field], atol=1e-5)
    with pytest.raises(HeadError, match="Pass load_as"):
        flexible.load_head(tmp_path)
    assert flexible.load_head(tmp_path, load_as="again", id2label={0: "k", 1: "l", 2: "m"}) == "again"


def test_base_tensors_among_those_of_a_head_do_not_matter(tmp_path: Path) -> None:
    model = static_model("T5ForSequenceClassification")
    model.save_head(tmp_path)
    tensors = load_file(tmp_path / HEAD.safetensors)
    base = {f"transformer.{key}": t.clone() for key, t in model.base_model.state_dict().items()}
    save_file({**tensors, **base}, tmp_path / HEAD.safetensors)
    static_model("T5ForSequenceClassification").load_head(tmp_path)
    flexible = tiny("t5")
    flexible.load_head(tmp_path, load_as="h")
    assert torch.equal(flexible.heads["h"][1].weight, tensors["classification_head.dense.weight"])


def test_heads_that_a_model_cannot_have(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    flexible, static = tiny("bert"), static_model("BertForSequenceClassification")
    for model in (flexible, static):
        model.add_adapter("a", config="lora")
    add_head(flexible, "classification", "a")
    flexible.save_adapter(tmp_path / "flexible", "a")
    static.save_adapter(tmp_path / "static", "a")
    other = static_model("BertForTokenClassification")
    for source, advice in (("flexible", "AutoAdapterModel"), ("static", "Open the model as BertForSequence")):
        with pytest.raises(HeadError, match=advice):
            other.load_head(tmp_path / source)
        caplog.clear()
        other.load_adapter(tmp_path / source, load_as=source)
        assert "without its prediction head" in caplog.text and advice in caplog.text
    base = adapters.init(transformers.BertModel(tiny_config("bert")))
    base.load_adapter(tmp_path / "static")
    with pytest.raises(HeadError, match="no prediction head"):
        base.save_head(tmp_path / "x")
    base.save_adapter(tmp_path / "base", "a")
    assert sorted(path.name for path in (tmp_path / "base").iterdir()) == sorted([ADAPTER.config, ADAPTER.safetensors])


def test_a_class_that_is_not_known(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    static = static_model("BertForSequenceClassification")
    static.add_adapter("a", config="lora")
    static.save_adapter(tmp_path, "a")
    data = json.loads((tmp_path / HEAD.config).read_text())
    (tmp_path / HEAD.config).write_text(json.dumps({**data, "model_class": "BertForDancing"}))
    flexible = tiny("bert")
    with pytest.raises(ValueError, match="BertForDancing"):
        flexible.load_head(tmp_path, load_as="a")
    flexible.load_adapter(tmp_path)
    assert "BertForDancing" in caplog.text
    assert not flexible.heads
