"""Do configs behave as frozen mappings, survive files, and get found by whatever names them?"""

from __future__ import annotations

import copy
import json
import pickle
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from adapters.composition.fusion_config import ADAPTERFUSION_CONFIG_MAP, AdapterFusionConfig
from adapters.errors import AdapterNameError, ConfigError
from adapters.methods.bottleneck import AdapterPlusConfig, BnConfig, ParBnConfig, SeqBnConfig
from adapters.methods.config import AdapterConfig, ConfigUnion, get_adapter_config_hash
from adapters.methods.ia3 import IA3Config
from adapters.methods.lora import LoRAConfig
from adapters.methods.mtl_lora import MTLLoRAConfig, MultiTaskConfig
from adapters.methods.prefix_tuning import PrefixTuningConfig
from adapters.methods.presets import ADAPTER_CONFIG_MAP, ARCHITECTURES, DEPRECATED_IDENTIFIERS
from adapters.methods.prompt_tuning import PromptTuningConfig
from adapters.methods.reft import DiReftConfig, LoReftConfig, NoReftConfig, ReftConfig
from adapters.methods.unions import MAMConfig, UniPELTConfig
from adapters.runtime.adapters_config import ModelAdaptersConfig

ALL = {**ADAPTER_CONFIG_MAP, "adapter_plus": AdapterPlusConfig()}
SINGLE = {name: config for name, config in ALL.items() if not isinstance(config, ConfigUnion)}


@pytest.mark.parametrize("name", ALL)
def test_survives_files_and_copies(name: str) -> None:
    config = ALL[name]
    read = AdapterConfig.load(json.loads(json.dumps(config.to_dict())))
    assert read == config and type(read) is ARCHITECTURES[config.architecture]
    assert read is not None and read.to_dict() == config.to_dict()
    assert get_adapter_config_hash(read) == get_adapter_config_hash(config.to_dict()) == get_adapter_config_hash(config)
    for twin in (copy.deepcopy(config), pickle.loads(pickle.dumps(config))):
        assert twin == config and type(twin) is type(config)


@pytest.mark.parametrize("name", ADAPTER_CONFIG_MAP)
def test_found_by_name(name: str) -> None:
    current = ADAPTER_CONFIG_MAP[DEPRECATED_IDENTIFIERS.get(name, name)]
    assert AdapterConfig.load(name) is AdapterConfig.load(f" {name}[] ") is current
    assert AdapterConfig.load(current) is current


@pytest.mark.parametrize("name", SINGLE)
def test_frozen_mapping(name: str) -> None:
    config = copy.deepcopy(SINGLE[name])
    assert dict(config) == config.to_dict() and len(config) == len(dict(config)) and config.get("nope") is None
    for key in [*config, "architecture", "to_dict"]:
        with pytest.raises(FrozenInstanceError):
            setattr(config, key, None)
    with pytest.raises(FrozenInstanceError):
        delattr(config, next(iter(config)))
    config.extra = 3  # type: ignore[attr-defined]
    assert config["extra"] == 3 and "extra" in config and "extra" not in config.to_dict()
    with pytest.raises(FrozenInstanceError):
        config.extra = 4  # type: ignore[attr-defined]
    assert config.replace(init_weights_seed=7)["extra"] == 3 and config == SINGLE[name]


@pytest.mark.parametrize("name", SINGLE)
def test_every_field_is_checked(name: str) -> None:
    config = SINGLE[name]
    for field in config.to_dict():
        with pytest.raises(ConfigError, match=f"{type(config).__name__}: {field} is <object"):
            config.replace(**{field: object()})


@pytest.mark.parametrize("name", ALL)
def test_replace(name: str) -> None:
    changed = ALL[name].replace(init_weights_seed=7)
    assert type(changed) is type(ALL[name]) and changed != ALL[name]
    assert changed.replace(init_weights_seed=None) == ALL[name]
    with pytest.raises(ConfigError, match="init_weights_seed"):
        ALL[name].replace(init_weights_sed=7)
    with pytest.raises(TypeError):
        ALL[name].replace(init_weights_sed=7)


def test_base_cannot_be_made() -> None:
    for base in (AdapterConfig, MultiTaskConfig):
        with pytest.raises(TypeError):
            base()
    assert isinstance(MTLLoRAConfig(), MultiTaskConfig) and isinstance(MTLLoRAConfig(), LoRAConfig)


