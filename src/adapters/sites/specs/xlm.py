"""XLM and FlauBERT: the parts of a layer stand in lists side by side, and no module is the layer."""

from __future__ import annotations

from typing import Any

from adapters.sites.spec import At, Branch, LayerList, LayerSpec, Linear, ModelSpec, Norm, Place, projections
from adapters.sites.specs.reasons import OWN_POSITIONS

NO_LAYER = "no module gives what leaves a layer: the model itself adds it up"


def xlm(config: Any) -> ModelSpec:
    """The spec of a model: FlauBERT may normalise in front of its branches."""
    first = getattr(config, "pre_norm", False)
    layers = tuple(_layer(number, first) for number in range(config.n_layers))
    embed = {"embed": At("layer_norm_emb")}
    return ModelSpec((LayerList("", layers, apart=True),), embed, {"embed.prompt": OWN_POSITIONS}, copies_inside=False)


def _layer(number: int, first: bool) -> LayerSpec:
    attention, ffn = f"attentions.{number}", f"ffns.{number}"
    norms = [f"layer_norm{i}.{number}" for i in (1, 2)]
    places: dict[str, Place] = {
        **projections("attn", attention, "q_lin", "k_lin", "v_lin"),
        "attn.o": Linear(f"{attention}.out_lin"),
        "ffn.up": Linear(f"{ffn}.lin1"),
        "ffn.down": Linear(f"{ffn}.lin2"),
    }
    for role, path, norm in zip(("attn", "ffn"), (attention, ffn), norms):
        x, after = (At(norm, "in"), "") if first else (At(path, "in"), norm)
        places |= {role: Branch(At(path), x, after, holder=path), f"{role}.norm": Norm(norm)}
    return LayerSpec(places, {"layer": NO_LAYER}) if first else LayerSpec({**places, "layer": At(norms[1])})
