"""Repositories that pass every check, and for each check some that do not; all are made here, in memory."""

from __future__ import annotations

import copy
import hashlib
import json
import math
import struct
from dataclasses import dataclass, field
from typing import Any

from adapterhub.checks import CheckContext
from adapterhub.content.safetensors import InvalidSafetensors, header_length, parse_header
from adapterhub.repos.files import Entry
from adapterhub.storage import git

CONTEXT = CheckContext(
    tasks={"sentiment": ["imdb", "sst-2"], "en": ["wiki"]},
    metrics={"accuracy": (0, 100), "loss": (None, None)},
    known_repos={"acme/english", "@ukp/en-wiki"},
    quota=10**6,
)
CARD = """---
license: apache-2.0
library_name: adapters
base_model: google-bert/bert-base-uncased
tags:
- adapters
- adapterhub:sentiment/imdb
dependencies:
- acme/english
- {key: "@ukp/en-wiki", description: the language}
results:
- {dataset: imdb, split: test, metric: accuracy, value: 0.93}
---
# Sentiment
"""
BOTTLENECK = {
    "mh_adapter": False,
    "output_adapter": True,
    "reduction_factor": 4,
    "non_linearity": "relu",
    "leave_out": [],
    "original_ln_before": True,
}
WIDTH, LAYERS, NAME = 8, 3, "imdb"


@dataclass
class MemoryFiles:
    """The files of a commit."""

    contents: dict[str, bytes] = field(default_factory=dict)

    @property
    def manifest(self) -> dict[str, Entry]:
        return {
            path: Entry(path, hashlib.sha256(data).hexdigest(), git.blob_oid(data), len(data), lfs=False)
            for path, data in self.contents.items()
        }

    async def read(self, path: str, limit: int = 1 << 21) -> bytes:
        assert len(self.contents[path]) <= limit
        return self.contents[path]

    async def header(self, path: str) -> dict[str, Any] | None:
        data = self.contents[path]
        try:
            found = parse_header(data[: header_length(data[:8])], len(data))
        except InvalidSafetensors:
            return None
        return {name: [info.dtype, list(info.shape)] for name, info in found.items()}


Shapes = dict[str, tuple[int, ...]]