def test_cannot_be_changed_from_outside() -> None:
    layers = [1]
    config = SeqBnConfig(leave_out=layers)
    layers.append(2)
    config.to_dict()["leave_out"].append(3)
    assert config.leave_out == [1] and SeqBnConfig().leave_out == []


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("lora[r=4, attn_matrices=['k'],dropout=0.1]", LoRAConfig(r=4, attn_matrices=["k"], dropout=0.1)),
        ("seq_bn[reduction_factor={'0': 4, 'default': 8}]", SeqBnConfig(reduction_factor={"0": 4, "default": 8})),
        ("prompt_tuning[prompt_init='from_string',prompt_init_text='a=1 | b]']",
         PromptTuningConfig(prompt_init="from_string", prompt_init_text="a=1 | b]")),
        ("pfeiffer|lora", ConfigUnion(SeqBnConfig(), LoRAConfig())),
        ("compacter++[phm_dim=2]|prefix_tuning[flat=True]",
         ConfigUnion(ADAPTER_CONFIG_MAP["compacter++"].replace(phm_dim=2), PrefixTuningConfig(flat=True))),
        ("mam[bottleneck_size=4]", MAMConfig(prefix_tuning=PrefixTuningConfig(bottleneck_size=4))),
    ],
)  # fmt: skip
def test_config_strings(spec: str, expected: AdapterConfig) -> None:
    assert AdapterConfig.load(spec) == expected


@pytest.mark.parametrize(
    "spec",
    ["par_seq_bn", "seq_bnn", "seq_bn[", "seq_bn]", "seq_bn[nope=1]", "seq_bn[16]", "lora[r=f()]", "lora[r=4", "|",
     "lora[r=x]", "lora|", "lora[r=1]x", "lora[r=4];lora", "lora[r=1,r=2", "lora[**{'r': 1}]", "no/file.json",
     "lora[r=" + "(" * 9999 + "]", "lora|lora", "mam|lora", "lora[r=1)(r=2]", "a\0b", 5, {1, 2}, object()],
)  # fmt: skip
def test_bad_specs(spec: Any) -> None:
    with pytest.raises(ConfigError):
        AdapterConfig.load(spec)


def test_messages_help() -> None:
    with pytest.raises(ConfigError, match=r"Did you mean 'seq_bn'\?"):
        AdapterConfig.load("seq_bnn")
    with pytest.raises(ConfigError, match=r"Did you mean 'prefix_length'\?"):
        AdapterConfig.load("prefix_tuning[prefix_lenght=3]")
    with pytest.raises(KeyError, match=r"architecture 'loraa'.*Did you mean 'lora'"):
        AdapterConfig.load({"architecture": "loraa"})
    with pytest.raises(ConfigError, match="mh_adapter, output_adapter, reduction_factor, non_linearity missing"):
        AdapterConfig.load({"dropout": 0.1})


def test_overrides() -> None:
    assert AdapterConfig.load("lora", r=4, alpha=None) == LoRAConfig(r=4)
    assert AdapterConfig.load(None) is AdapterConfig.load("") is AdapterConfig.load({}) is None


def test_json_files(tmp_path: Path) -> None:
    for i, content in enumerate(
        [LoRAConfig(r=4).to_dict(), {"config": "lora[r=4]"}, {"config": LoRAConfig(r=4).to_dict()}]
    ):
        path = tmp_path / f"{i}.json"
        path.write_text(json.dumps(content))
        assert AdapterConfig.load(path) == AdapterConfig.load(str(path)) == LoRAConfig(r=4)
    for text in ("{", "3", '{"config": null}', '{"config": []}'):
        path.write_text(text)
        with pytest.raises(ConfigError):
            AdapterConfig.load(path)


