"""Which tensor of a file belongs to which tensor of a model? Names on disk, prefixes of classes, renamed containers.

bert.encoder.layer.0.attention.self.query.loras.<adapter>.lora_A
^1   ^2                                         ^3
1 path of the base model in the class that saved the file; nothing if that is a base model itself
2 path of the dictionary below the base model, with the module names of transformers 4
3 name of the adapter, fusion or head when it was saved
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapters.composition.registry import BLOCK_MODULES
from adapters.errors import CheckpointError
from adapters.runtime.engine import Engine
from adapters.runtime.parts import Part
from adapters.sharding import assign, shape_of

logger = logging.getLogger(__name__)

OLD_CONTAINERS = {
    "attention_text_task_adapters": "adapters",
    "attention_text_lang_adapters": "adapters",
    "layer_text_task_adapters": "adapters",
    "layer_text_lang_adapters": "adapters",
    "invertible_lang_adapters": "invertible_adapters",
}
"""Names that containers had at first."""

OTHER_PREFIXES = ("transformer", "model")
"""Prefixes of classes that call their base model otherwise: LlamaForQuestionAnswering says "transformer"."""

CONTAINERS = (
    "adapters",
    "invertible_adapters",
    "loras",
    "prefix_tunings",
    "prefix_gates",
    "prompt_tunings",
    "refts",
    "shared_parameters",
    "trainable_tokens",
    "trainable_token_rows",
    *(kind.container() for kind in BLOCK_MODULES),
)
"""Containers whose entries are named like adapters, or like what blocks own."""

REPEATED = (".prefix_tuning.pool.prefix_tunings.",)
"""Part of names under which tensors are stored a second time."""
FOREIGN = (".in_proj.bias",)
"""Ends of names of base model tensors that got among an adapter's: all-zero biases of DeBERTa."""


@dataclass
class Match:
    """The tensors of a file, held against those of a model.

    Attributes:
        pairs: (tensor of the model, tensor of the file) by name.
        missing: Names that only the model has.
        unexpected: Names that only the file has.
        mismatched: Name -> what is wrong with the tensor.
    """

    pairs: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    missing: dict[str, Tensor] = field(default_factory=dict)
    unexpected: dict[str, Tensor] = field(default_factory=dict)
    mismatched: dict[str, str] = field(default_factory=dict)

    def check(self, what: str, strict: bool = True, hint: str = "", loading_info: dict[str, Any] | None = None) -> None:
        """Raise CheckpointError if tensors do not fit; with strict=False only if shapes do not.

        Args:
            what: Words for the error, such as "Adapter 'a' in ./folder".
            strict: Whether missing and unexpected tensors are errors, or are only logged.
            hint: Sentences at the end of the error.
            loading_info: Receives missing_keys and unexpected_keys.
        """
        if loading_info is not None:
            loading_info["missing_keys"] = list(self.missing)
            loading_info["unexpected_keys"] = list(self.unexpected)
        lines = [f"missing: {name} {_shape(tensor)}" for name, tensor in self.missing.items()]
        lines += [f"unexpected: {name} {_shape(tensor)}" for name, tensor in self.unexpected.items()]
        if lines and not strict:
            logger.warning("%s does not fit this model exactly.\n  %s", what, "\n  ".join(lines))
            lines = []
        lines += [f"does not fit: {name} {problem}" for name, problem in self.mismatched.items()]
        if lines:
            raise CheckpointError(f"{what} does not fit this model. {hint}\n  " + "\n  ".join(lines))

    @torch.no_grad()
    def copy(self) -> None:
        """Put the file's values into the model, after all have been converted.

        Raises:
            CheckpointError: a tensor cannot be converted.
        """
        values = {n: converted(n, source, t.dtype, t.device) for n, (t, source) in self.pairs.items()}
        for name, (target, _) in self.pairs.items():
            assign(target, values[name])


def converted(name: str, source: Tensor, dtype: torch.dtype, device: torch.device) -> Tensor:
    """A copy of a file's tensor in another dtype and on another device. Raises CheckpointError if there is none."""
    try:
        return source.detach().to(device, dtype, copy=True, memory_format=torch.contiguous_format)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        raise CheckpointError(f"{name} holds {source.dtype}, which cannot be made {dtype}: {error}") from None


def _shape(tensor: Tensor) -> str:
    return str(tuple(shape_of(tensor)))


def match(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], ignore: Callable[[str], bool]) -> Match:
    """Compare by name and shape.

    Args:
        expected: What the model needs. Of several names for one tensor the file needs to have only one.
        found: What the file has.
        ignore: Which names of the file do not matter.
    Raises:
        CheckpointError: two names of one tensor have other values in the file.
    """
    result = Match()
    covered: dict[int, str] = {}
    for name, target in expected.items():
        if name in found:
            first = covered.setdefault(id(target), name)
            if first != name and not same(found[first], found[name]):
                raise two_names(first, name)
    for name, target in expected.items():
        if name not in found:
            if id(target) not in covered:
                result.missing[name] = target
        elif problem := _problem(target, found[name]):
            result.mismatched[name] = problem
        else:
            result.pairs[name] = (target, found[name])
    result.unexpected = {n: t for n, t in found.items() if n not in expected and not ignore(n)}
    return result


