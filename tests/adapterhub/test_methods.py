"""The file of methods: is it what the library says today, and does the hub read it as the library reads its configs?"""

from __future__ import annotations

import ast
import importlib.util
import json
import math
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
import torch
from torch import nn

import adapterhub
from adapterhub.checks import configfile, tensors
from adapterhub.facts import configs
from adapterhub.methods import UNION, Architecture, Library, fits, library, read
from adapterhub.web import placement
from adapters.checkpoint.names import tensors_of
from adapters.errors import AdapterError
from adapters.methods import METHODS
from adapters.methods.base import LinearAdapter, fixed_parameters
from adapters.methods.config import AdapterConfig, Rule, flag, integer, layer_numbers, place_patterns
from adapters.methods.presets import ARCHITECTURES
from adapters.sites.site import LinearSite
from tests import tiny
from tests.contract.cases import CONFIGS

ROOT = Path(__file__).parents[2]


def loaded_script() -> ModuleType:
    spec = importlib.util.spec_from_file_location("hub_schemas", ROOT / "scripts" / "hub_schemas.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["hub_schemas"] = module  # its dataclasses look there
    spec.loader.exec_module(module)
    return module


SCRIPT = loaded_script()
FILE = json.loads(SCRIPT.TARGET.read_text(encoding="utf-8"))


def as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def test_fields_kinds_and_presets_are_the_librarys() -> None:
    written = {key: value for key, value in FILE.items() if key != "methods"}
    assert as_json(SCRIPT.document(tensors=False)) == written, "run scripts/hub_schemas.py"
    assert list(FILE["methods"]) == [method.__name__ for method in METHODS]


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS, ids=lambda method: method.__name__)
def test_places_and_tensors_are_the_librarys(method: Any) -> None:
    assert as_json(SCRIPT.described(method)) == FILE["methods"][method.__name__], "run scripts/hub_schemas.py"


VALUES: list[Any] = [
    *(None, True, False, 0, 1, 2, -1, 0.0, 0.5, 1.0, 1.5, -0.5, math.nan, math.inf, 2**64, "", "x", "q", "gelu"),
    *([], [0], [1, 2], [-1], ["q"], ["attn.q"], ["0-3:ffn"], ["a b"], [True], {}, {"1": 2}, {"default": 0}, {"x": 1}),
]


@pytest.mark.parametrize("name", [name for name in ARCHITECTURES if name != UNION])
def test_a_schema_holds_where_the_rule_does(name: str | None) -> None:
    fields = library().architectures[name].fields
    rules = SCRIPT.rules_of(ARCHITECTURES[name])
    assert fields.keys() == rules.keys()
    for key, rule in rules.items():
        texts = [leaf["const"] for leaf in SCRIPT.leaves(rule.schema) if isinstance(leaf.get("const"), str)]
        for value in [*VALUES, *texts]:
            if "activation" in rule.allowed and isinstance(value, str):
                continue  # which there are depends on Transformers
            assert fits(value, fields[key].schema) == bool(rule.holds(value)), (key, value)


def test_no_module_of_the_hub_names_a_method() -> None:
    """Only files of data do, and what is about PEFT. Drawings have shapes, some of which are called like methods."""
    names = {*library().titles, *library().presets, *library().aliases} - {UNION}
    folder = Path(adapterhub.__file__).parent
    of_peft = {folder / "facts" / "peft.py", folder / "checks" / "peft.py"}
    found = {
        (path.relative_to(folder).as_posix(), node.value)
        for path in sorted({*folder.rglob("*.py")} - of_peft)
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Constant) and node.value in names
    }
    shapes = {("web", word) for word in ("bottleneck", "parallel", "reft")}
    left = {(path, word) for path, word in found if (path.partition("/")[0], word) not in shapes}
    assert left == {("legacy/importing.py", "pfeiffer")}  # what the old hub took by default
    for path in folder.rglob("*.html"):
        assert not names.intersection(re.findall(r"[\"']([\w+]+)[\"']", path.read_text(encoding="utf-8"))), path


def test_every_preset_has_a_method_that_makes_something() -> None:
    for name, preset in library().presets.items():
        for member in preset.config.get("configs", [preset.config]):
            found = library().architecture(member)
            assert isinstance(found, Architecture), name
            assert found.kind(member) is not None
            assert all(method.tensors for method in found.methods_of(member))


# ---- against adapters of real models --------------------------------------------------------------------------------

VARIANTS = {
    **{name: CONFIGS[name] for name in CONFIGS},
    "gated lora": "lora[use_gating=True,r=3]",
    "channels": "seq_bn[scaling='channel',ln_before=True,ln_after=True,reduction_factor=5]",
    "gated prefix": "prefix_tuning[use_gating=True,shared_gating=False,bottleneck_size=6]",
    "whole lokr": "lokr[r=40]",
    "compacter of its own": "compacter[reduction_factor=4,phm_dim=2,shared_phm_rule=False,factorized_phm_W=False]",
    "placed": "lora[places='attn.o+ffn.*']",
    "inward": "ia3[places='attn.k+ffn.down.in']",
    "tied": "loreft[tied_weights=True]",
    "union of methods that share": "compacter[reduction_factor=4]|vera[r=3]",
    "union of one that shares": "prefix_tuning[prefix_length=3,leave_out=[0]]|prefix_tuning[leave_out=[1],flat=True]",
}


