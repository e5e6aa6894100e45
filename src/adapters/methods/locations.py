"""What do files call a place? From roles and module paths here to the flags and the names in files.

Files name a place by the module path that its model had when the format was made, and old configs choose places by
flags. Both differ from today's roles and paths for some families; all such differences are in this file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

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
class Names:
    """What files call the places of models of one type.

    Args:
        locations: Role -> location, where it differs from `LOCATIONS`.
        stacks: (role, path of its stack) -> location, where it differs from `STACKS`.
        columns: Role -> the columns of a fused projection that configs with flags mean, where they are not the role's.
        fragments: (path in memory, path on disk) pairs of parts of paths, where files keep the names of older models.
        prefixed: Whether files that are saved from a model around the base model put its path in front.
    """

    locations: Mapping[str, str] = field(default_factory=dict)
    stacks: Mapping[tuple[str, str], str] = field(default_factory=dict)
    columns: Mapping[str, Columns] = field(default_factory=dict)
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
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), Names({"cross": "mh_adapter"})),
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
