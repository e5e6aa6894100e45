"""Checks of the config files of an adapter and its head."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from ..index.configs import aliases, members, method, named
from .finding import Finding, error, listed, nearest, quoted, warning
from .subject import CONFIG, HEAD, HEAD_WEIGHTS, Adapter, Subject

__all__ = ["adapter_config", "head_pair"]


class _Rule(NamedTuple):
    """What a field may hold."""

    holds: Callable[[Any], bool]
    text: str


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 < value < 1 << 31


def _positive(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value) and value > 0


def _factor(value: Any) -> bool:
    if not isinstance(value, dict):
        return _positive(value)
    names = all(key == "default" or key.isdigit() for key in value)
    return bool(value) and names and all(map(_positive, value.values()))


def _layers(value: Any) -> bool:
    return isinstance(value, list) and all(_whole(item) or item == 0 for item in value)


def _one_of(*allowed: object) -> _Rule:
    return _Rule(
        lambda value: any(value is one or (isinstance(value, str) and value == one) for one in allowed),
        "one of " + listed(map(repr, allowed), len(allowed)),
    )


_FLAG = _Rule(lambda value: isinstance(value, bool), "true or false")
_NAME = _Rule(lambda value: isinstance(value, str) and bool(value), "a text")
_WHOLE = _Rule(_whole, "a whole number above 0")
_MAYBE_WHOLE = _Rule(lambda value: value is None or _whole(value), "a whole number above 0, or null")
_MAYBE_NAME = _Rule(lambda value: value is None or isinstance(value, str), "a text, or null")
_SHARE = _Rule(
    lambda value: _positive(value + 1) and value <= 1 if _is_number(value) else False, "a number from 0 to 1"
)
_LAYERS = _Rule(_layers, "a list of layer numbers, counted from 0")
_FACTOR = _Rule(_factor, "a number above 0, or a mapping from layers and 'default' to such numbers")
_SCALING = _Rule(lambda value: _is_number(value) or value in ("learned", "channel"), "a number, 'learned' or 'channel'")

# Around the config of the method.
_OUTER = {"hidden_size": _MAYBE_WHOLE, "model_type": _MAYBE_NAME, "model_name": _MAYBE_NAME, "name": _MAYBE_NAME}
# Fields that must be there, and fields that may, by the architecture of the config.
_REQUIRED = {
    None: ("mh_adapter", "output_adapter", "reduction_factor", "non_linearity"),
    "reft": ("layers", "prefix_positions", "suffix_positions", "r", "orthogonality"),
}
_FIELDS: Mapping[str | None, Mapping[str, _Rule]] = {
    None: {
        "mh_adapter": _FLAG,
        "output_adapter": _FLAG,
        "reduction_factor": _FACTOR,
        "non_linearity": _NAME,
        "is_parallel": _FLAG,
        "scaling": _SCALING,
        "inv_adapter": _one_of(None, "nice", "glow"),
        "leave_out": _LAYERS,
        "dropout": _SHARE,
        "phm_layer": _FLAG,
        "phm_dim": _WHOLE,
        "phm_rank": _WHOLE,
        "residual_before_ln": _one_of(True, False, "post_add"),
    },
    "lora": {
        "r": _WHOLE,
        "alpha": _Rule(lambda value: _is_number(value), "a number"),
        "dropout": _SHARE,
        "leave_out": _LAYERS,
        "composition_mode": _one_of("add", "scale"),
    },
    "mtl_lora": {"r": _WHOLE, "n_up_projection": _WHOLE, "leave_out": _LAYERS},
    "prefix_tuning": {
        "prefix_length": _WHOLE,
        "bottleneck_size": _WHOLE,
        "flat": _FLAG,
        "leave_out": _LAYERS,
        "dropout": _SHARE,
    },
    "prompt_tuning": {"prompt_length": _WHOLE, "combine": _one_of("prefix", "prefix_after_bos")},
    "reft": {"r": _WHOLE, "orthogonality": _FLAG, "dropout": _SHARE},
}
_PEFT = {"peft_type": _NAME, "base_model_name_or_path": _MAYBE_NAME, "num_virtual_tokens": _MAYBE_WHOLE}
_PEFT_METHODS = frozenset(
    name
    for line in (
        "LORA PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADALORA BOFT ADAPTION_PROMPT IA3 LOHA LOKR",
        "OFT POLY LN_TUNING VERA FOURIERFT XLORA HRA VBLORA CPT BONE MISS RANDLORA ROAD TRAINABLE_TOKENS SHIRA C3A",
    )
    for name in line.split()
)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def adapter_config(subject: Subject) -> list[Finding] | None:
    """Each `adapter_config.json` is one that this library or PEFT can read."""
    if not subject.is_adapter:
        return None
    if not subject.adapters:
        message = f"The card is that of an adapter, but there is no {CONFIG}."
        return [warning(message, "Upload the whole folder that `save_adapter` or PEFT wrote.")]
    return [finding for adapter in subject.adapters for finding in _config_findings(adapter)]


def head_pair(subject: Subject) -> list[Finding] | None:
    """A head has its config and its tensors, and fits the adapter."""
    folders = [adapter for adapter in subject.adapters if _has_head(subject, adapter)]
    return [finding for adapter in folders for finding in _head_findings(subject, adapter)] if folders else None


# ---- adapters -------------------------------------------------------------------------------------------------------


def _config_findings(adapter: Adapter) -> Iterator[Finding]:
    path, config = adapter.folder + CONFIG, adapter.config
    if config is None:
        yield error(adapter.problem, "Save the adapter again; the file is written by `save_adapter` or PEFT.")
    elif adapter.is_peft:
        yield from _field_findings(path, config, _PEFT)
        kind = str(config["peft_type"]).upper()
        if kind not in _PEFT_METHODS:
            message = f"'peft_type' in {path} is {quoted(config['peft_type'])}, which is not known."
            yield warning(
                message + nearest(kind.lower(), (one.lower() for one in _PEFT_METHODS)), "Name a method of PEFT."
            )
    elif "config" not in config:
        message = f"{path} has neither 'config', as this library writes it, nor 'peft_type', as PEFT does."
        yield error(message, "Save the adapter again with `save_adapter` or PEFT.")
    else:
        yield from _field_findings(path, config, _OUTER)
        yield from _method_findings(path, config["config"])


def _method_findings(path: str, config: Any) -> Iterator[Finding]:
    if isinstance(config, str):
        if config not in named() and config not in aliases():
            hint = nearest(config, [*named(), *aliases()])
            yield error(
                f"'config' in {path} is {quoted(config)}, which names no config.{hint}", "Write the whole config."
            )
        return
    if not isinstance(config, dict):
        message = f"'config' in {path} must be a mapping or the name of a config, but is {quoted(config)}."
        yield error(message, "Save the adapter again with `save_adapter`.")
        return
    union = config.get("architecture") == "union"
    if union and not isinstance(config.get("configs"), list):
        yield error(f"'configs' of the union in {path} must be a list.", "Save the adapter again with `save_adapter`.")
        return
    for i, part in enumerate(members(config)):
        yield from _member_findings(path, f"config.configs[{i}]." if union else "config.", part)


def _member_findings(path: str, at: str, config: Mapping[str, Any]) -> Iterator[Finding]:
    architecture = config.get("architecture")
    if not isinstance(architecture, (str, type(None))) or architecture not in _FIELDS or method(config) is None:
        known = listed((repr(name) for name in _FIELDS if name), len(_FIELDS))
        message = (
            f"'{at}architecture' in {path} is {quoted(architecture)}; known are {known}, and null for a bottleneck."
        )
        if architecture is None:
            message = f"'{at[:-1]}' in {path} has none of the fields of a bottleneck adapter."
        yield error(message, "Save the adapter again with `save_adapter`.")
        return
    for name in _REQUIRED.get(architecture, ()):
        if name not in config:
            rule = _FIELDS[architecture].get(name)
            fix = f"Add {name!r}, {rule.text}." if rule else f"Add {name!r}."
            yield error(f"'{at}{name}' is missing in {path}.", fix)
    yield from _field_findings(path, config, _FIELDS[architecture], at)


def _field_findings(
    path: str, config: Mapping[str, Any], rules: Mapping[str, _Rule], at: str = ""
) -> Iterator[Finding]:
    for name, rule in rules.items():
        if name in config and not rule.holds(config[name]):
            message = f"'{at}{name}' in {path} is {quoted(config[name])}, but must be {rule.text}."
            yield error(message, "Correct the value; it must be the one the adapter was trained with.")


# ---- heads ----------------------------------------------------------------------------------------------------------


def _has_head(subject: Subject, adapter: Adapter) -> bool:
    return any(adapter.folder + name in subject.sizes for name in (HEAD, HEAD_WEIGHTS))


def _head_findings(subject: Subject, adapter: Adapter) -> Iterator[Finding]:
    config, weights = adapter.folder + HEAD, adapter.folder + HEAD_WEIGHTS
    for one, other in ((config, weights), (weights, config)):
        if other not in subject.sizes:
            yield error(f"There is {one}, but no {other}.", "Upload both, or neither; `save_adapter` writes both.")
    if adapter.head is None:
        if config in subject.sizes:
            yield error(f"{config} is not a JSON object.", "Save the head again with `save_head`.")
        return
    for name in ("hidden_size", "model_type"):
        ours, theirs = (adapter.config or {}).get(name), adapter.head.get(name)
        if ours is not None and theirs is not None and ours != theirs:
            message = f"'{name}' is {quoted(theirs)} in {config}, but {quoted(ours)} in {adapter.folder}{CONFIG}."
            yield error(message, "Save head and adapter together, from one model.")
    yield from _label_findings(config, adapter.head)


def _label_findings(path: str, head: Mapping[str, Any]) -> Iterator[Finding]:
    inner = head.get("config")
    facts = inner if isinstance(inner, dict) else head
    labels, count = facts.get("label2id"), facts.get("num_labels")
    if isinstance(labels, dict) and isinstance(count, int) and len(labels) != count:
        message = f"'label2id' in {path} names {len(labels)} labels, but 'num_labels' is {count}."
        yield warning(message, "Name every label once.")