@pytest.mark.parametrize("model", ["bert", "gpt2", "t5"])
@pytest.mark.parametrize("config", VARIANTS)
def test_what_the_library_saves_is_what_the_hub_expects(config: str, model: str) -> None:
    built = tiny.build(model)
    try:
        built.add_adapter("a", config=VARIANTS[config])
    except AdapterError as refused:
        pytest.skip(str(refused))
    engine = built._engine
    state = tensors_of(engine, engine.parts["a"], "a")
    header = {name: ("F32", tuple(tensor.shape)) for name, tensor in state.items()}
    written = as_json(built.adapters_config.get("a").to_dict())
    found = tensors.compare(written, header, name="a", hidden=tiny.WIDTH, model_type=model)
    assert (found.wrong, found.missing, found.unused) == ([], [], [])
    fixed = {id(p) for module in built.modules() for p in fixed_parameters(module)}
    for name, tensor in state.items():
        trained = isinstance(tensor, nn.Parameter) and id(tensor) not in fixed
        assert configs.trains(written, name) == trained, name


# ---- a new method ---------------------------------------------------------------------------------------------------


@dataclass(eq=False)
class SqueezeConfig(AdapterConfig):
    """Adds two thin matrices and a bias, if you like.

        y = W x + b + V U x + c

    Paper: made up, arXiv:2601.00001.
    """

    architecture: str | None = "squeeze"
    thickness: int = 4
    biased: bool = False
    leave_out: list[int] = field(default_factory=list)
    places: str | list[str] = field(default_factory=lambda: ["ffn.up"])

    rules: ClassVar[Mapping[str, Rule]] = {
        "thickness": integer(1),
        "biased": flag,
        "leave_out": layer_numbers,
        "places": place_patterns,
    }


class Squeeze(LinearAdapter):
    """See its config."""

    paper = "arXiv:2601.00001"
    config_class = SqueezeConfig
    presets: ClassVar[Mapping[str, AdapterConfig]] = {"squeeze": SqueezeConfig()}

    def __init__(self, config: SqueezeConfig, site: LinearSite, name: str) -> None:
        super().__init__(config, site, name)
        self.U = nn.Parameter(torch.zeros(config.thickness, site.in_features))
        self.V = nn.Parameter(torch.zeros(site.out_features, config.thickness))
        self.c = nn.Parameter(torch.zeros(site.out_features)) if config.biased else None


@pytest.fixture
def with_squeeze(monkeypatch: pytest.MonkeyPatch) -> Iterator[Library]:
    """The hub as it is after the script has run with a new method in the library."""
    monkeypatch.setattr(SCRIPT, "METHODS", (Squeeze,))
    monkeypatch.setattr(SCRIPT, "NAMED", Squeeze.presets)
    monkeypatch.setattr(SCRIPT, "ARCHITECTURES", {"squeeze": SqueezeConfig})
    new = as_json(SCRIPT.document())
    joined = {
        **FILE,
        "architectures": [*FILE["architectures"], *new["architectures"]],
        **{key: {**FILE[key], **new[key]} for key in ("methods", "presets")},
    }
    known = read(joined)
    caches = (tensors._key, tensors._units, placement._plain)
    with monkeypatch.context() as patch:
        for module in (configs, configfile, tensors, placement):
            patch.setattr(module, "library", lambda: known)
        for one in caches:
            one.cache_clear()
        yield known
    for one in caches:
        one.cache_clear()


def test_a_new_method_needs_nothing_by_hand(with_squeeze: Library) -> None:
    config = {"architecture": "squeeze", "thickness": 3, "biased": True, "places": ["ffn.up", "attn.q"]}
    assert configs.method(config) == "squeeze"
    assert with_squeeze.titles["squeeze"] == "Squeeze"
    assert configs.config_name({**config, "places": ["ffn.up"], "biased": False}) == "squeeze"
    assert configs.config_name(config) is None
    shapes = {"U": (3, 8), "V": (20, 3), "c": (20,)}
    header = {f"encoder.layer.0.dense.loras.a.{name}": ("F32", shape) for name, shape in shapes.items()}
    good = tensors.compare(config, header, name="a")
    assert (good.wrong, good.missing, good.unused) == ([], [], [])
    bad = tensors.compare({**config, "biased": False, "thickness": 4}, header, name="a")
    assert len(bad.wrong) == 2 and len(bad.unused) == 1
    assert tensors.compare(config, dict(list(header.items())[:2]), name="a").missing
    assert [mark[:3] for mark in placement.marks(config)] == [
        ("q", "lowrank", "Squeeze"),
        ("intermediate", "lowrank", "Squeeze"),
    ]
    findings = list(configfile._member_findings("f", "config.", {**config, "thickness": 0, "leave_outs": [1]}))
    assert [finding.level for finding in findings] == ["error", "warning"]
    assert "'config.thickness' in f is 0, but must be an integer of at least 1." in findings[0].message
    assert with_squeeze.presets["squeeze"].paper == "2601.00001"
    assert with_squeeze.presets["squeeze"].text == "Adds two thin matrices and a bias, if you like."
