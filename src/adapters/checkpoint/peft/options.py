"""What may adapter_config.json of PEFT say? Every option that we know, what it may be, and what becomes of it."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from adapters.errors import CheckpointError, choices
from adapters.methods.config import Rule, flag, integer, list_of, number, one_of, real, text

logger = logging.getLogger(__name__)

names = text | list_of(text)
layers = integer(0) | list_of(integer(0))


def _pattern(rule: Rule) -> Rule:
    return Rule(
        f"a mapping from module names to {rule.allowed}",
        lambda value: isinstance(value, dict) and all(isinstance(k, str) and rule.holds(v) for k, v in value.items()),
        {"type": "object"},
    )


ranks, alphas = _pattern(integer(1)), _pattern(real)
allocated = _pattern(list_of(flag))
token_numbers = list_of(integer(0))
token_lists = token_numbers | _pattern(token_numbers)


@dataclass(frozen=True)
class Option:
    """An option that is read: what it may hold, and what it is where a file does not say (null, or not at all)."""

    rule: Rule
    default: Any = None


HISTORY = frozenset(
    ("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_type", "peft_version", "revision")
    + ("megatron_config", "megatron_core", "runtime_config", "init_weights", "ensure_weight_tying")
)
"""Options of all types that say where a checkpoint comes from, or how it was made; nothing depends on them."""

SHARED: Mapping[str, Option] = {
    "task_type": Option(text),
    "target_modules": Option(names),
    "exclude_modules": Option(names),
    "layers_to_transform": Option(layers),
    "layers_pattern": Option(names),
    "modules_to_save": Option(list_of(text)),
    "fan_in_fan_out": Option(flag, False),  # our places know how their modules store weights
}
"""Options that types have in common."""

dropout = Option(number(0, 1), 0.0)
bias = Option(
    one_of("none", "all", "lora_only", "vera_only", "oft_only", "boft_only", "vblora_only", "randlora_only"), "none"
)


class Options(Mapping[str, Any]):
    """The options of one file, checked, with defaults.

    Args:
        given: Content of the file.
        known: Options that the type has.
        history: Further options on which nothing depends.
        refused: Option -> why we cannot do what it asks for, if it asks for anything.
        what: Words for the checkpoint.
    Raises:
        CheckpointError: an option has another type, or asks for what we cannot do.
    """

    def __init__(
        self,
        given: Mapping[str, Any],
        known: Mapping[str, Option],
        history: frozenset[str],
        refused: Mapping[str, str],
        what: str,
    ) -> None:
        self.what = what
        self.values_: dict[str, Any] = {}
        for name, option in {**SHARED, **known}.items():
            value = given.get(name)
            if value is None:
                value = option.default
            elif not option.rule.holds(value):
                raise CheckpointError(f"{what}: {name} is {value!r}. Allowed: {option.rule.allowed}.")
            self.values_[name] = value
        for name, reason in refused.items():
            if given.get(name) not in _NOTHING:
                raise CheckpointError(f"{what}: {name} is {given[name]!r}. {reason}")
        for name, value in given.items():
            if (
                name not in self.values_
                and name not in HISTORY | history
                and name not in refused
                and value not in _NOTHING
            ):
                logger.warning("%s: the option %s is not known here, and %r is ignored.", what, name, value)

    def __getitem__(self, name: str) -> Any:
        return self.values_[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.values_)

    def __len__(self) -> int:
        return len(self.values_)

    def untrained(self, *options: str) -> None:
        """Say in the log that these options, which act in training alone, are not kept."""
        for name in options:
            if self[name]:
                logger.warning("%s: %s=%r acts in training alone, and does not here.", self.what, name, self[name])

    def required(self, name: str) -> Any:
        """An option that has no default. Raises CheckpointError if the file does not say it."""
        if self[name] is None:
            raise CheckpointError(f"{self.what}: the config lacks {name!r}.")
        return self[name]


_NOTHING: tuple[Any, ...] = (None, False, "", [], {})

OTHER_TOOLS = {
    "lora_parameters": "MLX writes such files: convert its adapter with mlx_lm, or fuse it there",
    "format": "another tool's own format, which its author can convert",
    "model_type": "this is the config of a whole model: load it with AutoModel.from_pretrained",
    "rank": "another tool's LoRA: it says rank where PEFT says r",
}
"""Entry by which configs of others are known that people keep under this file's name, and what they are."""


def type_of(saved: Mapping[str, Any], types: Mapping[str, Any], what: str) -> str:
    """The type of PEFT that a config names.

    Raises:
        CheckpointError: it names none, or none that can be read, with the reason.
    """
    kind = saved.get("peft_type")
    if not isinstance(kind, str):
        hints = [hint for name, hint in OTHER_TOOLS.items() if name in saved]
        raise CheckpointError(
            f"{what}: adapter_config.json names no peft_type ({kind!r}). {hints[0] if hints else 'It is not of PEFT'}. "
            f"{choices(None, sorted(types))}"
        )
    if kind.upper() not in types:
        raise CheckpointError(
            f"{what}: adapters of the PEFT type {kind!r} cannot be read. {UNREAD.get(kind.upper(), ELSEWHERE)} "
            f"{choices(kind, sorted(types))}"
        )
    return kind.upper()


ELSEWHERE = (
    "Merge it in PEFT (PeftModel.from_pretrained(...).merge_and_unload()), save that model and open it here, or train "
    "one "
    "of the other types."
)
UNREAD = {
    "MULTITASK_PROMPT_TUNING": "It multiplies prompts of several tasks: save the product of one task as PROMPT_TUNING.",
    "ADAPTION_PROMPT": "It is a prefix with a gate inside the attention, which no method here has; it cannot be "
    "merged either.",
    "XLORA": "It routes between several LoRA adapters: load these one by one, and combine them with Route.",
    "POLY": "It routes between several LoRA adapters per task: save one task's mixture as LORA in PEFT.",
    "CPT": "It learns context tokens with a loss of its own: PROMPT_TUNING is the nearest that can be read.",
}
