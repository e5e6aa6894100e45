"""How one family of Hugging Face models is laid out, as plain data.

All paths of a `LayerSpec` are relative to one transformer layer, all paths of a `ModelSpec` to the base model.

        x ----------------------------+                     x: residual input of a branch
        |                             |                     h: output of the branch, before the sum
        +--> [norm] -> q,k,v -> o --h-> + -> [norm] -->     norm: only named where it follows the sum (post-LN)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Input:
    """The address of a tensor: positional argument `index` of the module at `path`."""

    path: str
    index: int = 0


@dataclass(frozen=True)
class AttentionSpec:
    """One attention: the module that calls the attention function and its projections.

    Args:
        module: Module that is handed to the attention interface.
        q, k, v: Separate projections; or
        qkv: one projection whose output columns are the q, k and v blocks of equal width, in this order.
        prefix: Name of this attention in prefix tuning (`self_prefix`, `encoder_prefix`, `cross_prefix`, ...).
        position_bias: Path, relative to the base model, of the attention module that owns the relative position
            bias added to these scores, if there is one (T5).
    """

    module: str
    prefix: str
    q: str = ""
    k: str = ""
    v: str = ""
    qkv: str = ""
    position_bias: str = ""


@dataclass(frozen=True)
class ResidualSpec:
    """One residual branch: where x, h and the norm after the sum are, and who owns bottlenecks on disk.

    Args:
        place: `mh_adapter` (after self attention), `cross_adapter` or `output_adapter` (after the feed-forward block).
        h: Module whose (first) output is h.
        x: Address of x inside the layer.
        owner: Module path below which the `adapters` container is stored.
        norm: Norm that is applied to h + x, or empty for pre-LN layers.
        norm_after: False where `norm` is only what adapters with `original_ln_before` apply to their input.
    """

    place: Literal["mh_adapter", "cross_adapter", "output_adapter"]
    h: str
    x: Input | None
    owner: str
    norm: str = ""
    norm_after: bool = True


@dataclass(frozen=True)
class LayerSpec:
    """One list of equal layers.

    Args:
        path: The ModuleList.
        attentions: Attentions of a layer. One whose module a layer lacks (cross attention of an encoder) is skipped.
        residuals: Residual branches, skipped likewise.
        intermediate, output: Linear maps that the LoRA flags `intermediate_lora` and `output_lora` mean. Several
            candidates are separated by `|`: the first that exists is taken (T5's gated and ungated feed-forward).
        stack: Module whose `attention_mask` argument describes the positions of these layers.
    """

    path: str
    attentions: tuple[AttentionSpec, ...]
    residuals: tuple[ResidualSpec, ...]
    intermediate: str
    output: str
    stack: str = ""


@dataclass(frozen=True)
class ModelSpec:
    """One family of models.

    Args:
        model_types: `config.model_type` of the models that are laid out like this.
        layers: Lists of layers, in the order in which configs number them (encoder first).
        invertible: Where token embeddings enter the first layer: a module (its output) or an `Input`; None where
            there are none (images).
        prompt: Module whose output prompts are prepended to, or None where prompt tuning is not defined.
        static_inverse: Whether invertible adapters are undone before the output embedding of `ForX` classes too, as
            those of this family were trained. Flexible LM heads always undo them.
        causal: Whether the layers form a decoder that caches keys and values.
        disk: (in memory, on disk) pairs of path fragments, where file names kept the names of older models.
    """

    model_types: tuple[str, ...]
    layers: tuple[LayerSpec, ...]
    invertible: str | Input | None = None
    prompt: str | None = None
    disk: tuple[tuple[str, str], ...] = ()
    causal: bool = False
    static_inverse: bool = False

    def disk_name(self, path: str) -> str:
        """The name that the module at `path` has in adapter files."""
        for memory, disk in self.disk:
            path = path.replace(memory, disk)
        return path
