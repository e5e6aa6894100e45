"""Prompt tuning: trained embeddings in front of those of the sequence."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from adapters.methods.config import AdapterConfig, Rule, integer, nothing, one_of, seed, text


@dataclass(eq=False)
class PromptTuningConfig(AdapterConfig):
    """Prepends trained vectors to the embedded sequence.

        out = model([P; embed(x)])

    Paper: Lester et al. 2021, arXiv:2104.08691.

    Args:
        prompt_length: Vectors in front of the sequence, at least 1.
        prompt_init: "random_uniform" (within -0.5 and 0.5), or "from_string".
        prompt_init_text: With "from_string" the text whose embedded tokens, repeated as needed, are the
            start.
        combine: "prefix" puts the prompt first, "prefix_after_bos" behind the first token.
        init_weights_seed: Seed set before the prompt is initialised; None leaves the generator alone.
    Raises:
        ConfigError: a value is of another type or outside its range, or "from_string" has no text.
    """

    architecture: str | None = "prompt_tuning"
    prompt_length: int = 10
    prompt_init: str = "random_uniform"
    prompt_init_text: str | None = None
    combine: str = "prefix"
    init_weights_seed: int | None = None

    random_uniform_scale: ClassVar[float] = 0.5

    rules: ClassVar[Mapping[str, Rule]] = {
        "prompt_length": integer(1),
        "prompt_init": one_of("random_uniform", "from_string"),
        "prompt_init_text": nothing | text,
        "combine": one_of("prefix", "prefix_after_bos"),
        "init_weights_seed": seed,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_init == "from_string" and not self.prompt_init_text:
            raise self._error(
                "prompt_init_text", "With prompt_init 'from_string' a non-empty text is needed."
            )
