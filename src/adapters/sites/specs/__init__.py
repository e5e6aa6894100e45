"""The families that are known by name: data only, one file each."""

from __future__ import annotations

from adapters.sites.spec import ModelSpec
from adapters.sites.specs.bart import BART, MBART
from adapters.sites.specs.bert import BERT
from adapters.sites.specs.distilbert import DISTILBERT
from adapters.sites.specs.gpt2 import GPT2
from adapters.sites.specs.llama import LLAMA, QWEN
from adapters.sites.specs.t5 import T5
from adapters.sites.specs.vit import VIT

SPECS: tuple[ModelSpec, ...] = (BERT, DISTILBERT, GPT2, LLAMA, QWEN, T5, BART, MBART, VIT)
