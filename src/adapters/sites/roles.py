"""What are the places of a model called? One closed table of roles, which configs, specs, errors and docs read.

    token ids --> (embed) --> layer 0 --> ... --> layer N --> [norm] --> (embed.out) --> logits

One layer. Names in brackets are norms: drawn where pre-LN models have them, post-LN models have them behind the sum.

    x -+-> [attn.norm] --+--> attn.q --+
       |                 +--> attn.k --+--> (attn.core) --> attn.o --> (attn) --> + --> x
       |                 +--> attn.v --+                                          ^
       +--------------------------------------------------------------------------+

    x -+-> [cross.norm] -----> cross.q -+
       |   encoder states +--> cross.k -+--> (cross.core) --> cross.o --> (cross) --> + --> x
       |                  +--> cross.v -+                                            ^
       +-----------------------------------------------------------------------------+

    x -+-> [ffn.norm] --+--> ffn.up -----------+
       |                |                      *--> ffn.down --> (ffn) --> + --> (layer)
       |                +--> ffn.gate --> act -+                           ^
       +-------------------------------------------------------------------+
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Kind = Literal["linear", "branch", "attention", "norm", "layer", "embedding", "prompt", "output"]
"""What a place is made of: a linear map, the output of a residual branch, an attention function, ..."""


@dataclass(frozen=True)
class Role:
    """One place that models have: its name, its kind, and words for people."""

    name: str
    kind: Kind
    words: str


def _attention(name: str, words: str) -> tuple[Role, ...]:
    return (
        Role(f"{name}.q", "linear", f"query projection of the {words}"),
        Role(f"{name}.k", "linear", f"key projection of the {words}"),
        Role(f"{name}.v", "linear", f"value projection of the {words}"),
        Role(f"{name}.core", "attention", f"keys and values that the {words} reads"),
        Role(f"{name}.o", "linear", f"output projection of the {words}"),
        Role(f"{name}.norm", "norm", f"norm of the {words}: in front of it, or behind its sum"),
        Role(name, "branch", f"what the {words} adds to the residual stream"),
    )


ROLES: dict[str, Role] = {
    role.name: role
    for role in (
        Role("embed", "embedding", "token embeddings, where they enter the layers"),
        Role("embed.prompt", "prompt", "the embedded sequence, in front of which prompts stand"),
        *_attention("attn", "self attention"),
        *_attention("cross", "cross attention"),
        Role("ffn.up", "linear", "first linear map of the feed-forward block"),
        Role("ffn.gate", "linear", "linear map whose activation multiplies that of ffn.up, in gated blocks"),
        Role("ffn.down", "linear", "last linear map of the feed-forward block"),
        Role("ffn.norm", "norm", "norm of the feed-forward block: in front of it, or behind its sum"),
        Role("ffn", "branch", "what the feed-forward block adds to the residual stream"),
        Role("layer", "layer", "hidden states that leave the layer"),
        Role("embed.out", "output", "output embedding (LM head), in front of which maps of embed are undone"),
    )
}
"""Every role by its name, in the order in which a forward pass reaches them."""
