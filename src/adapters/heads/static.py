"""How does the head of a plain transformers class become a flexible head? Config, renames and factors.

What the head consists of is read from the class (`structure.py`).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from torch import Tensor
from transformers import PreTrainedConfig

from adapters.errors import CheckpointError
from adapters.heads.options import label_map
from adapters.heads.structure import CLASSES, TOKENS, StaticHead
from adapters.heads.structure import read_head as find_static_head

__all__ = [
    "CLASSES",
    "DEFAULT_HEAD",
    "HEAD_MODULES",
    "convert_static_head",
    "find_static_head",
    "static_head_config",
    "static_key_mapping",
]

DEFAULT_HEAD = "default"
"""Name of the head of a plain class's checkpoint that is opened as a model with flexible heads."""
HEAD_MODULES = (
    *("classification_head", "classifier", "cls", "generator_lm_head", "generator_predictions", "lm_head"),
    *("pre_classifier", "qa_outputs", "score", "sequence_summary"),
    *("vocab_layer_norm", "vocab_projector", "vocab_transform"),
)
"""What plain classes call the modules of their heads, by which users replace them."""
ADDED = "final_logits_bias"
"""A buffer that BART-like classes add to logits; it is 0."""


def static_head_config(
    class_name: str,
    label2id: Mapping[str, int] | None = None,
    num_labels: int | None = None,
    model_config: PreTrainedConfig | None = None,
) -> dict[str, Any]:
    """Config of the flexible head that computes what the class's own head does.

    Args:
        class_name: Name of the transformers class.
        label2id: Names of the labels; by default, or if they are not as many as labels, LABEL_0, LABEL_1, ...
        num_labels: Labels or choices, a count; by default as many as there are names, else 2.
        model_config: Config of the model; by default that of the class.
    Raises:
        UnsupportedError: no flexible head computes the same.
    """
    static = find_static_head(class_name, model_config)
    config: dict[str, Any] = {"head_type": static.head_type, **static.options}
    if static.head_type in (*TOKENS, "ctc"):
        return config
    count = num_labels or len(label2id or ()) or 2
    if static.head_type == "question_answering":
        count = 2
    names = label2id if label2id is not None and len(label2id) == count else None
    config["num_choices" if static.head_type == "multiple_choice" else "num_labels"] = count
    config["label2id"] = label_map(None, names, count)
    return config


def static_key_mapping(class_name: str, head_name: str, model_config: PreTrainedConfig | None = None) -> dict[str, str]:
    """Regular expression of a tensor's name in the class -> its name below a flexible head.

    The oldest checkpoints call weight and bias of a LayerNorm gamma and beta.

    Args:
        class_name: Name of the transformers class.
        head_name: Name of the flexible head.
        model_config: Config of the model; by default that of the class.
    Raises:
        UnsupportedError: no flexible head computes the same.
    """
    static, start = find_static_head(class_name, model_config), f"heads.{head_name}."
    mapping = {f"^{re.escape(name)}$": f"{start}{own}" for name, own in static.aliases.items()}
    for i, name in enumerate(static.modules):
        if name is not None:
            old, new = rf"^{re.escape(name)}\.", f"{start}{i}."
            mapping |= {f"{old}gamma$": f"{new}weight", f"{old}beta$": f"{new}bias", old: new}
    return mapping


def convert_static_head(
    class_name: str,
    state: Mapping[str, Tensor],
    model_config: PreTrainedConfig | None,
    head_name: str,
    *,
    id2label: Mapping[int, str] | None = None,
    label2id: Mapping[str, int] | None = None,
    num_labels: int | None = None,
) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Turns a stored head of a plain class into a flexible head.

    Args:
        class_name: Name of the transformers class that was saved.
        state: Its tensors; those of the base model may be among them and are left out.
        model_config: Config of the model that gets the head.
        head_name: Name of the head there.
        id2label: Names of the labels, instead of `label2id`.
        label2id: Names of the labels as stored.
        num_labels: As stored.
    Returns:
        Config for `add_prediction_head_from_config`, and tensors named heads.<head_name>.<index>.<tensor>.
    Raises:
        UnsupportedError: no flexible head computes the same.
        CheckpointError: `state` holds tensors that belong neither to the head nor to the base model.
    """
    static, start = find_static_head(class_name, model_config), f"heads.{head_name}."
    names = label_map(id2label, label2id, 2) if id2label is not None else label2id
    config = static_head_config(class_name, names, num_labels, model_config)
    renamed = _rename(state, static_key_mapping(class_name, head_name, model_config), class_name, static)
    last = f"{start}{len(static.modules) - 1}.weight"
    if static.factor != 1 and last in renamed:
        renamed[last] = renamed[last] * static.factor
    for own in static.zeros:
        weight = renamed.get(f"{start}{own.removesuffix('bias')}weight")
        if weight is not None:
            renamed[f"{start}{own}"] = weight.new_zeros(len(weight))
    return config, renamed


def _rename(
    state: Mapping[str, Tensor], mapping: Mapping[str, str], class_name: str, static: StaticHead
) -> dict[str, Tensor]:
    renamed: dict[str, Tensor] = {}
    unknown = []
    for key, tensor in state.items():
        pattern = next((pattern for pattern in mapping if re.match(pattern, key)), None)
        if pattern is not None:
            renamed[re.sub(pattern, mapping[pattern], key)] = tensor
        elif key.partition(".")[0] not in (*static.base, ADDED):
            unknown.append(key)
    if unknown:
        raise CheckpointError(
            f"The head of {class_name} was stored with tensors that it should not have: "
            f"{', '.join(sorted(unknown))}. Allowed: those below {', '.join(filter(None, static.modules))}."
        )
    return renamed
