"""Checks of the config files of an adapter and its head."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ..facts.configs import aliases, find_named, members, named
from ..methods import UNION, Field, fits, library
from .finding import Finding, error, listed, nearest, quoted, warning
from .subject import CONFIG, HEAD, HEAD_WEIGHTS, Adapter, Subject

__all__ = ["adapter_config", "head_pair"]


# Around the config of the method.
_NAME = Field("a text", {"type": "string", "pattern": "."})
_MAYBE_NAME = Field("a text, or null", {"anyOf": [{"type": "null"}, {"type": "string"}]})
_MAYBE_WHOLE = Field(
    "a whole number above 0, or null",
    {"anyOf": [{"type": "null"}, {"type": "integer", "minimum": 1, "exclusiveMaximum": 1 << 31}]},
)
_OUTER = {"hidden_size": _MAYBE_WHOLE, "model_type": _MAYBE_NAME, "model_name": _MAYBE_NAME, "name": _MAYBE_NAME}
_PEFT = {"peft_type": _NAME, "base_model_name_or_path": _MAYBE_NAME, "num_virtual_tokens": _MAYBE_WHOLE}
_PEFT_METHODS = frozenset(
    name
    for line in (
        "LORA PROMPT_TUNING MULTITASK_PROMPT_TUNING P_TUNING PREFIX_TUNING ADALORA BOFT ADAPTION_PROMPT IA3 LOHA LOKR",
        "OFT POLY LN_TUNING VERA FOURIERFT XLORA HRA VBLORA CPT BONE MISS RANDLORA ROAD TRAINABLE_TOKENS SHIRA C3A",
    )
    for name in line.split()
)


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
        if find_named(config) is None:
            hint = nearest(config, [*named(), *aliases()])
            yield error(
                f"'config' in {path} is {quoted(config)}, which names no config.{hint}", "Write the whole config."
            )
        return
    if not isinstance(config, dict):
        message = f"'config' in {path} must be a mapping or the name of a config, but is {quoted(config)}."
        yield error(message, "Save the adapter again with `save_adapter`.")
        return
    union = config.get("architecture") == UNION
    if union and not isinstance(config.get("configs"), list):
        yield error(f"'configs' of the union in {path} must be a list.", "Save the adapter again with `save_adapter`.")
        return
    for i, part in enumerate(members(config)):
        yield from _member_findings(path, f"config.configs[{i}]." if union else "config.", part)


def _member_findings(path: str, at: str, config: Mapping[str, Any]) -> Iterator[Finding]:
    architecture = config.get("architecture")
    found = library().architecture(config)
    if found is None:
        known = [repr(name) for name in library().architectures if name]
        message = (
            f"'{at}architecture' in {path} is {quoted(architecture)}; known are {listed(known, len(known))}, and null "
            "for a bottleneck."
        )
        if architecture is None:
            message = f"'{at[:-1]}' in {path} has none of the fields of a bottleneck adapter."
        yield error(message, "Save the adapter again with `save_adapter`.")
        return
    for name in found.required:
        if name not in config:
            yield error(f"'{at}{name}' is missing in {path}.", f"Add {name!r}, {found.fields[name].words}.")
    yield from _field_findings(path, config, found.fields, at)
    for name in sorted(config.keys() - found.fields.keys() - {"architecture"}):
        if hint := nearest(name, found.fields.keys() - config.keys(), cutoff=0.8):
            message = f"'{at}{name}' in {path} is no field of this method, and changes nothing.{hint}"
            yield warning(message, "Correct the name, or take the field out.")


def _field_findings(
    path: str, config: Mapping[str, Any], fields: Mapping[str, Field], at: str = ""
) -> Iterator[Finding]:
    for name, field in fields.items():
        if name in config and not fits(config[name], field.schema):
            message = f"'{at}{name}' in {path} is {quoted(config[name])}, but must be {field.words}."
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
