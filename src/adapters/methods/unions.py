"""Published combinations of several methods under one adapter name."""

from __future__ import annotations

from adapters.methods.bottleneck import BnConfig, ParBnConfig, SeqBnConfig
from adapters.methods.config import AdapterConfig, ConfigUnion
from adapters.methods.lora import LoRAConfig
from adapters.methods.prefix_tuning import PrefixTuningConfig

TITLES = {"union": "Union", "mam": "Mix-and-Match", "unipelt": "UniPELT"}
"""What people call them, as in `titles` of the methods."""


class MAMConfig(ConfigUnion):
    """Mix-and-Match adapter: prefix tuning and a parallel bottleneck.

    Paper: He et al. 2022, arXiv:2110.04366.

    Args:
        prefix_tuning: By default prefix tuning with a bottleneck of 800.
        adapter: By default the parallel bottleneck.
    """

    def __init__(self, prefix_tuning: PrefixTuningConfig | None = None, adapter: BnConfig | None = None) -> None:
        super().__init__(prefix_tuning or PrefixTuningConfig(bottleneck_size=800), adapter or ParBnConfig())

    @property
    def prefix_tuning(self) -> AdapterConfig:
        """The prefix tuning member."""
        return self.configs[0]

    @property
    def adapter(self) -> AdapterConfig:
        """The bottleneck member."""
        return self.configs[1]


class UniPELTConfig(ConfigUnion):
    """UniPELT: prefix tuning, a bottleneck and LoRA, each behind a gate.

    Paper: Mao et al. 2022, arXiv:2110.07577.

    Args:
        prefix_tuning: By default gated prefix tuning of length 10.
        adapter: By default the gated sequential bottleneck with reduction factor 16.
        lora: By default gated LoRA with rank 8 and alpha 2.
    """

    def __init__(
        self,
        prefix_tuning: PrefixTuningConfig | None = None,
        adapter: BnConfig | None = None,
        lora: LoRAConfig | None = None,
    ) -> None:
        super().__init__(
            prefix_tuning or PrefixTuningConfig(prefix_length=10, use_gating=True),
            adapter or SeqBnConfig(reduction_factor=16, use_gating=True),
            lora or LoRAConfig(r=8, alpha=2, use_gating=True),
        )

    @property
    def prefix_tuning(self) -> AdapterConfig:
        """The prefix tuning member."""
        return self.configs[0]

    @property
    def adapter(self) -> AdapterConfig:
        """The bottleneck member."""
        return self.configs[1]

    @property
    def lora(self) -> AdapterConfig:
        """The LoRA member."""
        return self.configs[2]
