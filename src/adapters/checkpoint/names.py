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

from adapters.errors import CheckpointError
from adapters.runtime.engine import Engine, Part

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
    "adapter_fusion_layer",
)
"""Containers whose entries are named like adapters or fusions."""

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

    def check(self, what: str, strict: bool = True, hint: str = "") -> None:
        """Raise CheckpointError if tensors do not fit; with strict=False only if shapes do not.

        Args:
            what: Words for the error, such as "Adapter 'a' in ./folder".
            strict: Whether missing and unexpected tensors are errors, or are only logged.
            hint: Sentences at the end of the error.
        """
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
        """Put the file's values into the model."""
        for target, source in self.pairs.values():
            target.copy_(source)


def _shape(tensor: Tensor) -> str:
    return str(tuple(tensor.shape))


def match(expected: Mapping[str, Tensor], found: Mapping[str, Tensor], ignore: Callable[[str], bool]) -> Match:
    """Compare by name and shape.

    Args:
        expected: What the model needs. Of several names for one tensor the file needs to have only one.
        found: What the file has.
        ignore: Which names of the file do not matter.
    """
    result = Match()
    covered = {id(tensor) for name, tensor in expected.items() if name in found}
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
    if target.shape != source.shape:
        return f"is {_shape(source)} in the file and {_shape(target)} in the model"
    if target.is_floating_point() and not source.is_floating_point():
        return f"holds {source.dtype} in the file and {target.dtype} in the model"
    return ""


def tensors_of(engine: Engine, parts: Iterable[Part], name: str) -> dict[str, Tensor]:
    """Name on disk, below the base model -> tensor, of an adapter or fusion that is called `name` there."""
    return {
        f"{engine.names.on_disk(part.path)}.{name}.{inner}": tensor
        for part in parts
        for inner, tensor in part.module.state_dict(keep_vars=True).items()
    }


def own_prefix(engine: Engine) -> str:
    """What comes before the names of `tensors_of` in files that are saved from this model."""
    path = path_of(engine.root, engine.base)
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
        expected: Names that are looked for; the prefix under which most of them are found is taken.
    """
    renamed = {_modern(name): tensor for name, tensor in found.items()}
    names = list(expected)
    classes = (engine.root, engine.base)
    prefixes = dict.fromkeys(["", *(f"{c.base_model_prefix}." for c in classes), *(f"{p}." for p in OTHER_PREFIXES)])
    best = max(prefixes, key=lambda prefix: sum(prefix + name in renamed for name in names))
    return {name.removeprefix(best): tensor for name, tensor in renamed.items()}


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
    """Ids of all parameters and buffers that adapters and fusions have added to the model."""
    return {
        id(tensor)
        for parts in (*engine.parts.values(), *engine.fusions.values())
        for part in parts
        for tensor in part.module.state_dict(keep_vars=True).values()
    }


def children_state(module: nn.Module, names: Iterable[str]) -> dict[str, Any]:
    """State of some children of a module, by full names."""
    state: dict[str, Any] = {}
    for name in names:
        module.get_submodule(name).state_dict(destination=state, prefix=f"{name}.", keep_vars=True)
    return state
