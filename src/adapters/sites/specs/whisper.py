"""Whisper: mBART's layers behind sound, whose states pass invertible adapters where the encoder ends."""

from __future__ import annotations

from dataclasses import replace

from adapters.sites.spec import At
from adapters.sites.specs.bart import MBART
from adapters.sites.specs.reasons import NO_SEQUENCE

WHISPER = replace(
    MBART,
    layers=tuple(replace(layers, optional=True) for layers in MBART.layers),
    places={"embed": At("encoder.layer_norm")},
    refused={"embed.prompt": NO_SEQUENCE},
)