def test_legacy_dicts() -> None:
    old = {"ln_after": False, "mh_adapter": False, "output_adapter": True, "non_linearity": "ReLU",
           "reduction_factor": 16,
           "new_attention_norm": False,
           "invertible_adapter": {"block_type": "nice", "non_linearity": "relu", "reduction_factor": 2}}  # fmt: skip
    config = AdapterConfig.load(old)
    assert isinstance(config, BnConfig) and config.original_ln_before is False
    assert (config.inv_adapter, config.inv_adapter_reduction_factor) == ("nice", 2)
    assert config["new_attention_norm"] is False and "new_attention_norm" not in config.to_dict()
    assert (
        AdapterConfig.load({**old, "architecture": None, "invertible_adapter": None}).to_dict()["inv_adapter"] is None
    )
    with pytest.raises(ConfigError, match="'get'"):
        AdapterConfig.load({**old, "get": 1})


@pytest.mark.parametrize(
    ("make", "changes"),
    [
        (SeqBnConfig, {"scaling": "nope"}), (SeqBnConfig, {"scaling": 4}), (SeqBnConfig, {"init_weights": "nope"}),
        (SeqBnConfig, {"inv_adapter": "nope", "inv_adapter_reduction_factor": 2}),
        (SeqBnConfig, {"inv_adapter": "nice"}),
        (SeqBnConfig, {"non_linearity": "reluu"}), (SeqBnConfig, {"reduction_factor": 0}),
        (SeqBnConfig, {"reduction_factor": {}}), (SeqBnConfig, {"reduction_factor": {"first": 2}}),
        (SeqBnConfig, {"reduction_factor": {"0": -2}}), (SeqBnConfig, {"residual_before_ln": "post"}),
        (SeqBnConfig, {"dropout": 1.5}), (SeqBnConfig, {"leave_out": [-1]}), (SeqBnConfig, {"mh_adapter": 1}),
        (SeqBnConfig, {"dropout": float("nan")}), (SeqBnConfig, {"stochastic_depth": 1.0}),
        (LoRAConfig, {"r": 0}), (LoRAConfig, {"r": True}), (LoRAConfig, {"vera_d": 1}), (LoRAConfig, {"dtype": "int"}),
        (LoRAConfig, {"architecture": "reft"}), (IA3Config, {"r": 2}),
        (MTLLoRAConfig, {"weights_sharpness": 0}), (MTLLoRAConfig, {"r": -1}),
        (PrefixTuningConfig, {"prefix_length": 0}),
        (PromptTuningConfig, {"prompt_init": "from_string"}), (LoReftConfig, {"layers": "some"}),
    ],
)  # fmt: skip
def test_bad_values(make: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changes))) as caught:
        make(**changes)
    assert type(caught.value).__name__ == "ConfigError"


def test_idle_attn_matrices_warn() -> None:
    with pytest.warns(UserWarning, match=r"\['o'\]"):
        assert LoRAConfig(attn_matrices=["q", "o"]).attn_matrices == ["q", "o"]


def test_lenient_values() -> None:
    config = SeqBnConfig(reduction_factor={0: 4, "default": 0.5}, leave_out=range(2), non_linearity="GELU")  # type: ignore[dict-item, arg-type]
    assert config.reduction_factor == {"0": 4, "default": 0.5} and config.leave_out == [0, 1]
    assert config.non_linearity == "GELU"
    assert SeqBnConfig(non_linearity="leakyrelu") and SeqBnConfig(non_linearity="xielu")


def test_subtract_projection_is_written_only_if_false() -> None:
    for config in (LoReftConfig(), NoReftConfig()):
        assert config.subtract_projection and "subtract_projection" not in {**config, **config.to_dict()}
    direft = DiReftConfig()
    assert direft.to_dict()["subtract_projection"] is False and direft != NoReftConfig()
    read = AdapterConfig.load(direft.to_dict())
    assert isinstance(read, ReftConfig) and read.subtract_projection is False
    assert LoReftConfig(subtract_projection=False).to_dict()["subtract_projection"] is False
    assert get_adapter_config_hash(direft) == get_adapter_config_hash(NoReftConfig())


