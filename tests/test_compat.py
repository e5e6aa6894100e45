"""Does code that was written for `adapters` 1.x still find its names?"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import adapters
from adapters.auto import MODEL_KINDS
from adapters.checkpoint.layout import KINDS as FILES
from adapters.compat import PLACES, homes_of, loading
from adapters.errors import ConfigError, UnsupportedError
from adapters.methods.interface import KINDS
from adapters.sites.specs import SPECS
from tests.tiny import build, config, inputs

OFTEN = {
    "adapters.configuration": ("LoRAConfig", "StaticAdapterFusionConfig", "ModelAdaptersConfig", "MAMConfig"),
    "adapters.configuration.adapter_config": ("SeqBnConfig", "AdapterConfig", "ConfigUnion", "ReftConfig"),
    "adapters.context": ("AdapterSetup", "ForwardContext"),
    "adapters.head_utils": ("STATIC_TO_FLEX_HEAD_MAP", "get_head_config_and_rename_list"),
    "adapters.hub_mixin": ("PushAdapterToHubMixin",),
    "adapters.interface": ("AdapterModelInterface", "AdapterMethod"),
    "adapters.loading": ("AdapterLoader", "AdapterFusionLoader", "PredictionHeadLoader", "WeightsLoader"),
    "adapters.methods.adapter_layer_base": ("AdapterLayerBase", "ComposableAdapterLayerBase"),
    "adapters.methods.modeling": ("Adapter", "BertFusion", "ParallelAdapter", "NICECouplingBlock", "PHMLinear"),
    "adapters.model_mixin": ("ModelBaseAdaptersMixin", "EmbeddingAdaptersWrapperMixin"),
    "adapters.models.auto.adapter_model": ("AutoAdapterModel",),
    "adapters.models": ("BertAdapterModel",),
    "adapters.trainer": ("AdapterTrainer", "Seq2SeqAdapterTrainer", "logger"),
    "adapters.utils": ("AdapterInfo", "AdapterType", "get_adapter_config_hash", "ADAPTER_CACHE", "WEIGHTS_NAME"),
    "adapters.wrappers": ("init", "load_model"),
    "adapters.wrappers.configuration": ("init_adapters_config", "wrap_config"),
    "adapters.wrappers.interfaces": ("get_adapter_interface",),
    **{
        f"adapters.models.{kind.replace('-', '_')}": (MODEL_KINDS[kind].name + "AdapterModel",)
        for kind in sorted(MODEL_KINDS.keys() & SPECS.keys())
    },
    "adapters.models.bert.adapter_model": ("BertAdapterModel",),
}


@pytest.mark.parametrize("place", {**PLACES, **OFTEN})
def test_an_old_place_has_names_from_all_its_homes(place: str) -> None:
    module = importlib.import_module(place)
    assert module.__doc__ and all(home in module.__doc__ for home in homes_of(place) or ())
    for name in OFTEN.get(place, ()):
        assert getattr(module, name) is getattr(adapters, name, getattr(module, name))
    with pytest.raises(AttributeError, match=place):
        module.no_such_name  # noqa: B018


def test_old_places_hide_no_module_of_ours() -> None:
    for place in PLACES:
        spec = importlib.util.find_spec(place)
        assert spec is not None and spec.origin is None, f"{place} is a file of ours: take it out of PLACES"


def test_the_usual_statements_run_in_a_new_interpreter() -> None:
    code = """
from adapters.wrappers import load_model
from adapters.configuration.adapter_config import LoRAConfig
from adapters.context import AdapterSetup
from adapters.models.auto.adapter_model import AutoAdapterModel
import adapters.trainer
print(LoRAConfig().r, adapters.trainer.AdapterTrainer.__name__)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["8", "AdapterTrainer"]


def test_what_does_not_exist_is_still_missing() -> None:
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module("adapters.configuration.no_such_place")


def test_models_are_instances_of_what_they_were_instances_of() -> None:
    assert isinstance(build("bert"), adapters.ModelAdaptersMixin)
    assert not isinstance(build("bert", adapted=False), adapters.ModelAdaptersMixin)


