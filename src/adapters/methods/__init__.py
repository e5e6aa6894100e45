"""WHAT an adapter adds. `METHODS` is the registry: one file and one entry here make a method."""

from __future__ import annotations

from typing import Any

from adapters.methods.adalora import AdaLoRA
from adapters.methods.base import AdapterModule
from adapters.methods.bitfit import BitFit
from adapters.methods.bottleneck import Bottleneck
from adapters.methods.compacter import Compacter
from adapters.methods.ia3 import IA3, InwardIA3
from adapters.methods.invertible import NICE
from adapters.methods.ln_tuning import LNTuning
from adapters.methods.loha import LoHa
from adapters.methods.lokr import LoKr
from adapters.methods.lora import DoRA, LoRA
from adapters.methods.low_rank import LowRankBottleneck
from adapters.methods.mtl_lora import MTLLoRA
from adapters.methods.oft import OFT
from adapters.methods.prefix_tuning import PrefixTuning
from adapters.methods.prompt_tuning import PromptTuning
from adapters.methods.randlora import RandLoRA
from adapters.methods.reft import ReFT
from adapters.methods.trainable_tokens import TrainableTokens
from adapters.methods.vblora import VBLoRA
from adapters.methods.vera import DVoRA, VeRA

METHODS: tuple[type[AdapterModule[Any]], ...] = (
    Bottleneck,
    Compacter,
    LoRA,
    DoRA,
    IA3,
    InwardIA3,
    VeRA,
    DVoRA,
    MTLLoRA,
    LoHa,
    LoKr,
    RandLoRA,
    VBLoRA,
    AdaLoRA,
    OFT,
    BitFit,
    LNTuning,
    LowRankBottleneck,
    PrefixTuning,
    PromptTuning,
    NICE,
    ReFT,
    TrainableTokens,
)
