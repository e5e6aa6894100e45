"""What do files call a place? From roles and module paths here to the flags and the names in files.

Files name a place by the module path that its model had when the format was made, and old configs choose places by
flags. Both differ from today's roles and paths for some families; all such differences are in this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from adapters.sites.pairs import halves
from adapters.sites.resolve import Naming
from adapters.sites.spec import Columns

LOCATIONS: Mapping[str, str] = {
    **{f"{attention}.{part}": "selfattn_lora" for attention in ("attn", "cross") for part in "qkv"},
    "ffn.up": "intermediate_lora",
    "ffn.down": "output_lora",
    "attn": "mh_adapter",
    "cross": "cross_adapter",
    "ffn": "output_adapter",
    "attn.core": "self_prefix",
    "cross.core": "cross_prefix",
    "layer": "output_reft",
    "embed": "invertible",
    "embed.prompt": "prompt",
}
"""Role -> the flag of old configs that means it, which is its key in listings and in names of prefixes too."""

STACKS: Mapping[tuple[str, str], str] = {("attn.core", "encoder"): "encoder_prefix"}
"""(role, path of its stack) -> location, where the stack matters."""


@dataclass(frozen=True)
class Names(Naming):
    """What files call the places of models of one type.

    Args:
        locations: Role -> location, where it differs from `LOCATIONS`.
        stacks: (role, path of its stack) -> location, where it differs from `STACKS`.
        fragments: (path in memory, path on disk) pairs of parts of paths, where files keep the names of older models.
        prefixed: Whether files that are saved from a model around the base model put its path in front.
    """

    locations: Mapping[str, str] = field(default_factory=dict)
    stacks: Mapping[tuple[str, str], str] = field(default_factory=dict)
    fragments: tuple[tuple[str, str], ...] = ()
    prefixed: bool = True

    def location(self, role: str, stack: str = "") -> str:
        """The location of a role in a stack of layers, such as `selfattn_lora`; the role itself where it has none."""
        if role in self.locations:
            return self.locations[role]
        return self.stacks.get((role, stack)) or STACKS.get((role, stack)) or LOCATIONS.get(role, role)

    def on_disk(self, path: str) -> str:
        """The name that the module at `path`, counted from the base model, has in adapter files."""
        for memory, disk in self.fragments:
            path = path.replace(memory, disk)
        return path

    def tensor(self, path: str, name: str, inner: str) -> str:
        """The name in files of a tensor of what is called `name` in the dictionary at `path`."""
        return f"{self.on_disk(path)}.{name}.{inner}"

    def first(self, tensor: str) -> str:
        """Of several names that files have for one tensor, the first; a name that is the only one is itself."""
        return tensor


COMMON = ("shared_parameters", "invertible_adapters")
"""What both halves of a model have in common: files hold it below the encoder, and again below others."""


@dataclass(frozen=True)
class PairNames(Names):
    """What files call the places of a model that is made of two others: each half by its own names, below its path.

    Args:
        parts: Path of each half -> its names, the encoder first.
    """

    parts: Mapping[str, Names] = field(default_factory=dict)

    def _part(self, path: str) -> str:
        return next((part for part in self.parts if _is_below(path, part)), next(iter(self.parts)))

    def location(self, role: str, stack: str = "") -> str:
        part = self._part(stack)
        return self.parts[part].location(role, stack.removeprefix(part).removeprefix("."))

    def pool(self, role: str, stack: str = "") -> str:
        return f"{_side(self._part(stack))}_{self.location(role, stack)}"

    def on_disk(self, path: str) -> str:
        if path in COMMON:
            return f"{next(iter(self.parts))}.{path}"
        for part, names in self.parts.items():
            if path.startswith(f"{part}."):
                return f"{part}.{names.on_disk(path.removeprefix(f'{part}.'))}"
        return path

    def tensor(self, path: str, name: str, inner: str) -> str:
        words = inner.split(".")
        for part in self.parts:
            for number, word in enumerate(words):
                if path == PREFIXES and word.startswith(start := f"{_side(part)}_"):
                    words[number] = word.removeprefix(start)
                    return f"{part}.{path}.{name}.{'.'.join(words)}"
        return super().tensor(path, name, inner)

    def first(self, tensor: str) -> str:
        encoder, *others = self.parts
        for start in ("", *(f"{part}." for part in others)):
            if tensor.startswith(tuple(f"{start}{common}." for common in COMMON)):
                return f"{encoder}.{tensor.removeprefix(start)}"
        return tensor


PREFIXES = "prefix_tuning.prefix_tunings"
"""The dictionary of the prefixes of all layers."""


def _is_below(path: str, outer: str) -> bool:
    return path == outer or path.startswith(f"{outer}.")


def _side(part: str) -> str:
    return part.partition(".")[0]


OLD_VISION = (
    ("layers.", "encoder.layer."),
    (".attention.q_proj", ".attention.attention.query"),
    (".attention.k_proj", ".attention.attention.key"),
    (".attention.v_proj", ".attention.attention.value"),
    (".attention.o_proj", ".attention.output.dense"),
    (".attention.prefix_tuning", ".attention.attention.prefix_tuning"),
    (".mlp.fc1", ".intermediate.dense"),
    (".mlp.fc2", ".output.dense"),
)
"""The module names that transformers used up to 4.x."""

CLIP_TOWERS = ("text_model", "vision_model")


def _clip_tower(tower: str) -> Names:
    """Of a tower by itself: it was inside of a model that did nothing else."""
    inside = ("encoder.layers.", "invertible_adapters")
    return Names(
        {"attn.core": f"clip_{tower}_self_prefix"},
        fragments=tuple((path, f"{tower}.{path}") for path in inside),
        prefixed=False,
    )


NAMES: Mapping[str, Names] = {
    # The cross attention of these decoders is one more place behind an attention.
    **dict.fromkeys(
        ("bert", "roberta", "xlm-roberta", "electra", "xmod", "bert-generation"), Names({"cross": "mh_adapter"})
    ),
    "distilbert": Names({"attn.core": "self"}),
    # Swapped: adapters that were trained with `intermediate_lora` hold weights for `down_proj`.
    **dict.fromkeys(("llama", "mistral"), Names({"ffn.up": "output_lora", "ffn.down": "intermediate_lora"})),
    "clip": Names(stacks={("attn.core", tower): f"clip_{tower}_self_prefix" for tower in CLIP_TOWERS}),
    **{f"clip_{tower}": _clip_tower(tower) for tower in CLIP_TOWERS},
    # Weights were trained on thirds of a projection whose columns are arranged by heads.
    "deberta": Names(
        {"attn.core": "self_prefix"}, columns={f"attn.{part}": Columns(i, i + 1, of=3) for i, part in enumerate("qkv")}
    ),
    "deberta-v2": Names({"attn.core": "self_prefix"}),
    **dict.fromkeys(("vit", "beit"), Names(fragments=OLD_VISION)),
}
"""`config.model_type` -> what files call its places, where it differs."""


def names_of(model_type: str) -> Names:
    """What files call the places of models of this type. A model described by an interface has no type here: ""."""
    return NAMES.get(model_type, Names())


def names_in(base: nn.Module) -> Names:
    """What files call the places of a base model; of one that is made of two, those of both."""
    parts: dict[str, Any] = dict(halves(base))
    if parts:
        return PairNames(parts={path: names_of(half.config.model_type) for path, half in parts.items()})
    return names_of(base.config.model_type)  # type: ignore[union-attr, arg-type]