def test_kinds_of_methods() -> None:
    kinds = {name for name in vars(adapters.AdapterMethod) if name in KINDS}
    assert kinds == set(KINDS)
    assert adapters.AdapterMethod.get_from_config("lora") == ["lora"]
    assert set(adapters.AdapterMethod.get_from_config("seq_bn_inv")) == {"bottleneck", "invertible"}
    assert set(adapters.AdapterMethod.get_from_config(adapters.MAMConfig())) == {"bottleneck", "prefix_tuning"}
    with pytest.raises(ConfigError):
        adapters.AdapterMethod.get_from_config("no_such_method")
    assert adapters.AdapterType.has("text_lang") and not adapters.AdapterType.has("text")


@pytest.mark.parametrize("kind", KINDS)
def test_a_model_says_which_kinds_it_carries(kind: str) -> None:
    assert build("bert").supports_adapter(kind) and build("llama").supports_adapter(kind)
    assert build("vit").supports_adapter(kind) is (kind != "invertible")


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_known_types_need_no_interface(name: str) -> None:
    from adapters.wrappers.interfaces import get_adapter_interface  # type: ignore[import-not-found]

    model = adapters.init(build(name, adapted=False), interface=get_adapter_interface(name))
    model.add_adapter("a", config="seq_bn_inv")
    assert set(model.get_adapter("a")) == {-1, 0, 1}


def test_names_of_files() -> None:
    from adapters import utils  # type: ignore[attr-defined]

    assert (utils.WEIGHTS_NAME, utils.SAFE_WEIGHTS_NAME) == ("pytorch_adapter.bin", "adapter.safetensors")
    assert (utils.CONFIG_NAME, utils.SETUP_CONFIG_NAME) == ("adapter_config.json", "adapter_setup.json")
    assert utils.ADAPTERFUSION_WEIGHTS_NAME == "pytorch_model_adapter_fusion.bin"
    assert utils.SAFE_ADAPTERFUSION_WEIGHTS_NAME == "model_adapter_fusion.safetensors"
    assert (utils.HEAD_WEIGHTS_NAME, utils.SAFE_HEAD_WEIGHTS_NAME) == (FILES[1].pickle, FILES[1].safetensors)


def test_kinds_of_modules() -> None:
    from adapters.methods.bottleneck import BottleneckLayer
    from adapters.methods.lora import LoRALayer, LoRALinear
    from adapters.methods.modeling import Adapter, BertFusion, ParallelAdapter  # type: ignore[import-not-found]
    from adapters.methods.prefix_tuning import PrefixTuningLayer
    from adapters.methods.reft import ReftLayer

    model = build("bert", "classification")
    for name, method in {"s": "seq_bn", "p": "par_bn", "l": "lora", "f": "prefix_tuning", "r": "loreft"}.items():
        model.add_adapter(name, config=method)
    model.add_adapter("t", config="seq_bn")
    model.add_adapter_fusion("s,t")
    layer = model.bert.encoder.layer[0]
    found = {name: model.get_adapter(name)[0]["output_adapter"] for name in "sp"}
    assert all(isinstance(module, Adapter) for module in found.values())
    assert not isinstance(found["s"], ParallelAdapter) and isinstance(found["p"], ParallelAdapter)
    fusion = layer.output.adapter_fusion_layer["s,t"]
    assert isinstance(fusion, BertFusion) and fusion.dense_size == 32
    query = layer.attention.self.query
    assert isinstance(query, LoRALayer) and isinstance(query, LoRALinear) and not isinstance(query, BottleneckLayer)
    lora = query.loras["l"]
    assert torch.allclose(lora.delta_w, lora.lora_B @ lora.lora_A)
    carried = {
        kind: sum(isinstance(m, kind) for m in model.modules()) for kind in (LoRALayer, BottleneckLayer, ReftLayer)
    }
    assert carried == {LoRALayer: 4, BottleneckLayer: 2, ReftLayer: 2}
    assert any(isinstance(module, PrefixTuningLayer) for module in model.modules())
    assert sum(isinstance(m, adapters.AdapterLayerBase) for m in layer.modules()) == 5  # with an empty gate of prefixes

    class Mine(BottleneckLayer):
        pass

    assert not isinstance(layer.output, Mine) and issubclass(Mine, adapters.AdapterLayerBase)
    with pytest.raises(UnsupportedError, match="Mine cannot be made"):
        Mine("mh_adapter")


