"""Does code that was written for `adapters` 1.x still find its names?"""

from __future__ import annotations

import importlib
import importlib.util
import subprocess
import sys

import pytest

import adapters
from adapters.compat import PLACES
from adapters.errors import ConfigError
from adapters.methods.interface import KINDS
from tests.tiny import build

OFTEN = {
    "adapters.configuration": ("LoRAConfig", "StaticAdapterFusionConfig", "ModelAdaptersConfig", "MAMConfig"),
    "adapters.configuration.adapter_config": ("SeqBnConfig", "AdapterConfig", "ConfigUnion", "ReftConfig"),
    "adapters.context": ("AdapterSetup",),
    "adapters.interface": ("AdapterModelInterface", "AdapterMethod"),
    "adapters.models.auto.adapter_model": ("AutoAdapterModel",),
    "adapters.models": ("BertAdapterModel",),
    "adapters.trainer": ("AdapterTrainer", "Seq2SeqAdapterTrainer"),
    "adapters.utils": ("AdapterInfo", "AdapterType", "get_adapter_config_hash", "ADAPTER_CACHE"),
    "adapters.wrappers": ("init", "load_model"),
    "adapters.wrappers.interfaces": ("get_adapter_interface",),
}


@pytest.mark.parametrize("place", PLACES)
def test_an_old_place_has_names_from_all_its_homes(place: str) -> None:
    module = importlib.import_module(place)
    assert module.__doc__ and all(home in module.__doc__ for home in PLACES[place])
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
    assert build("bert").supports_adapter(kind)
    assert build("llama").supports_adapter(kind) is (kind != "prompt_tuning")


@pytest.mark.parametrize("name", ["qwen2", "qwen3"])
def test_known_types_need_no_interface(name: str) -> None:
    from adapters.wrappers.interfaces import get_adapter_interface  # type: ignore[import-not-found]

    model = adapters.init(build(name, adapted=False), interface=get_adapter_interface(name))
    model.add_adapter("a", config="seq_bn_inv")
    assert set(model.get_adapter("a")) == {-1, 0, 1}