def test_unions() -> None:
    union = ConfigUnion(SeqBnConfig(), LoRAConfig(r=4))
    assert (union["0.output_adapter"], union["1.r"], union[1].r, len(union)) == (
        True,
        4,
        4,
        len(union[0]) + len(union[1]),
    )
    assert dict(union) == {f"{i}.{k}": v for i in (0, 1) for k, v in union[i].items()}
    assert union.to_dict() == {"architecture": "union", "configs": [union[0].to_dict(), union[1].to_dict()]}
    assert (MAMConfig().prefix_tuning.bottleneck_size, UniPELTConfig().lora.alpha) == (800, 2)  # type: ignore[attr-defined]
    assert all(config.use_gating for config in UniPELTConfig().configs)  # type: ignore[attr-defined]
    for members in ((SeqBnConfig(), union), ("lora",), (LoRAConfig, SeqBnConfig())):
        with pytest.raises(TypeError):
            ConfigUnion(*members)  # type: ignore[arg-type]
    both = {"mh_adapter": True, "output_adapter": False}
    assert ConfigUnion(SeqBnConfig(), SeqBnConfig(**both)) and ConfigUnion(LoRAConfig(), LoRAConfig(leave_out=[1]))
    for pair in (
        (LoRAConfig(), IA3Config()),
        (SeqBnConfig(), ParBnConfig()),
        (SeqBnConfig(), SeqBnConfig(mh_adapter=True)),
    ):
        with pytest.raises(ConfigError, match="leave_out"):
            ConfigUnion(*pair)


def test_hash_is_the_published_one() -> None:
    assert get_adapter_config_hash(SeqBnConfig()) == "9076f36a74755ac4"
    assert get_adapter_config_hash(LoRAConfig(alpha=16)) == "779363b34fd3bd94"
    assert get_adapter_config_hash(LoReftConfig()) == "141e29e6c21f7261"
    assert get_adapter_config_hash(ADAPTER_CONFIG_MAP["compacter++"]) == "cfa13994accfb5f4"
    assert get_adapter_config_hash(SeqBnConfig(), length=6) == "9076f3"


@pytest.mark.parametrize("name", ADAPTERFUSION_CONFIG_MAP)
def test_fusion_configs(name: str) -> None:
    config = AdapterFusionConfig.load(name)
    assert AdapterFusionConfig.load(config.to_dict()) == config == AdapterFusionConfig.load(config)
    assert AdapterFusionConfig.load(name, temperature=True, key=None) == config.replace(temperature=True)
    for field in config:
        with pytest.raises(ConfigError, match=field):
            config.replace(**{field: "yes"})
    for odd in ("dynamics", 3, LoRAConfig()):
        with pytest.raises(ConfigError):
            AdapterFusionConfig.load(odd)
    assert AdapterFusionConfig.load(None) is ADAPTERFUSION_CONFIG_MAP["dynamic"]


