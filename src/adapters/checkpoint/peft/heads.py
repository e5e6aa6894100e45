"""What becomes of the head in a checkpoint of PEFT (`modules_to_save`), and how is one written?"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from torch import Tensor

from adapters.checkpoint.heads import SUFFIX, add_flexible, has_flexible_heads, static_head
from adapters.checkpoint.names import match
from adapters.checkpoint.undo import Before
from adapters.errors import CheckpointError, UnsupportedError
from adapters.heads.static import HEAD_MODULES, convert_static_head, find_static_head
from adapters.sharding import class_of

logger = logging.getLogger(__name__)

CLASSES: Mapping[str, str] = {
    "SEQ_CLS": "ForSequenceClassification",
    "TOKEN_CLS": "ForTokenClassification",
    "QUESTION_ANS": "ForQuestionAnswering",
    "CAUSAL_LM": "ForCausalLM",
    "SEQ_2_SEQ_LM": "ForConditionalGeneration",
}
"""Task of PEFT -> end of the names of transformers' classes for it."""
LABELLED = ("SEQ_CLS", "TOKEN_CLS", "QUESTION_ANS")
"""Tasks whose heads PEFT trains and saves by itself."""


def split(model: Any, others: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Those tensors of a file that are of the model's head, by their names in transformers' class, and all others.

    Args:
        model: The model.
        others: Tensors that are no adapter's and not the base model's own.
    """
    head: dict[str, Tensor] = {}
    rest: dict[str, Tensor] = {}
    own = {} if has_flexible_heads(model) else static_head(model)
    for key, tensor in others.items():
        name = key.replace(".modules_to_save", "").replace(".original_module", "")
        plain = name.removeprefix("model.")
        known = plain if plain in own else name
        if has_flexible_heads(model) and plain.partition(".")[0] in HEAD_MODULES:
            head[plain] = tensor
        elif known in own:
            head[known] = tensor
        else:
            rest[key] = tensor
    return head, rest


def load(
    model: Any, tensors: Mapping[str, Tensor], saved: Mapping[str, Any], before: Before, name: str, what: str
) -> None:
    """Give the head of a plain class these values, or add a flexible head that computes the same.

    Raises:
        CheckpointError: the tensors do not fit, or are shared with the base model.
    """
    if not has_flexible_heads(model):
        _fill(model, tensors, before, what)
        return
    stem = class_of(model).__name__.removesuffix(SUFFIX)
    source = f"{stem}{CLASSES.get(str(saved.get('task_type')), '')}"
    try:
        static = find_static_head(source, model.config)
    except UnsupportedError as error:
        logger.warning("Adapter %r is loaded without its prediction head: %s", name, error)
        return
    labels = max((tensor.shape[0] for key, tensor in tensors.items() if key.endswith("bias")), default=None)
    last = [key for key in static.modules if key][-1]
    if (weight := tensors.get(f"{last}.weight")) is not None:
        labels = weight.shape[0]
    config, own = convert_static_head(source, tensors, model.config, name, num_labels=labels)
    start = f"heads.{name}."
    add_flexible(
        model, name, config, {key.removeprefix(start): tensor for key, tensor in own.items()}, what, True, None
    )


def _fill(model: Any, tensors: Mapping[str, Tensor], before: Before, what: str) -> None:
    own = static_head(model)
    base = {id(parameter) for parameter in model._engine.base.parameters()}
    if tied := sorted(name for name in tensors if id(own[name]) in base):
        raise CheckpointError(
            f"{what} holds {', '.join(tied)}, which in this model is the embedding too (tie_word_embeddings). Open "
            "the model with tie_word_embeddings=False, or load without head (with_head=False)."
        )
    result = match({name: own[name] for name in tensors}, tensors, lambda key: False)
    result.check(
        f"The head of {what[:1].lower()}{what[1:]}", hint="Open the model with the num_labels of the checkpoint."
    )
    before.keep(target for target, _ in result.pairs.values())
    result.copy()


def task_of(model: Any) -> str | None:
    """PEFT's name for the task of a model's class."""
    name = class_of(model).__name__
    if name.endswith("LMHeadModel"):
        return "CAUSAL_LM"
    return next((task for task, end in CLASSES.items() if name.endswith(end)), None)


def written(model: Any, name: str) -> tuple[list[str], dict[str, Tensor]]:
    """`modules_to_save` and the tensors, by names in the class, of the head that is saved with the adapter `name`.

    Heads that are the output embedding are not: their adapters do not train them.
    """
    if has_flexible_heads(model):
        return _flexible(model, name) if name in model.heads else ([], {})
    base = {id(parameter) for parameter in model._engine.base.parameters()}
    output = model.get_output_embeddings()
    own = static_head(model)
    if output is not None or any(id(tensor) in base for tensor in own.values()):
        return [], {}
    return sorted({key.partition(".")[0] for key in own}), dict(own)


def _flexible(model: Any, name: str) -> tuple[list[str], dict[str, Tensor]]:
    """A flexible head as that of the class of transformers that computes the same."""
    head = model._get_head(name)
    stem = class_of(model).__name__.removesuffix(SUFFIX)
    for task in LABELLED:
        config = dict(head.config)
        try:
            static = find_static_head(f"{stem}{CLASSES[task]}", model.config)
        except UnsupportedError:
            continue
        if config.get("head_type") != static.head_type:
            continue
        if all(config.get(option, value) == value for option, value in static.options.items()):
            tensors = {
                f"{static.modules[int(key.partition('.')[0])]}.{key.partition('.')[2]}": tensor
                for key, tensor in head.state_dict(keep_vars=True).items()
                if key.partition(".")[0].isdecimal()
            }
            return sorted({key.partition(".")[0] for key in tensors}), tensors
    raise UnsupportedError(
        f"No class of transformers has a head like {name!r}, which PEFT could save. Save the adapter with_head=False."
    )