def safetensors(shapes: Shapes, value: float = 0.5) -> bytes:
    """A safetensors file, all numbers of which are `value`."""
    header, at = {}, 0
    for name, shape in shapes.items():
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + struct.pack("<f", value) * (at // 4)


def bottleneck(width: int = WIDTH, inner: int = 2, name: str = NAME, layers: Any = range(LAYERS)) -> Shapes:
    """The tensors of `BOTTLENECK` in BERT, as they were written down from the old library's files."""
    found: Shapes = {}
    for layer in layers:
        at = f"bert.encoder.layer.{layer}.output.adapters.{name}"
        found[f"{at}.adapter_down.0.weight"] = (inner, width)
        found[f"{at}.adapter_down.0.bias"] = (inner,)
        found[f"{at}.adapter_up.weight"] = (width, inner)
        found[f"{at}.adapter_up.bias"] = (width,)
    return found


def config(inner: Any = None, **changes: Any) -> dict[str, Any]:
    """An `adapter_config.json`."""
    return {
        "config": BOTTLENECK if inner is None else inner,
        "hidden_size": WIDTH,
        "model_class": "BertAdapterModel",
        "model_name": "bert-base-uncased",
        "model_type": "bert",
        "name": NAME,
        "version": "adapters.1.3.0",
        **changes,
    }


def head(labels: int = 2, **changes: Any) -> dict[str, Any]:
    """A `head_config.json`."""
    names = {f"label {i}": i for i in range(2)}
    inner = {"head_type": "classification", "num_labels": labels, "label2id": names}
    return {"config": inner, "hidden_size": WIDTH, "model_type": "bert", "name": NAME, **changes}


def files(**changes: bytes | str | dict[str, Any] | None) -> MemoryFiles:
    """A repository that passes, but for some files; names have `_` for `.`, and None takes a file out."""
    contents: dict[str, Any] = {
        "README.md": CARD,
        "adapter_config.json": config(),
        "adapter.safetensors": safetensors(bottleneck()),
        "head_config.json": head(),
        "model_head.safetensors": safetensors({"heads.imdb.1.weight": (2, WIDTH)}),
        **{_NAMES.get(name, name): value for name, value in changes.items()},
    }
    return MemoryFiles({path: _bytes(value) for path, value in contents.items() if value is not None})


_NAMES = {
    "card": "README.md",
    "config": "adapter_config.json",
    "weights": "adapter.safetensors",
    "head": "head_config.json",
    "head_weights": "model_head.safetensors",
}


def _bytes(value: Any) -> bytes:
    if isinstance(value, dict):
        value = json.dumps(value)
    return value.encode() if isinstance(value, str) else value


def card(old: str, new: str) -> MemoryFiles:
    """A repository with something else in its card."""
    assert old in CARD
    return files(card=CARD.replace(old, new))


def weights(inner: Any = None, shapes: Shapes | None = None, **changes: Any) -> MemoryFiles:
    """A repository with another config and other tensors."""
    return files(config=config(inner, **changes), weights=safetensors(bottleneck() if shapes is None else shapes))


def peft(shapes: Shapes, **fields: Any) -> MemoryFiles:
    """An adapter of PEFT."""
    written = {"peft_type": "LORA", "base_model_name_or_path": "bert-base-uncased", "r": 4, **fields}
    return files(config=written, weights=None, **{"adapter_model.safetensors": safetensors(shapes)}, **_NO_HEAD)


_NO_HEAD: dict[str, None] = {"head": None, "head_weights": None}


def changed(shapes: Shapes, name: str, shape: tuple[int, ...] | None) -> Shapes:
    """The shapes with another one, or without one, for the tensor whose name ends so."""
    found = copy.copy(shapes)
    key = next(key for key in shapes if key.endswith(name))
    if shape is None:
        del found[key]
    else:
        found[key] = shape
    return found


def at(path: str, container: str, tensors: Shapes) -> Shapes:
    """Tensors of an adapter at one place."""
    return {f"{path}.{container}.{NAME}.{inner}": shape for inner, shape in tensors.items()}


# One passing set of tensors per method: {name: (config, tensors)}.
_PLACE = "bert.encoder.layer.0.output"
_QUERY = "bert.encoder.layer.0.attention.self.query"
LORA = {"architecture": "lora", "r": 4, "alpha": 4, "attn_matrices": ["q"], "composition_mode": "add"}
PREFIX = {"architecture": "prefix_tuning", "flat": False, "prefix_length": 3, "bottleneck_size": 5}
REFT = {"layers": "all", "prefix_positions": 1, "suffix_positions": 0, "r": 2, "architecture": "reft"}
METHODS: dict[str, tuple[dict[str, Any], Shapes]] = {
    "bottleneck": (BOTTLENECK, bottleneck()),
    "per layer": (
        {**BOTTLENECK, "reduction_factor": {"1": 2, "default": 4}},
        {**bottleneck(layers=(0, 2)), **bottleneck(inner=4, layers=(1,))},
    ),
    "leave_out": ({**BOTTLENECK, "leave_out": [1]}, bottleneck(layers=(0, 2))),
    "compacter": (
        {**BOTTLENECK, "phm_layer": True, "phm_dim": 2, "reduction_factor": 2},
        {
            **at(
                _PLACE,
                "adapters",
                {
                    "adapter_down.0.W_left": (2, 4, 1),
                    "adapter_down.0.W_right": (2, 1, 2),
                    "adapter_down.0.b": (4,),
                    "adapter_up.W_left": (2, 2, 1),
                    "adapter_up.W_right": (2, 1, 4),
                    "adapter_up.b": (8,),
                },
            ),
            **at("bert", "shared_parameters", {"phm_rule": (2, 2, 2)}),
        },
    ),
    "lora": (LORA, at(_QUERY, "loras", {"lora_A": (4, 8), "lora_B": (8, 4)})),
    "fused lora": (LORA, at(_QUERY, "loras", {"lora_A": (8, 8), "lora_B": (8, 4)})),
    "ia3": (
        {"architecture": "lora", "r": 1, "alpha": 1, "composition_mode": "scale"},
        at(_QUERY, "loras", {"lora_B": (8, 1)}),
    ),
    "prefix": (
        PREFIX,
        at(
            "bert.prefix_tuning",
            "prefix_tunings",
            {
                "self_prefix.wte.weight": (3, 8),
                "self_prefix.control_trans.0.weight": (5, 8),
                "self_prefix.control_trans.0.bias": (5,),
                "self_prefix.control_trans.2.weight": (48, 5),
                "self_prefix.control_trans.2.bias": (48,),
            },
        ),
    ),
    "flat prefix": (
        {**PREFIX, "flat": True},
        at("bert.prefix_tuning", "prefix_tunings", {"self_prefix.control_trans": (144,)}),
    ),
    "prompt": (
        {"architecture": "prompt_tuning", "prompt_length": 6},
        at("bert.prompt_tuning", "prompt_tunings", {"prompt_embedding.weight": (6, 4)}),
    ),
    "reft": (
        {**REFT, "orthogonality": False},
        at(
            "bert.encoder.layer.0.reft_layer",
            "refts",
            {
                "units.0.learned_source.weight": (2, 8),
                "units.0.learned_source.bias": (2,),
                "units.0.projection.weight": (2, 8),
            },
        ),
    ),
}
METHODS["union"] = (
    {"architecture": "union", "configs": [BOTTLENECK, LORA]},
    {**bottleneck(), **METHODS["lora"][1]},
)

# Tensors of each method with one wrong shape: (method, end of the tensor's name, shape).
WRONG_SHAPES = [
    ("bottleneck", "0.output.adapters.imdb.adapter_down.0.weight", (3, 8)),
    ("bottleneck", "1.output.adapters.imdb.adapter_up.bias", (9,)),
    ("per layer", "1.output.adapters.imdb.adapter_down.0.bias", (2,)),
    ("leave_out", "2.output.adapters.imdb.adapter_up.weight", (8, 3)),
    ("compacter", "adapter_down.0.W_right", (2, 1, 3)),
    ("compacter", "phm_rule", (4, 4, 4)),
    ("lora", "lora_A", (5, 8)),
    ("lora", "lora_B", (8, 5)),
    ("fused lora", "lora_A", (16, 8)),
    ("ia3", "lora_B", (8, 2)),
    ("prefix", "wte.weight", (4, 8)),
    ("prefix", "control_trans.2.bias", (47,)),
    ("flat prefix", "control_trans", (145,)),
    ("prompt", "prompt_embedding.weight", (5, 4)),
    ("reft", "learned_source.weight", (3, 8)),
    ("union", "lora_A", (5, 8)),
    ("union", "2.output.adapters.imdb.adapter_up.bias", (7,)),
]

PEFT_LORA: Shapes = {
    "base_model.model.bert.encoder.layer.0.attention.self.query.lora_A.weight": (4, 8),
    "base_model.model.bert.encoder.layer.0.attention.self.query.lora_B.weight": (8, 4),
}

Case = tuple[MemoryFiles, CheckContext]


def _in(found: MemoryFiles, **changes: Any) -> Case:
    from dataclasses import replace

    return found, replace(CONTEXT, **changes)


def _with(value: float) -> MemoryFiles:
    return files(weights=safetensors(bottleneck(), value))


# Of each check: repositories that pass it, besides the whole one, and (level, words of the message, repository) of some
# that do not.
PASSING: dict[str, list[MemoryFiles | Case]] = {
    "card.yaml": [files(card="# Without front matter\n")],
    "card.license": [card("apache-2.0", "other\nlicense_name: ours"), card("apache-2.0", "Apache-2.0")],
    "card.task": [card("adapterhub:sentiment/imdb", "adapterhub:en")],
    "card.base_model": [
        card("google-bert/bert-base-uncased", "bert-base-uncased"),
        card("base_model: google-bert/bert-base-uncased\n", ""),
        card("google-bert/bert-base-uncased", "[google-bert/bert-base-uncased, google-bert/bert-base-cased]"),
    ],
    "card.results": [card("accuracy, value: 0.93", "loss, value: -3"), card("value: 0.93", "value: 93")],
    "files.format": [],
    "files.safetensors": [],
    "files.config": [
        files(config=config("pfeiffer")),
        peft(PEFT_LORA),
        *(weights(inner, shapes) for inner, shapes in METHODS.values()),
    ],
    "weights.shape": [peft(PEFT_LORA), *(weights(inner, shapes) for inner, shapes in METHODS.values())],
    "weights.finite": [_with(3e38)],
    "weights.unused": [*(weights(inner, shapes) for inner, shapes in METHODS.values())],
    "weights.missing": [peft(PEFT_LORA), *(weights(inner, shapes) for inner, shapes in METHODS.values())],
    "head.pair": [],
    "deps.exist": [card("acme/english", "ACME/English")],
    "name.confusable": [],
    "size.quota": [],
}
FAILING: dict[str, list[tuple[str, str, MemoryFiles | Case]]] = {
    "card.yaml": [
        ("error", "Line 5", card("library_name: adapters", "library_name: [")),
        ("error", "Line 1", files(card="---\nlicense: mit\n")),
        ("error", "'license' must be a text or a list of texts", card("license: apache-2.0", "license: {a: b}")),
        ("error", "tags[1] must be a text", card("adapterhub:sentiment/imdb", "adapterhub: sentiment/imdb")),
        ("error", "UTF-8", files(card=b"---\nlicense: mit\n---\n\xff")),
        ("error", "larger than 64 KiB", files(card=f"---\nlicense: mit\nx: {'y' * 70_000}\n---\n")),
        ("warning", "no README.md", files(card=None)),
    ],
    "card.license": [
        ("warning", "no 'license'", card("license: apache-2.0\n", "")),
        ("error", "'Apache License 2.0', which is not an id", card("apache-2.0", "Apache License 2.0")),
        ("warning", "Did you mean 'apache-2.0'", card("apache-2.0", "apache2.0")),
        ("warning", "'license_name' is missing", card("apache-2.0", "other")),
    ],
    "card.task": [
        (
            "error",
            "looks like 'sentiment' but is another",
            card("adapterhub:sentiment/imdb", "adapterhub:sent1ment/imdb"),
        ),
        ("error", "looks like 'sentiment'", card("adapterhub:sentiment/imdb", "adapterhub:s\u0435ntiment/imdb")),
        ("error", "not of the form", card("adapterhub:sentiment/imdb", "'adapterhub:sentiment / imdb'")),
        ("error", "not of the form", card("adapterhub:sentiment/imdb", "AdapterHub:sentiment/imdb")),
        ("warning", "Did you mean 'sentiment/imdb'", card("sentiment/imdb", "sentimant/imdb")),
        ("warning", "Did you mean 'imdb'", card("sentiment/imdb", "sentiment/imbd")),
    ],
    "card.base_model": [
        ("error", "adapter_config.json says 'bert-base-uncased'", card("google-bert/bert-base-uncased", "a/b")),
        (
            "warning",
            "Neither 'base_model'",
            files(
                card=CARD.replace("base_model: google-bert/bert-base-uncased\n", ""),
                config=config(model_name="/data/out/bert"),
            ),
        ),
        ("error", "'base_model_relation' is 'adaptor'", card("tags:", "base_model_relation: adaptor\ntags:")),
    ],
    "card.results": [
        ("warning", "Did you mean 'accuracy'", card("metric: accuracy", "metric: accurazy")),
        ("error", "not in its range 0 to 100", card("value: 0.93", "value: 930")),
        ("error", "must have a 'metric' and a number", card("value: 0.93", "value: high")),
    ],
    "files.format": [("error", "'training_args.bin' is refused", files(**{"training_args.bin": b"x"}))],
    "files.safetensors": [("error", "'adapter.safetensors' is not a valid", files(weights=b"12345678{}"))],
    "files.config": [
        ("error", "is not JSON", files(config="{")),
        ("error", "must be a JSON object", files(config="[]")),
        ("error", "neither 'config'", files(config={"name": "a"})),
        ("error", "Did you mean 'seq_bn'", files(config=config("seq_bm"))),
        ("error", "must be a mapping or the name", files(config=config(3))),
        (
            "error",
            "'config.architecture' in adapter_config.json is 'loar'",
            files(config=config({"architecture": "loar"})),
        ),
        ("error", "none of the fields of a bottleneck", files(config=config({"r": 4}))),
        ("error", "'configs' of the union", files(config=config({"architecture": "union"}))),
        (
            "error",
            "'config.configs[1].r'",
            files(config=config({"architecture": "union", "configs": [LORA, {**LORA, "r": 0}]})),
        ),
        ("error", "'config.reduction_factor'", files(config=config({**BOTTLENECK, "reduction_factor": 0}))),
        ("error", "'config.reduction_factor'", files(config=config({**BOTTLENECK, "reduction_factor": {"x": 2}}))),
        ("error", "'config.leave_out'", files(config=config({**BOTTLENECK, "leave_out": ["0"]}))),
        (
            "error",
            "'config.non_linearity' is missing",
            files(config=config({"mh_adapter": True, "output_adapter": True, "reduction_factor": 2})),
        ),
        ("error", "'config.alpha' in adapter_config.json is 'much'", files(config=config({**LORA, "alpha": "much"}))),
        ("error", "'config.places' in", files(config=config({**LORA, "places": ["attn .q"]}))),
        ("error", "a number in [0, 1]", files(config=config({**PREFIX, "dropout": 2}))),
        ("warning", "'config.alphas' in", files(config=config({"architecture": "lora", "r": 4, "alphas": 4}))),
        ("warning", "Did you mean 'dropout'", files(config=config({**PREFIX, "drop_out": 0.1}))),
        ("error", "'hidden_size' in adapter_config.json is 'big'", files(config=config(hidden_size="big"))),
        ("warning", "Did you mean 'lora'", peft(PEFT_LORA, peft_type="LORRA")),
        ("warning", "there is no adapter_config.json", files(config=None)),
    ],
    "weights.shape": [
        *(
            ("error", f"{name}'", weights(METHODS[method][0], changed(METHODS[method][1], name, shape)))
            for method, name, shape in WRONG_SHAPES
        ),
        ("error", "'hidden_size' is 16, but", weights(hidden_size=16)),
        ("error", "(3, 8), but the config makes (2, 8)", weights(None, bottleneck(inner=3))),
        (
            "error",
            "layer.2.",
            weights({**BOTTLENECK, "scaling": 1.0}, {**bottleneck(layers=(0, 1)), **bottleneck(16, 4, layers=(2,))}),
        ),
        ("error", "'leave_out' names layer 1", weights({**BOTTLENECK, "leave_out": [1]})),
        ("error", "makes (4, in)", peft(changed(PEFT_LORA, "lora_A.weight", (3, 8)))),
        ("error", "makes (out, 4)", peft(changed(PEFT_LORA, "lora_B.weight", (8, 3)))),
        ("error", "has rank 3", peft(changed(PEFT_LORA, "lora_A.weight", (3, 8)), rank_pattern={"query": 4})),
        ("error", "(out, 1) or (1, in)", peft({"base_model.model.x.ia3_l": (8, 2)}, peft_type="IA3")),
        (
            "error",
            "'num_virtual_tokens' is 4",
            peft({"prompt_embeddings": (5, 8)}, peft_type="PROMPT_TUNING", num_virtual_tokens=4),
        ),
    ],
    "weights.finite": [
        ("error", "adapter_down.0.weight", _with(math.nan)),
        ("error", "and 9 more", _with(math.inf)),
    ],
    "weights.unused": [
        ("warning", "bert.pooler.weight", weights(None, {**bottleneck(), "bert.pooler.weight": (8, 8)})),
        ("warning", "adapters.other.", weights(None, {**bottleneck(), **bottleneck(name="other")})),
        ("warning", "loras", weights(None, {**bottleneck(), **METHODS["lora"][1]})),
        (
            "warning",
            "gate.weight",
            weights(LORA, {**METHODS["lora"][1], **at(_QUERY, "loras", {"gate.weight": (1, 8)})}),
        ),
    ],
    "weights.missing": [
        ("error", "There is no adapter.safetensors", files(weights=None)),
        ("error", "adapter_up.bias", weights(None, changed(bottleneck(), "adapter_up.bias", None))),
        ("error", "all tensors of 'adapters'", weights(None, METHODS["lora"][1])),
        (
            "error",
            "'shared_parameters'",
            weights(METHODS["compacter"][0], changed(METHODS["compacter"][1], "phm_rule", None)),
        ),
        ("warning", "no tensors for layer 1", weights(None, bottleneck(layers=(0, 2)))),
        ("error", "lora_B", peft(changed(PEFT_LORA, "lora_B.weight", None))),
        ("error", "prompt_embeddings", peft({"x": (1,)}, peft_type="PREFIX_TUNING")),
        ("error", "ia3_l", peft({"x": (1,)}, peft_type="IA3")),
    ],
    "head.pair": [
        ("error", "no model_head.safetensors", files(head_weights=None)),
        ("error", "no head_config.json", files(head=None)),
        ("error", "not a JSON object", files(head="[]")),
        ("error", "'hidden_size' is 16 in head_config.json", files(head=head(hidden_size=16))),
        ("error", "'model_type' is 'gpt2'", files(head=head(model_type="gpt2"))),
        ("warning", "names 2 labels", files(head=head(labels=3))),
    ],
    "deps.exist": [("warning", "Did you mean 'acme/english'", card("acme/english", "acme/englsh"))],
    "name.confusable": [("warning", "'acmee/imdb'", _in(files(), similar_names=["acmee/imdb"]))],
    "size.quota": [
        ("error", "2 MB of the 1 MB", _in(files(), used_bytes=2 * 10**6)),
        ("warning", "950 kB of the 1 MB", _in(files(), used_bytes=950_000)),
    ],
}
