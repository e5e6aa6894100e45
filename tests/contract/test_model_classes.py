"""Every class with a head that transformers has for the known model types, through `adapters.init`."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils import ModelOutput

import adapters
from adapters.sites.specs import SPECS
from tests.contract.cases import CONFIGS
from tests.tiny import TINY_MODELS, adapter_parameters, config, hooks, inputs, perturb, randomised


def classes() -> list[Any]:
    """(architecture, class) of everything that holds a base model, by reading the modelling modules."""
    found = []
    for name, tiny in TINY_MODELS.items():
        package = tiny.model_type.replace("-", "_")
        module = importlib.import_module(f"transformers.models.{package}.modeling_{package}")
        for kind in vars(module).values():
            if (
                not isinstance(kind, type)
                or not issubclass(kind, PreTrainedModel)
                or kind.__module__ != module.__name__
            ):
                continue
            title = kind.__name__
            if not any(
                word in title for word in ("PreTrained", "Pretrained", "Wrapper", "Decoder", "Stack", "Encoder")
            ):
                found.append(pytest.param(name, kind, id=f"{title}-{name}"))
    return found


def model_of(name: str, kind: type[Any]) -> Any:
    torch.manual_seed(0)
    title, changes = kind.__name__, {"encoder_stride": 8} if name == "vit" else {}
    if "CausalLM" in title or "LMHead" in title:
        changes["is_decoder"] = True
    if "QuestionAnswering" in title:
        changes["num_labels"] = 2
    return randomised(kind(config(name, **changes)))


def inputs_of(name: str, kind: type[Any]) -> Any:
    title = kind.__name__
    if "MaskedImageModeling" in title:
        return {**inputs(name), "bool_masked_pos": torch.zeros(4, 4, dtype=torch.bool)}
    if TINY_MODELS[name].kind == "image":
        return inputs(name)
    given = inputs(name, "classification")
    if "MultipleChoice" in title or "DoubleHeads" in title:
        given = {key: value.view(2, 2, -1) for key, value in given.items()}
    if name in ("t5", "t5-gated", "mt5", "bart", "mbart") and kind.__name__.endswith(
        ("Model", "ConditionalGeneration")
    ):
        given["decoder_input_ids"] = given["input_ids"][:, :5]
    return given


@torch.no_grad()
def outputs(model: Any, given: Any) -> list[Tensor]:
    """All floating point tensors that a call returns, in order."""
    result = model(**given)
    assert isinstance(result, ModelOutput)
    return [value for value in result.values() if isinstance(value, Tensor) and value.is_floating_point()]


def same(one: list[Tensor], two: list[Tensor]) -> bool:
    return len(one) == len(two) and all(map(torch.equal, one, two))


@pytest.mark.versions
@pytest.mark.parametrize(("name", "kind"), classes())
def test_a_class_with_adapters(name: str, kind: type[Any]) -> None:
    given = inputs_of(name, kind)
    plain = outputs(model_of(name, kind), given)
    model = model_of(name, kind)
    keys, kept = list(model.state_dict()), hooks(model)
    adapters.init(model)
    assert same(outputs(model, given), plain)
    for method in ("seq_bn", "lora", "prefix_tuning", "loreft"):
        model.add_adapter(method, config=CONFIGS[method], set_active=True)
        perturb(model, method)
        changed = outputs(model, given)
        assert not same(changed, plain)
        assert all(value.isfinite().all() for value in changed)
    prefix = f"{model.base_model_prefix}." if model.base_model is not model else ""
    assert all(key.startswith(prefix) for key in adapter_parameters(model, "seq_bn", "lora"))
    model.train_adapter("seq_bn")
    base = [p for key, p in model.base_model.named_parameters() if ".seq_bn." not in key]
    assert not any(p.requires_grad for p in base)
    loss = sum(v.float().pow(2).sum() for v in model(**given).values() if isinstance(v, Tensor) and v.requires_grad)
    loss.backward()  # type: ignore[union-attr]
    assert any(p.grad is not None and p.grad.abs().sum() > 0 for p in adapter_parameters(model, "seq_bn").values())
    for method in ("seq_bn", "lora", "prefix_tuning", "loreft"):
        model.delete_adapter(method)
    assert same(outputs(model.eval(), given), plain)
    assert list(model.state_dict()) == keys and hooks(model) == kept


def test_many_classes_are_found() -> None:
    titles = {param.id.split("-")[0] for param in classes()}
    for stem in (
        "Bert",
        "Roberta",
        "XLMRoberta",
        "DistilBert",
        "Electra",
        "GPT2",
        "Llama",
        "Mistral",
        "Qwen2",
        "Qwen3",
    ):
        assert {f"{stem}ForSequenceClassification", f"{stem}ForTokenClassification"} <= titles
    for stem in ("T5", "MT5", "Bart", "MBart"):
        assert {f"{stem}ForConditionalGeneration", f"{stem}ForSequenceClassification"} <= titles
    assert {"ViTForImageClassification", "BartForCausalLM", "BertForPreTraining", "GPT2DoubleHeadsModel"} <= titles
    assert len(titles) >= 75


def test_every_tiny_model_is_of_a_type_that_is_described() -> None:
    """Further types that are: `tests/sites/test_described.py`."""
    assert {tiny.model_type for tiny in TINY_MODELS.values()} <= set(SPECS)


@pytest.mark.parametrize("title", ["T5EncoderModel", "MT5EncoderModel"])
def test_encoders_of_encoder_decoders(title: str) -> None:
    import transformers

    name = title.removesuffix("EncoderModel").lower()
    torch.manual_seed(0)
    model = adapters.init(randomised(getattr(transformers, title)(config(name))))
    given = inputs(name, "classification")
    plain = outputs(model, given)
    for method in ("seq_bn_inv", "lora", "prefix_tuning", "loreft", "unipelt"):
        model.add_adapter(method, config=CONFIGS[method], set_active=True)
        perturb(model, method)
        assert not same(outputs(model, given), plain)
        assert set(model.get_adapter(method)) <= {-1, 0, 1}
