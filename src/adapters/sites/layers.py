"""Which layers does a model have, and are those that somebody names among them?"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from adapters.errors import ConfigError
from adapters.sites.site import Site


def layers_of(sites: Iterable[Site]) -> list[int]:
    """The numbers of the layers in which there are sites, in order."""
    return sorted({site.layer for site in sites if site.layer >= 0})


def in_short(layers: Iterable[int]) -> str:
    """Numbers of layers as runs: "0-11"; -1, which stands for the whole model, is left out."""
    runs: list[list[int]] = []
    for number in sorted(set(layers) - {-1}):
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def require_layers(layers: Iterable[Any], sites: Iterable[Site], what: str) -> None:
    """Refuse numbers that are not those of layers.

    Args:
        layers: What somebody gave.
        sites: All sites of the model.
        what: What was given, for the message: an argument or a field.
    Raises:
        ConfigError: a number is not that of a layer of this model, or is none.
    """
    known = layers_of(sites)
    unknown = [layer for layer in layers if isinstance(layer, bool) or layer not in known]
    if unknown:
        raise ConfigError(
            f"{what} has {sorted(unknown, key=str)}, but the layers of this model are {in_short(known)}. Layers are "
            "counted from 0, those of an encoder first."
        )
