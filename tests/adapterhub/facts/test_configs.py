"""Configs as the hub reads them, against the library that writes them."""

import json

import pytest

from adapterhub.facts import configs
from adapterhub.methods import library
from adapters.methods.config import get_adapter_config_hash
from adapters.methods.presets import ADAPTER_CONFIG_MAP, DEPRECATED_IDENTIFIERS

CURRENT = [name for name in ADAPTER_CONFIG_MAP if name not in DEPRECATED_IDENTIFIERS]


def as_file(config):
    return json.loads(json.dumps(config.to_dict()))


def test_packaged_configs_are_the_librarys():
    assert configs.named() == {name: as_file(ADAPTER_CONFIG_MAP[name]) for name in CURRENT}
    assert configs.aliases() == DEPRECATED_IDENTIFIERS


@pytest.mark.parametrize("name", CURRENT)
def test_id_is_the_librarys(name):
    assert configs.config_id(as_file(ADAPTER_CONFIG_MAP[name])) == get_adapter_config_hash(ADAPTER_CONFIG_MAP[name])


def test_id_is_that_of_the_old_hub():
    assert configs.config_id(configs.named()["seq_bn"]) == "9076f36a74755ac4"
    assert configs.config_id(configs.named()["double_seq_bn"]) == "b1017368d7a97b11"


@pytest.mark.parametrize("name", CURRENT)
def test_a_named_config_is_known_by_its_name(name):
    config = as_file(ADAPTER_CONFIG_MAP[name])
    found = configs.config_name(config)
    # LoReFT and DiReFT write the same file; whoever reads it cannot tell them apart.
    assert found == name or as_file(ADAPTER_CONFIG_MAP[found]) == config


@pytest.mark.parametrize(
    ("name", "changes", "expected"),
    [
        ("seq_bn", {"reduction_factor": 2, "leave_out": [11]}, "seq_bn"),
        ("lora", {"r": 64, "alpha": 16}, "lora"),
        ("prefix_tuning", {"prefix_length": 5}, "prefix_tuning"),
        ("seq_bn", {"ln_after": True}, None),
    ],
)
def test_sizes_do_not_change_the_name_but_places_do(name, changes, expected):
    assert configs.config_name({**as_file(ADAPTER_CONFIG_MAP[name]), **changes}) == expected


METHOD_OF = {
    "seq_bn": "bottleneck",
    "double_seq_bn_inv": "bottleneck",
    "par_bn": "parallel",
    "compacter": "compacter",
    "compacter++": "compacter",
    "lora": "lora",
    "dora": "dora",
    "ia3": "ia3",
    "vera": "vera",
    "dvora": "dvora",
    "mtl_lora": "mtl_lora",
    "prefix_tuning_flat": "prefix_tuning",
    "prompt_tuning": "prompt_tuning",
    "loreft": "reft",
    "mam": "union",
}


@pytest.mark.parametrize("name", METHOD_OF)
def test_method(name):
    assert configs.method(as_file(ADAPTER_CONFIG_MAP[name])) == METHOD_OF[name]


def test_every_named_config_has_a_method_with_a_title():
    assert {configs.method(config) for config in configs.named().values()} <= library().titles.keys()


def test_what_is_no_config_has_no_method():
    assert configs.method({"architecture": "unheard of"}) is None
    assert configs.method({}) is None
