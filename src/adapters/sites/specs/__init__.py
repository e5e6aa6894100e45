"""The families that are known by name, one file each: data, or a function of the config where its flags matter."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from adapters.sites.spec import ModelSpec
from adapters.sites.specs.albert import albert
from adapters.sites.specs.bart import BART, MBART
from adapters.sites.specs.beit import beit
from adapters.sites.specs.bert import bert
from adapters.sites.specs.clip import CLIP, CLIP_TEXT, CLIP_VISION
from adapters.sites.specs.deberta import DEBERTA, DEBERTA_V2
from adapters.sites.specs.distilbert import DISTILBERT
from adapters.sites.specs.gemma import GEMMA
from adapters.sites.specs.gpt2 import GPT2
from adapters.sites.specs.gptj import GPTJ
from adapters.sites.specs.llama import LLAMA, QWEN
from adapters.sites.specs.modernbert import modernbert
from adapters.sites.specs.phi import PHI
from adapters.sites.specs.t5 import t5
from adapters.sites.specs.vit import VIT
from adapters.sites.specs.whisper import WHISPER
from adapters.sites.specs.xlm import xlm
from adapters.sites.specs.xmod import xmod

SPECS: Mapping[str, ModelSpec | Callable[[Any], ModelSpec]] = {
    **dict.fromkeys(("bert", "roberta", "xlm-roberta", "electra"), bert),
    "distilbert": DISTILBERT,
    "gpt2": GPT2,
    "gptj": GPTJ,
    "phi": PHI,
    **dict.fromkeys(("gemma2", "gemma3_text"), GEMMA),
    "modernbert": modernbert,
    "xmod": xmod,
    **dict.fromkeys(("xlm", "flaubert"), xlm),
    **dict.fromkeys(("llama", "mistral"), LLAMA),
    **dict.fromkeys(("qwen2", "qwen3"), QWEN),
    **dict.fromkeys(("t5", "mt5"), t5),
    "bart": BART,
    "mbart": MBART,
    "vit": VIT,
    "albert": albert,
    "beit": beit,
    "clip": CLIP,
    "clip_text_model": CLIP_TEXT,
    "clip_vision_model": CLIP_VISION,
    "deberta": DEBERTA,
    "deberta-v2": DEBERTA_V2,
    "whisper": WHISPER,
}
"""`config.model_type` -> spec of its models, or what makes it of their config."""