class TestModelAdaptersConfig:
    def test_register(self) -> None:
        register = ModelAdaptersConfig()
        register.add("a")
        register.add("b", "lora[r=4]")
        register.add("c", SeqBnConfig())
        assert list(register) == ["a", "b", "c"] and len(register) == 3 and "b" in register and "d" not in register
        assert register.get("a") == SeqBnConfig() and register.get("d") is None
        assert register.adapters["a"] == register.adapters["c"] and len(register.config_map) == 2
        register.delete("a")
        register.delete("d")
        assert register.get("c") == SeqBnConfig() and "a" not in register
        register.delete("c")
        assert list(register.config_map.values()) == [LoRAConfig(r=4)]

    @pytest.mark.parametrize("name", ["", "a.b", "a,b", None, 3])
    def test_bad_names(self, name: Any) -> None:
        with pytest.raises(AdapterNameError):
            ModelAdaptersConfig().add(name)
        with pytest.raises(AdapterNameError):
            ModelAdaptersConfig().add_fusion(["a", name])
        register = ModelAdaptersConfig()
        register.add("a")
        with pytest.raises(AdapterNameError, match="already"):
            register.add("a", "lora")

    def test_equal_hashes_do_not_mix(self) -> None:
        twins = [DiReftConfig(), NoReftConfig(), AdapterConfig.load("compacter++"),
                 SeqBnConfig(reduction_factor=32, non_linearity="gelu"),
                 LoRAConfig(), LoRAConfig(leave_out=[])]  # fmt: skip
        register = ModelAdaptersConfig()
        for i, config in enumerate(twins):
            register.add(f"n{i}", config)
        read = ModelAdaptersConfig.from_dict(json.loads(json.dumps(register.to_dict())))
        for i, config in enumerate(twins):
            assert register.get(f"n{i}") is config or i == 5
            assert read.get(f"n{i}") == config
        assert len(register.config_map) == 5 and read.to_dict() == register.to_dict()

    def test_match(self) -> None:
        register = ModelAdaptersConfig()
        register.add("union", ConfigUnion(LoRAConfig(leave_out=[0]), LoRAConfig(r=4, leave_out=[1]), SeqBnConfig()))
        register.add("lora", "lora")
        assert register.match("union", LoRAConfig, 0) == LoRAConfig(r=4, leave_out=[1])
        assert register.match("union", BnConfig, 0, "output_adapter") == SeqBnConfig()
        assert register.match("union", BnConfig, 0, "mh_adapter") is None
        assert register.match("union", ConfigUnion) is register.match("union", AdapterConfig) is register.get("union")
        assert register.match("lora", LoRAConfig, 5, "selfattn_lora") == LoRAConfig()
        assert register.match("lora", LoRAConfig, 5, "output_lora") is register.match("nope", LoRAConfig) is None
        with pytest.raises(ConfigError, match="leave_out"):
            register.match("union", LoRAConfig, 2)

    def test_common_config_value(self) -> None:
        register = ModelAdaptersConfig()
        for name, config in {"a": "seq_bn", "b": "lora|seq_bn", "c": "double_seq_bn"}.items():
            register.add(name, config)
        assert register.common_config_value(["a", "b"], "mh_adapter") is False
        assert register.common_config_value(["a"], "nope") is register.common_config_value([], "r") is None
        with pytest.raises(ConfigError, match="mh_adapter"):
            register.common_config_value(["a", "c"], "mh_adapter")
        with pytest.raises(AdapterNameError):
            register.common_config_value(["d"], "mh_adapter")

    def test_fusions(self) -> None:
        register = ModelAdaptersConfig()
        register.add_fusion(["a", "b"])
        register.add_fusion("a,c", {**ADAPTERFUSION_CONFIG_MAP["static"].to_dict(), "temperature": True})
        register.add_fusion(["a", "b"], "static", fusion_name="mine")
        assert register.fusions["a,b"] == "dynamic" and register.fusion_name_map == {"mine": ["a", "b"]}
        assert register.get_fusion(["a", "b"]) == (ADAPTERFUSION_CONFIG_MAP["dynamic"], ["a", "b"])
        assert register.get_fusion("mine") == (ADAPTERFUSION_CONFIG_MAP["static"], ["a", "b"])
        assert register.get_fusion("b,a") == (None, None)
        read = ModelAdaptersConfig.from_dict(json.loads(json.dumps(register.to_dict())))
        assert read.to_dict() == register.to_dict()
        assert read.get_fusion("a,c")[0] == AdapterFusionConfig.load("static", temperature=True)
        for names, name in ((["a", "b"], None), (["x"], "mine"), ([], None), (["x"], "y.z")):
            with pytest.raises(AdapterNameError):
                register.add_fusion(names, fusion_name=name)
        for fusion in ("mine", ["a", "c"], "a,b", "unknown"):
            register.delete_fusion(fusion)
        assert not register.fusions and not register.fusion_config_map and not register.fusion_name_map

    def test_old_forms(self) -> None:
        data = {
            "adapters": {"a": ["text_task", "pfeiffer"], "b": ("text_lang", None), "c": ["h1"], "d": "lora"},
            "config_map": {"text_lang": "houlsby", "h1": {**SeqBnConfig(reduction_factor=2).to_dict()}},
        }
        register = ModelAdaptersConfig.from_dict(data, fusion_models=[["a", "b"], "a,c"], fusion_config="static")
        assert [register.get(name) for name in "abcd"] == [
            ADAPTER_CONFIG_MAP["seq_bn"], ADAPTER_CONFIG_MAP["double_seq_bn"],
            SeqBnConfig(reduction_factor=2), LoRAConfig(),
        ]  # fmt: skip
        assert register.get_fusion("a,c") == (ADAPTERFUSION_CONFIG_MAP["static"], ["a", "c"])
        for entry in ("feedbeef", None, [], 3):
            with pytest.raises(ConfigError):
                ModelAdaptersConfig.from_dict({"adapters": {"a": entry}})
        assert len(ModelAdaptersConfig.from_dict(None)) == 0
