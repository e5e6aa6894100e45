"""Linear maps as libraries for quantisation store them, as far as these are installed."""

from __future__ import annotations

import functools
import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn


@dataclass(frozen=True)
class Format:
    """One way to store weights.

    Attributes:
        library: What must be importable.
        make: Quantises one `nn.Linear`.
        merges: Whether another weight can be packed in its place.
        tolerance: How far its product may be from that with the rounded weights, relative to the largest number in it:
            some round the inputs too.
    """

    library: str
    make: Callable[[nn.Linear], nn.Module]
    merges: bool = True
    tolerance: float = 1e-5


def _int8(linear: nn.Linear) -> nn.Module:
    bnb: Any = importlib.import_module("bitsandbytes")
    module = bnb.nn.Linear8bitLt(
        linear.in_features, linear.out_features, bias=linear.bias is not None, has_fp16_weights=False
    )
    module.load_state_dict(linear.state_dict())
    return module.to("cpu")  # type: ignore[no-any-return]


def _four_bit(linear: nn.Linear, **options: Any) -> nn.Module:
    bnb: Any = importlib.import_module("bitsandbytes")
    module = bnb.nn.Linear4bit(
        linear.in_features, linear.out_features, bias=linear.bias is not None, compute_dtype=torch.float32, **options
    )
    module.load_state_dict(linear.state_dict())
    return module.to("cpu")  # type: ignore[no-any-return]


def _torchao(linear: nn.Linear, config: str, **options: Any) -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it says of parts of itself that this machine cannot run
        quantization: Any = importlib.import_module("torchao.quantization")
    module = nn.Sequential(linear)
    quantization.quantize_(module, getattr(quantization, config)(**options))
    return module[0]


def _by_groups(linear: nn.Linear) -> nn.Module:
    granularity: Any = importlib.import_module("torchao.quantization.granularity")
    return _torchao(linear, "IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=granularity.PerGroup(8))


def _hqq(linear: nn.Linear) -> nn.Module:
    hqq: Any = importlib.import_module("hqq.core.quantize")
    options = hqq.BaseQuantizeConfig(nbits=4, group_size=8, axis=1)
    return hqq.HQQLinear(linear, options, compute_dtype=torch.float32, device="cpu")  # type: ignore[no-any-return]


class Readable(nn.Module):
    """A module that nobody knows, which keeps the contract for reading."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.scale = float(linear.weight.detach().abs().max()) / 127
        self.register_buffer("values", (linear.weight.detach() / self.scale).round().to(torch.int8))
        self.bias = linear.bias

    def dequantize(self) -> torch.Tensor:
        return self.values.float() * self.scale  # type: ignore[operator, union-attr]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.dequantize(), self.bias)


FORMATS = {
    "bitsandbytes int8": Format("bitsandbytes", _int8, tolerance=0.02),
    "bitsandbytes nf4": Format("bitsandbytes", functools.partial(_four_bit, quant_type="nf4")),
    "bitsandbytes fp4, statistics packed": Format(
        "bitsandbytes", functools.partial(_four_bit, quant_type="fp4", compress_statistics=True)
    ),
    "torchao int8": Format("torchao", functools.partial(_torchao, config="Int8WeightOnlyConfig")),
    "torchao float8": Format("torchao", functools.partial(_torchao, config="Float8WeightOnlyConfig")),
    "torchao int4 by groups": Format("torchao", _by_groups),
    "hqq": Format("hqq", _hqq),
    "any module with dequantize()": Format("torch", Readable, merges=False),
}


def packed(name: str, linear: nn.Linear) -> nn.Module:
    """A linear map, stored as `FORMATS[name]`. Skips the test where its library is not installed."""
    pytest.importorskip(FORMATS[name].library, reason=f"{FORMATS[name].library} is not installed")
    return FORMATS[name].make(linear).requires_grad_(False).eval()


def quantise(model: nn.Module, name: str) -> list[str]:
    """Store all linear maps in the layers of a model as `FORMATS[name]`; their paths."""
    paths = []
    for path, module in list(model.named_modules()):
        if type(module) is nn.Linear and "layer" in path:
            holder, _, key = path.rpartition(".")
            setattr(model.get_submodule(holder), key, packed(name, module))
            paths.append(path)
    return paths
