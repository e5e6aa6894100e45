"""Flexible heads of any type of transformers, and of any of its classes. `scripts/heads.py` asks all of them."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor

import adapters
from adapters import LoRAConfig
from adapters.auto import AutoAdapterModel
from adapters.heads.kinds import MODEL_KINDS
from adapters.heads.pooling import text_config
from adapters.heads.static import CLASSES, find_static_head
from adapters.sites.discovery.inputs import candidates
from adapters.sites.discovery.twin import randomised
from tests.heads.models import ADD
from tests.tiny import perturb
from tests.zoo import inputs_of, output, small_config

IMAGES = {"hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 32, "patch_size": 8}
PLAIN: dict[str, dict[str, Any]] = {"beit": IMAGES, "dinov2": IMAGES}
"""Types whose small configs cannot be read again from a file."""
FAMILIAR = ("multilabel_classification", "dependency_parsing", "multiple_choice")
"""Heads that are made of what others are made of: they are not tried in every type."""


def labels_for(head_type: str, inputs: Mapping[str, Tensor], length: int) -> dict[str, Tensor]:
    """Labels of a head for some inputs, of which it sees `length` positions."""
    rows = len(next(iter(inputs.values())))
    if head_type == "question_answering":
        return {"start_positions": torch.zeros(rows).long(), "end_positions": torch.ones(rows).long()}
    if head_type == "tagging":
        return {"labels": torch.ones(rows, length).long()}
    if head_type == "ctc":
        return {"labels": torch.tensor([[3, 4, -100]] * rows)}
    if head_type == "seq2seq_lm":
        return {"labels": inputs.get("decoder_input_ids", inputs.get("input_ids", torch.zeros(rows, 4).long()))}
    if head_type.endswith("_lm"):
        return {"labels": inputs["input_ids"]}
    return {"labels": torch.zeros(rows).long()}


def try_type(model_type: str, folder: Path) -> None:
    """Open a small model of a type with flexible heads; add, train, save and open again a LoRA with each head.

    Raises whatever is wrong.
    """
    torch.manual_seed(0)
    model = AutoAdapterModel.from_config(small_config(model_type)).float().eval()  # type: ignore[no-untyped-call]
    randomised(model)
    inputs = inputs_of(model.base_model)
    plain = output(model.base_model, inputs).detach()
    if not getattr(model.config, "scale_decoder_outputs", False):
        assert torch.equal(output(model, inputs), plain), "the output without a head is another"
    linear = "*" if not model._engine.spec.layers else None
    model.add_adapter("a", config=LoRAConfig(r=2, alpha=2, **({"places": ["*"]} if linear else {})))
    perturb(model, "a", scale=0.1)
    for head_type in MODEL_KINDS[model_type].head_types:
        if head_type in FAMILIAR:
            continue
        verb, options = ADD[head_type]
        try:
            getattr(model, verb)("a", overwrite_ok=True, **options)
            given = dict(inputs)
            if head_type not in ("seq2seq_lm", "causal_lm"):
                given.pop("decoder_input_ids", None)
            if model.config.is_encoder_decoder and "input_ids" in given:
                end = text_config(model.config).eos_token_id
                given["input_ids"] = given["input_ids"].clone()
                given["input_ids"][:, -1] = end[0] if isinstance(end, list) else end
            model.train_adapter("a")
            model.eval()
            stray = [n for n, p in model.named_parameters() if p.requires_grad and ".a." not in n]
            assert not stray, f"train_adapter leaves trainable: {stray[:3]}"
            length = model(**given)[0].shape[1] if head_type in ("tagging", "question_answering") else 0
            loss = model(**given, **labels_for(head_type, given, length)).loss
            assert loss.isfinite(), f"the loss is {loss.item()}"
            model.zero_grad()
            loss.backward()
            assert any(p.grad is not None and p.grad.any() for n, p in model.named_parameters() if "loras" in n), (
                "no gradient reaches the adapter"
            )
        except Exception as error:
            raise RuntimeError(f"{head_type}: {type(error).__name__}: {error}") from error
    with torch.no_grad():
        want = output(model, given) if model.heads else output(model, inputs)
        model.save_pretrained(folder)
        again = AutoAdapterModel.from_pretrained(folder, dtype="float32").eval()
        again.set_active_adapters("a")
        again.active_head = "a" if model.heads else None
        given = given if model.heads else inputs
        torch.testing.assert_close(output(again, given), want, atol=1e-4, rtol=1e-4)


def plain_model(class_name: str) -> Any:
    """A small model of a plain class, with random weights."""
    cls = getattr(transformers, class_name)
    head_type, kind = CLASSES[class_name]
    kind = cls.config_class.model_type if kind not in PLAIN and cls.config_class.model_type else kind
    config = transformers.AutoConfig.for_model(kind, **PLAIN[kind]) if kind in PLAIN else small_config(kind)
    if kind == "gemma2":
        config.hidden_size = 40
    if getattr(config, "pad_token_id", 0) is None:
        config.pad_token_id = 0
    if head_type not in ("multiple_choice", "question_answering"):
        config.num_labels = 3
    torch.manual_seed(0)
    plain = cls(config).float().eval()
    return plain if kind == "resnet" else randomised(plain)  # 50 convolutions would make numbers too large


def try_class(class_name: str, folder: Path, again: bool = True) -> str:
    """Open a checkpoint of a plain class as a model with flexible heads; compare logits and loss.

    Args:
        class_name: The class.
        folder: An empty one.
        again: Save the model with flexible heads too, and open it again.

    Returns:
        What was compared. Raises UnsupportedError where the head is refused, AssertionError where something differs.
    """
    cls = getattr(transformers, class_name)
    plain = plain_model(class_name)
    plain.save_pretrained(folder / "plain")
    if plain.config.model_type == "xmod":  # whose own language adapters are silent in every model with ours
        adapters.init(plain)
    model = AutoAdapterModel.from_pretrained(folder / "plain", dtype="float32").eval()
    if model.active_head != "default":
        find_static_head(class_name, transformers.AutoConfig.from_pretrained(folder / "plain"))
        raise RuntimeError("the head was left out")
    head_type = model.heads["default"].head_type
    errors = []
    for inputs in candidates(plain):
        if head_type == "multiple_choice":
            inputs = {name: value.unsqueeze(0) for name, value in inputs.items()}
        if model.config.is_encoder_decoder and "input_ids" in inputs:
            inputs["input_ids"][:, -1] = text_config(model.config).eos_token_id
        try:
            with torch.no_grad():
                wanted = plain(**inputs)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}"[:200])
            continue
        break
    else:
        raise RuntimeError(f"no forward pass: {'; '.join(errors)}")
    with torch.no_grad():
        found = model(**inputs)
    seen = [name for name in ("logits", "start_logits", "end_logits") if name in wanted]
    for name in seen:
        torch.testing.assert_close(found[name], wanted[name], atol=1e-4, rtol=1e-4)
    if again:
        model.save_pretrained(folder / "flex")
        with torch.no_grad():
            reopened = AutoAdapterModel.from_pretrained(folder / "flex", dtype="float32").eval()(**inputs)
        for name in seen:
            torch.testing.assert_close(reopened[name], found[name])
    length = wanted[0].shape[1] if head_type == "tagging" else 0
    labels = labels_for(head_type, inputs, length)
    if not set(labels) <= set(inspect.signature(cls.forward).parameters):
        return "logits"
    with torch.no_grad():
        try:
            loss = plain(**inputs, **labels).loss
        except Exception:
            return "logits"
        if loss is None:
            return "logits"
        torch.testing.assert_close(model(**inputs, **labels).loss, loss, atol=1e-4, rtol=1e-4)
    return "logits and loss"