def test_outputs_of_several_heads_are_found_beside_the_base_of_heads() -> None:
    from adapters.heads.base import MultiHeadOutput

    assert MultiHeadOutput is adapters.MultiHeadOutput


def test_kinds_of_models() -> None:
    whole, alone = build("bert", "classification"), build("bert")
    for model in (whole, whole.bert, alone):
        assert isinstance(model, adapters.ModelAdaptersMixin)
    assert [isinstance(m, adapters.ModelBaseAdaptersMixin) for m in (whole, whole.bert, alone)] == [False, True, True]


def test_the_context_of_a_call_tells_what_it_was_asked() -> None:
    model, seen = build("bert"), []
    model.add_adapter("a", config="seq_bn[use_gating=True]", set_active=True)

    @adapters.ForwardContext.wrap
    def look(module: Any, args: Any, output: Any) -> None:
        context = adapters.ForwardContext.get_context()
        assert context is not None
        seen.append((context.output_adapter_gating_scores, set(context.adapter_gating_scores or {})))

    assert adapters.ForwardContext.get_context() is None and model.forward_context(None) is None
    model.encoder.layer[1].register_forward_hook(look)
    with adapters.ForwardContext(model, **inputs("bert")):
        model(**inputs("bert"), output_adapter_gating_scores=True)
        model(**inputs("bert"))
    assert seen == [(True, {"a"}), (False, set())]
    with pytest.raises(AttributeError, match="no_such_fact"):
        adapters.ForwardContext().no_such_fact  # noqa: B018


@pytest.mark.parametrize(
    ("loader", "name"),
    [(loading.AdapterLoader, "a"), (loading.AdapterFusionLoader, "a,b"), (loading.PredictionHeadLoader, "h")],
)
def test_loaders_save_and_load(tmp_path: Path, loader: Any, name: str) -> None:
    model, other = adapters.BertAdapterModel(config("bert")), adapters.BertAdapterModel(config("bert"))
    for one in (model, other):
        one.add_adapter("b")
    model.add_adapter("a")
    model.add_adapter_fusion("a,b")
    model.add_classification_head("h")
    loader(model).save(tmp_path, name)
    if name == "a,b":
        other.add_adapter("a")
    assert loader(other).load(tmp_path) == (tmp_path, name)
    with pytest.raises(NotImplementedError):
        loading.WeightsLoader(model).save(tmp_path, name)


def test_heads_of_plain_classes_by_their_old_table() -> None:
    from adapters.head_utils import (  # type: ignore[import-not-found]
        STATIC_TO_FLEX_HEAD_MAP,
        get_head_config_and_rename_list,
    )

    row = STATIC_TO_FLEX_HEAD_MAP["BertForSequenceClassification"]
    assert (row["config"]["head_type"], row["layers"]) == ("classification", [None, "classifier"])
    head, rename = get_head_config_and_rename_list("BertForSequenceClassification", "h", {"no": 0, "yes": 1})
    assert (head["num_labels"], head["label2id"]) == (2, {"no": 0, "yes": 1})
    assert (rename("classifier.weight"), rename("bert.x")) == ("heads.h.1.weight", "bert.x")


def test_a_config_and_its_model() -> None:
    model = build("bert", adapted=False)
    register = adapters.ModelAdaptersConfig()
    register.add("a", "lora")
    adapters.init_adapters_config(model, model.config, register)
    assert list(model.adapters_config) == ["a"]
