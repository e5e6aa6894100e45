"""How libraries for quantisation pack the weight of a linear map: to read it as a matrix, and to pack another one.

None of these libraries is imported here: a packed weight is known by its class, which its own library has imported.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Packing:
    """One way to pack weights.

    Attributes:
        known: Whether a module packs its weight so.
        dense: The weight [O, I] that it multiplies by, as it was rounded.
        replaces: Attributes of the module that hold the weight. They are replaced as a whole, never written into.
        packed: The values that they get for another weight [O, I]; None where only the library's own tools can pack.
    """

    known: Callable[[Any], bool]
    dense: Callable[[Any], Tensor]
    replaces: tuple[str, ...] = ("weight",)
    packed: Callable[[Any, Tensor], tuple[Any, ...]] | None = None


def packing_of(module: nn.Module) -> Packing | None:
    """How `module` packs its weight; None for a plain weight, and for packed ones that nobody can read."""
    if type(getattr(module, "weight", None)) in PLAIN:  # all that compiled code has to follow
        return None
    return next((packing for packing in PACKINGS if packing.known(module)), None)


PLAIN = (nn.Parameter, Tensor)
"""What a weight is that is stored as it is."""


def _weight_is(library: str, *classes: str) -> Callable[[Any], bool]:
    """Whether the weight of a module is of one of these classes of a library; of any without classes."""

    def known(module: Any) -> bool:
        kind = type(getattr(module, "weight", None))
        return kind.__module__.split(".")[0] == library and (not classes or kind.__name__ in classes)

    return known


_INT8 = _weight_is("bitsandbytes", "Int8Params")
_FOUR_BIT = _weight_is("bitsandbytes", "Params4bit")

# bitsandbytes: LLM.int8() (Dettmers et al. 2022, arXiv:2208.07339) and NF4/FP4 (Dettmers et al. 2023, arXiv:2305.14314)


def _int8_dense(module: Any) -> Tensor:
    """CB * SCB / 127, a scale per row; the first forward pass moves both from the weight to `module.state`."""
    scales = module.weight.SCB if module.weight.SCB is not None else module.state.SCB
    dense: Tensor = module.weight.data.float() * (scales.to(module.weight.device).view(-1, 1) / 127)
    return dense


def _int8_packed(module: Any, weight: Tensor) -> tuple[Any, ...]:
    old = module.weight
    scales = weight.float().abs().amax(1)
    rounded = (weight.float() * (127 / scales.clamp(min=torch.finfo(torch.float32).tiny)).view(-1, 1)).round()
    values = rounded.to(torch.int8)
    new = type(old)(values, requires_grad=False, has_fp16_weights=False, CB=values, SCB=scales)
    state = type(module.state)()
    for option in ("threshold", "has_fp16_weights", "use_pool", "is_training"):
        if hasattr(module.state, option):
            setattr(state, option, getattr(module.state, option))
    return new, state


def _four_bit_dense(module: Any) -> Tensor:
    functional = import_module("bitsandbytes.functional")
    values, state = module.weight.data, module.weight.quant_state
    if getattr(state, "packing_format_for_cpu", False):  # processors with AVX512-BF16 reorder it in the first call
        values, state = functional._convert_weight_packed_for_cpu_inverse(values, copy.deepcopy(state))
    dense: Tensor = functional.dequantize_4bit(values, state)
    return dense


def _four_bit_packed(module: Any, weight: Tensor) -> tuple[Any, ...]:
    old = module.weight
    functional = import_module("bitsandbytes.functional")
    values, state = functional.quantize_4bit(
        weight.to(old.quant_state.dtype).contiguous(),
        blocksize=old.quant_state.blocksize,
        compress_statistics=old.quant_state.nested,
        quant_type=old.quant_state.quant_type,
        quant_storage=old.quant_storage,
    )
    new = type(old)(
        values,
        requires_grad=False,
        quant_state=state,
        blocksize=old.blocksize,
        compress_statistics=old.compress_statistics,
        quant_type=old.quant_type,
        quant_storage=old.quant_storage,
        module=module,
        bnb_quantized=True,
    )
    return new, state


# torchao: a weight is a tensor subclass, which says how it was made


def _granularity(block: Any, shape: torch.Size) -> Any:
    """How a matrix [O, I] was cut into blocks of one scale each."""
    granularity = import_module("torchao.quantization.granularity")
    rows, columns = block
    if rows == shape[0] and columns == shape[1]:
        return granularity.PerTensor()
    if rows != 1:
        raise NotImplementedError(f"blocks of {tuple(block)}")
    return granularity.PerRow() if columns == shape[1] else granularity.PerGroup(columns)


def _int8_tensor(old: Any, weight: Tensor) -> Tensor:
    new: Tensor = type(old).from_hp(
        weight,
        granularity=_granularity(old.block_size, old.shape),
        act_quant_kwargs=old.act_quant_kwargs,
        act_quant_scale=old.act_quant_scale,
        act_quant_zero_point=old.act_quant_zero_point,
        act_pre_scale=old.act_pre_scale,
    )
    return new


def _float8_tensor(old: Any, weight: Tensor) -> Tensor:
    new: Tensor = type(old).from_hp(
        weight,
        float8_dtype=old.qdata.dtype,
        granularity=_granularity(old.block_size, old.shape),
        mm_config=old.mm_config,
        kernel_preference=old.kernel_preference,
        act_quant_kwargs=old.act_quant_kwargs,
    )
    return new


def _intx_tensor(old: Any, weight: Tensor) -> Tensor:
    new: Tensor = type(old).from_hp(
        weight, tuple(old.block_size), old.target_dtype, activation_quantization=old.activation_quantization
    )
    return new


_TORCHAO: Mapping[str, Callable[[Any, Tensor], Tensor]] = {
    "Int8Tensor": _int8_tensor,
    "Float8Tensor": _float8_tensor,
    "IntxUnpackedToInt8Tensor": _intx_tensor,
}


def _tensor_dense(module: Any) -> Tensor:
    dense: Tensor = module.weight.dequantize()
    return dense.detach()


def _torchao_packed(module: Any, weight: Tensor) -> tuple[Any, ...]:
    old = module.weight
    make = _TORCHAO[type(old).__name__]
    return (nn.Parameter(make(old, weight.to(old.dtype)), requires_grad=False),)


# HQQ (Badri and Shaji 2023): a module of its own


def _hqq_packed(module: Any, weight: Tensor) -> tuple[Any, ...]:
    quantizer = import_module("hqq.core.quantize").Quantizer
    options = module.quant_config["weight_quant_params"]
    values, meta = quantizer.quantize(
        weight.to(module.compute_dtype), device=module.device, compute_dtype=module.compute_dtype, **options
    )
    return nn.Parameter(values, requires_grad=False), {**meta, "quant_scale": False, "quant_zero": False}


def _module_dense(module: Any) -> Tensor:
    dense: Tensor = module.dequantize()
    return dense.detach()


PACKINGS: tuple[Packing, ...] = (
    Packing(
        lambda module: _INT8(module) and module.weight.dtype is torch.int8,
        _int8_dense,
        ("weight", "state"),
        _int8_packed,
    ),
    Packing(
        lambda module: _FOUR_BIT(module) and module.weight.quant_state is not None,
        _four_bit_dense,
        ("weight", "quant_state"),
        _four_bit_packed,
    ),
    Packing(_weight_is("torchao", *_TORCHAO), _tensor_dense, ("weight",), _torchao_packed),
    Packing(_weight_is("torchao"), _tensor_dense),
    Packing(_weight_is("optimum"), _tensor_dense),
    Packing(lambda module: hasattr(module, "W_q"), _module_dense, ("W_q", "meta"), _hqq_packed),
    Packing(lambda module: callable(getattr(module, "dequantize", None)), _module_dense),
)
"""What is tried in turn. The last of them is the contract for modules that nobody knows here: `dequantize()`."""
