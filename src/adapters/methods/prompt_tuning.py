"""Prompt tuning: trained embeddings in front of those of the sequence."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from transformers import AutoTokenizer

from adapters.errors import ConfigError, UnsupportedError
from adapters.methods.base import AdapterModule
from adapters.methods.carriers import PromptTuningLayer as PromptTuningLayer
from adapters.methods.config import AdapterConfig, Rule, integer, nothing, one_of, place_patterns, seed, text
from adapters.methods.parts import watched
from adapters.methods.state import HiddenState
from adapters.sites.site import PromptSite


@dataclass(eq=False)
class PromptTuningConfig(AdapterConfig):
    """Prepends trained vectors to the embedded sequence.

        out = model([P; embed(x)])

    Encoders return P more positions; decoders cut theirs, so that logits and labels are as long as the input.

    Paper: Lester et al. 2021, arXiv:2104.08691.

    Args:
        prompt_length: Vectors in front of the sequence, at least 1.
        prompt_init: "random_uniform" (within -0.5 and 0.5), or "from_string".
        prompt_init_text: With "from_string" the text whose embedded tokens, repeated as needed, are the
            start.
        combine: "prefix" puts the prompt first, "prefix_after_bos" behind the first token (not in decoders).
        init_weights_seed: Seed set before the prompt is initialised; None leaves the generator alone.
        places: Where to adapt (`methods/places.py`); prompts have one place only, "embed.prompt".
    Raises:
        ConfigError: a value is of another type or outside its range, or "from_string" has no text.
    """

    architecture: str | None = "prompt_tuning"
    prompt_length: int = 10
    prompt_init: str = "random_uniform"
    prompt_init_text: str | None = None
    combine: str = "prefix"
    init_weights_seed: int | None = None
    places: str | list[str] | None = None

    random_uniform_scale: ClassVar[float] = 0.5

    rules: ClassVar[Mapping[str, Rule]] = {
        "prompt_length": integer(1),
        "prompt_init": one_of("random_uniform", "from_string"),
        "prompt_init_text": nothing | text,
        "combine": one_of("prefix", "prefix_after_bos"),
        "init_weights_seed": seed,
        "places": place_patterns,
    }

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.prompt_init == "from_string" and not self.prompt_init_text:
            raise self._error("prompt_init_text", "With prompt_init 'from_string' a non-empty text is needed.")

    def without_start(self) -> PromptTuningConfig:
        return self.replace(prompt_init="random_uniform") if self.prompt_init == "from_string" else self


class PromptTuning(AdapterModule[HiddenState]):
    """Trained embeddings, put before the embeddings of the input (or behind its first token).

        [p_1 ... p_P, e_1 ... e_S]             prefix_after_bos: [e_1, p_1 ... p_P, e_2 ... e_S]

    In encoders such as BERT and ViT prompts join after position embeddings and their norm, so they have neither, and P
    more positions leave the model. In decoders, and in the encoders of T5 and BART, they enter where embeddings are
    given to the stack, [B, P + S, D]: they have positions 0 to P - 1, and the sequence those behind them. What leaves a
    decoder is [B, S, D] again; hidden states and attentions of its layers are those of all P + S positions, and so is
    what leaves the encoder of an encoder-decoder. A cache holds the prompt: later calls do not see it again.

    Paper: Lester et al. 2021, arXiv:2104.08691.
    """

    paper = "arXiv:2104.08691"
    titles: ClassVar[Mapping[str, str]] = {"prompt_tuning": "Prompt tuning"}
    config_class = PromptTuningConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"prompt_tuning": PromptTuningConfig()}
    site_type = PromptSite
    unmixable = "puts positions of its own in front of the sequence, and has no output there that could be mixed"
    container = "prompt_tuning.prompt_tunings"
    splits = chained_before = False
    site: PromptSite

    def __init__(self, config: PromptTuningConfig, site: PromptSite, name: str) -> None:
        super().__init__(config, site, name)
        if site.causal and config.combine != "prefix":
            raise UnsupportedError(
                f"combine={config.combine!r} is for encoders, where rows begin with their first token: those of a "
                "decoder may be padded on the left. Use combine='prefix', which puts the prompt in front of the first "
                "token too."
            )
        self.prompt_embedding = nn.Embedding(config.prompt_length, site.width)
        if config.prompt_init == "from_string":
            self._init_from_text(config)
        else:
            nn.init.uniform_(self.prompt_embedding.weight, -config.random_uniform_scale, config.random_uniform_scale)

    @torch.no_grad()
    def _init_from_text(self, config: PromptTuningConfig) -> None:
        base: Any = self.site.stack
        tokenizer = AutoTokenizer.from_pretrained(base.config.name_or_path)
        ids: list[int] = tokenizer(config.prompt_init_text, add_special_tokens=False)["input_ids"]
        if not ids:
            raise ConfigError(f"prompt_init_text {config.prompt_init_text!r} has no tokens. Give a non-empty text.")
        repeated = torch.tensor((ids * math.ceil(config.prompt_length / len(ids)))[: config.prompt_length])
        embeddings: Tensor = base.get_input_embeddings().weight
        self.prompt_embedding.weight.copy_(embeddings[repeated.to(embeddings.device)])

    @classmethod
    def acts_at(cls, config: PromptTuningConfig, site: PromptSite) -> bool:
        return True

    @property
    def extra_positions(self) -> int:
        return int(self.config.prompt_length)

    def forward(self, h: Tensor) -> Tensor:
        """The prompt in front of h [B, S, D], or behind its first position: [B, P + S, D]."""
        embedding = self.prompt_embedding
        prompt = embedding.weight
        if torch.compiler.is_compiling() or watched(embedding):
            prompt = embedding(torch.arange(self.extra_positions, device=h.device))
        prompt = prompt.to(h.dtype).expand(h.shape[0], -1, -1)
        if self.config.combine == "prefix_after_bos":
            return torch.cat([h[:, :1], prompt, h[:, 1:]], 1)
        return torch.cat([prompt, h], 1)

    def run(self, state: HiddenState) -> HiddenState:
        return replace(state, h=self(state.h))
