"""Parameter-efficient, modular transfer learning for Hugging Face Transformers.

import adapters
from transformers import AutoModelForSequenceClassification

model = AutoModelForSequenceClassification.from_pretrained("bert-base-uncased")
adapters.init(model)
model.add_adapter("task", config="lora")
model.train_adapter("task")
"""

from __future__ import annotations

import importlib
from typing import Any

from adapters._conflict import refuse_foreign_distribution
from adapters._sentences import notice_sentence_transformers
from adapters._version import __version__
from adapters.compat import install

refuse_foreign_distribution()
install()

_PUBLIC: dict[str, tuple[str, ...]] = {
    "adapters.model": ("AdapterModelMixin", "init", "load_model"),
    "adapters.inspection": ("inspect",),
    "adapters.composition.blocks": (
        "AdapterCompositionBlock",
        "Average",
        "BatchSplit",
        "Fuse",
        "MultiTask",
        "Parallel",
        "Route",
        "Split",
        "Stack",
        "parse_composition",
        "validate_composition",
    ),
    "adapters.composition.routing_config": ("RoutingConfig",),
    "adapters.composition.fusion_config": (
        "ADAPTERFUSION_CONFIG_MAP",
        "AdapterFusionConfig",
        "DEFAULT_ADAPTERFUSION_CONFIG",
        "DynamicAdapterFusionConfig",
        "StaticAdapterFusionConfig",
    ),
    "adapters.methods.interface": ("AdapterModelInterface",),
    "adapters.merging.search": ("LoraHub",),
    "adapters.runtime.active": ("AdapterSetup",),
    "adapters.runtime.adapters_config": ("ModelAdaptersConfig",),
    "adapters.methods.config": ("AdapterConfig", "ConfigUnion", "get_adapter_config_hash"),
    "adapters.methods.presets": ("ADAPTER_CONFIG_MAP", "DEFAULT_ADAPTER_CONFIG"),
    "adapters.methods.bottleneck": (
        "AdapterPlusConfig",
        "BnConfig",
        "DoubleSeqBnConfig",
        "DoubleSeqBnInvConfig",
        "ParBnConfig",
        "SeqBnConfig",
        "SeqBnInvConfig",
    ),
    "adapters.methods.compacter": ("CompacterConfig", "CompacterPlusPlusConfig"),
    "adapters.methods.lora": ("DoRAConfig", "LoRAConfig"),
    "adapters.methods.ia3": ("IA3Config",),
    "adapters.methods.loha": ("LoHaConfig",),
    "adapters.methods.lokr": ("LoKrConfig",),
    "adapters.methods.adalora": ("AdaLoRAConfig", "RankAllocator"),
    "adapters.methods.randlora": ("RandLoRAConfig",),
    "adapters.methods.vblora": ("VBLoRAConfig",),
    "adapters.methods.oft": ("OFTConfig",),
    "adapters.methods.bitfit": ("BitFitConfig",),
    "adapters.methods.ln_tuning": ("LNTuningConfig",),
    "adapters.methods.low_rank": ("LowRankBnConfig",),
    "adapters.methods.mtl_lora": ("MTLLoRAConfig", "MultiTaskConfig"),
    "adapters.heads": (
        "BertStyleMaskedLMHead",
        "BiaffineParsingHead",
        "CausalLMHead",
        "ClassificationHead",
        "DependencyParsingOutput",
        "ImageClassificationHead",
        "ModelWithFlexibleHeadsAdaptersMixin",
        "MultiHeadOutput",
        "MultiLabelClassificationHead",
        "MultipleChoiceHead",
        "PredictionHead",
        "QuestionAnsweringHead",
        "Seq2SeqLMHead",
        "TaggingHead",
    ),
    "adapters.methods.trainable_tokens": ("TrainableTokensConfig",),
    "adapters.methods.vera": ("DvoRAConfig", "VeraConfig"),
    "adapters.methods.prefix_tuning": ("PrefixTuningConfig",),
    "adapters.methods.prompt_tuning": ("PromptTuningConfig",),
    "adapters.methods.reft": ("DiReftConfig", "LoReftConfig", "NoReftConfig", "ReftConfig"),
    "adapters.methods.unions": ("MAMConfig", "UniPELTConfig"),
    "adapters.auto": (
        "ADAPTER_MODEL_MAPPING",
        "AutoAdapterModel",
        "BartAdapterModel",
        "BertAdapterModel",
        "DistilBertAdapterModel",
        "ElectraAdapterModel",
        "GPT2AdapterModel",
        "LlamaAdapterModel",
        "MBartAdapterModel",
        "MT5AdapterModel",
        "MistralAdapterModel",
        "Qwen2AdapterModel",
        "Qwen3AdapterModel",
        "RobertaAdapterModel",
        "T5AdapterModel",
        "ViTAdapterModel",
        "XLMRobertaAdapterModel",
    ),
    "adapters.hub.locate": ("ADAPTER_CACHE",),
    "adapters.compat.names": (
        "AdapterLayerBase",
        "AdapterMethod",
        "AdapterType",
        "ComposableAdapterLayerBase",
        "EmbeddingAdaptersMixin",
        "EmbeddingAdaptersWrapperMixin",
        "ForwardContext",
        "InvertibleAdaptersMixin",
        "InvertibleAdaptersWrapperMixin",
        "ModelAdaptersMixin",
        "ModelBaseAdaptersMixin",
        "ModelWithHeadsAdaptersMixin",
        "init_adapters_config",
    ),
    "adapters.hub.listing": ("AdapterInfo", "get_adapter_info", "list_adapters"),
    "adapters.training.arguments": ("AdapterArguments", "setup_adapter_training"),
    "adapters.training.reference": ("ReferenceModel", "reference_model"),
    "adapters.training.trainer": ("AdapterTrainer", "Seq2SeqAdapterTrainer"),
}

_HOME = {name: module for module, names in _PUBLIC.items() for name in names}

__all__ = ["__version__", "hub", *sorted(_HOME)]


def __getattr__(name: str) -> Any:
    if name == "hub":
        return importlib.import_module("adapters.hub")
    home = "adapters.auto" if name.endswith("AdapterModel") else _HOME.get(name)
    if home is None:
        raise AttributeError(f"module 'adapters' has no attribute {name!r}")
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)


notice_sentence_transformers()