def _problem(target: Tensor, source: Tensor) -> str:
    if shape_of(target) != source.shape:
        return f"is {_shape(source)} in the file and {_shape(target)} in the model"
    if target.is_floating_point() and not source.is_floating_point():
        return f"holds {source.dtype} in the file and {target.dtype} in the model"
    return ""


def renamed(found: Mapping[str, Tensor], rename: Callable[[str], str]) -> dict[str, Tensor]:
    """The tensors of a file by other names.

    Two names may become one only where the tensors are equal to the bit, as in files that hold a tensor again under
    another name: then nothing depends on which is taken.

    Raises:
        CheckpointError: two names with different tensors become one.
    """
    sources: dict[str, str] = {}
    for name in found:
        first = sources.setdefault(rename(name), name)
        if first != name and not same(found[first], found[name]):
            raise two_names(first, name)
    return {new: found[old] for new, old in sources.items()}


def same(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors are of one type and shape, and hold the same values."""
    return one.dtype is other.dtype and one.shape == other.shape and torch.equal(one, other)


def two_names(one: str, other: str) -> CheckpointError:
    """The error for a file in which two names mean one tensor and hold different ones."""
    return CheckpointError(
        f"The file holds {one} and {other}, which are two names of one tensor, with different values. Which of them is "
        "meant cannot be told. Remove the wrong one from the file."
    )


def tensors_of(engine: Engine, parts: Iterable[Part], name: str) -> dict[str, Tensor]:
    """Name on disk, below the base model -> tensor, of an adapter or fusion that is called `name` there."""
    return {
        engine.names.tensor(part.path, name, inner): tensor
        for part in parts
        for inner, tensor in part.module.state_dict(keep_vars=True).items()
    }


def own_prefix(engine: Engine, model: nn.Module | None = None) -> str:
    """What comes before the names of `tensors_of` in files that are saved from `model`, by default the whole one."""
    return base_path(engine, model or engine.root) if engine.names.prefixed else ""


def base_path(engine: Engine, model: nn.Module) -> str:
    """What comes before the names of the base model's modules in `model`."""
    path = path_of(model, engine.base)
    return f"{path}." if path else ""


def path_of(model: nn.Module, module: nn.Module) -> str:
    """Name of a module inside of a model; empty for the model itself."""
    prefix = str(getattr(model, "base_model_prefix", ""))
    if prefix and getattr(model, prefix, None) is module:
        return prefix
    return next((name for name, child in model.named_modules() if child is module), "")


def below_base(engine: Engine, found: Mapping[str, Tensor], expected: Iterable[str]) -> dict[str, Tensor]:
    """The tensors of a file by their names below the base model, whichever class saved them.

    Args:
        engine: The model they are loaded into.
        found: The file's tensors.
        expected: Names that are looked for; the prefix under which most of them are found is taken first.
    Raises:
        CheckpointError: two names become one, and their tensors differ.
    """
    modern = renamed(found, lambda name: engine.names.first(_modern(name)))
    names = list(expected)
    classes = (engine.root, engine.base)
    prefixes = dict.fromkeys(["", *(f"{c.base_model_prefix}." for c in classes), *(f"{p}." for p in OTHER_PREFIXES)])
    best = max(prefixes, key=lambda prefix: sum(prefix + name in modern for name in names))
    known = set(names)

    def below(name: str) -> str:
        candidates = [name.removeprefix(prefix) for prefix in (best, *prefixes)]
        return next((candidate for candidate in candidates if candidate in known), candidates[0])

    return renamed(modern, below)


def _modern(name: str) -> str:
    if not any(old in name for old in OLD_CONTAINERS):
        return name
    return ".".join(OLD_CONTAINERS.get(part, part) for part in name.split("."))


def is_repeated(name: str) -> bool:
    """Whether a name of a file may be passed over, because the tensor is there again or is not the adapter's."""
    return any(part in name for part in REPEATED) or name.endswith(FOREIGN)


def owned(names: Iterable[str], name: str) -> set[str]:
    """Those of `names` that belong to the adapter or fusion `name`."""
    parts = tuple(f"{container}.{name}." for container in CONTAINERS)
    return {key for key in names if any(key.startswith(part) or f".{part}" in key for part in parts)}


def added_tensors(engine: Engine) -> set[int]:
    """Ids of all parameters and buffers of adapters, and of what blocks own."""
    return {
        id(tensor)
        for group in engine.added
        for parts in group.values()
        for part in parts
        for tensor in part.module.state_dict(keep_vars=True).values()
    }


def children_state(module: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """State of some children of a module, by full names."""
    state: dict[str, Any] = {}
    for name in names:
        module.get_submodule(name).state_dict(destination=state, prefix=f"{name}.", keep_vars=True)
    return state
