"""What is possible at best? Each method as a few functions written for one model, with all constants computed before.

They read the weights of our adapter, so they also check, independently, that it computes what it should.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

METHODS = ("lora", "seq_bn", "double_seq_bn", "ia3", "dora", "compacter", "loreft", "prefix")


@torch.no_grad()
def by_hand(bare: Any, adapted: Any, name: str, method: str) -> Any:
    """`bare` (a copy of the model inside `adapted`), with the adapter `name` written into its modules' `forward`."""
    paths = {id(module): path for path, module in adapted.base_model.named_modules()}
    prefixes: dict[str, tuple[Tensor, Tensor]] = {}
    for part in adapted._engine.parts[name]:
        if part.hooked is None:
            continue
        site, module = part.hooked.site, part.module
        path = paths[id(site.module)]
        target = bare.base_model.get_submodule(path)
        if method == "prefix":
            prefixes[path] = tuple(tensor.detach().clone() for tensor in module.key_values())
        elif method == "seq_bn" and site.norm is not None:
            norm = bare.base_model.get_submodule(paths[id(site.norm)])
            norm.forward = sum_and_norm(norm, module)
        else:
            target.forward = FORWARDS[method](target, module)
    if prefixes:
        attend(bare, prefixes)
    return bare


def lora(linear: Any, module: Any) -> Callable[[Tensor], Tensor]:
    fixed, scale = (module.lora_A.t(), module.lora_B.t()), module.scaling

    def forward(x: Tensor) -> Tensor:
        a, b = (module.lora_A.t(), module.lora_B.t()) if torch.is_grad_enabled() else fixed
        y = F.linear(x, linear.weight, linear.bias)
        y.view(-1, y.shape[-1]).addmm_(x.view(-1, x.shape[-1]) @ a, b, alpha=scale)
        return y

    return forward


def dora(linear: Any, module: Any) -> Callable[[Tensor], Tensor]:
    inner, weight = lora(linear, module), linear.weight
    magnitude = module.m.weight.squeeze(1) / (weight + module.lora_B @ module.lora_A).norm(dim=1)

    def forward(x: Tensor) -> Tensor:
        return inner(x).mul_(magnitude)

    return forward


def ia3(linear: Any, module: Any) -> Callable[[Tensor], Tensor]:
    factor = module.lora_B.flatten()

    def forward(x: Tensor) -> Tensor:
        return F.linear(x, linear.weight, linear.bias).mul_(factor)

    return forward


Maps = tuple[Tensor, Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]


def maps(module: Any) -> Maps:
    """W_down, b_down, W_up, b_up [out, in], and the activation, of a bottleneck or compacter."""
    (down, activation), up = module.adapter_down, module.adapter_up
    function = {"ReLU": torch.relu, "SiLU": F.silu, "SiLUActivation": F.silu}.get(type(activation).__name__, F.gelu)
    if isinstance(down, nn.Linear):
        return down.weight, down.bias, up.weight, up.bias, function
    return down.matrix().contiguous(), down.b, up.matrix().contiguous(), up.b, function


def add_update(total: Tensor, z: Tensor, parts: Maps) -> Tensor:
    """total + W_up f(W_down z + b_down) + b_up."""
    down, down_bias, up, up_bias, activation = parts
    hidden = activation(F.linear(z, down, down_bias))
    out = total + up_bias
    out.view(-1, out.shape[-1]).addmm_(hidden.view(-1, hidden.shape[-1]), up.t())
    return out


def sum_and_norm(norm: Any, module: Any) -> Callable[[Tensor], Tensor]:
    parts, shape, eps = maps(module), norm.normalized_shape, norm.eps

    def forward(total: Tensor) -> Tensor:
        z = F.layer_norm(total, shape, norm.weight, norm.bias, eps)
        return F.layer_norm(add_update(total, z, parts), shape, norm.weight, norm.bias, eps)

    return forward


def bottleneck(module_at: Any, module: Any) -> Callable[[Tensor], Tensor]:
    parts = maps(module)
    if isinstance(module_at, nn.Dropout):
        return lambda h: add_update(h, h, parts)
    inner = module_at.forward

    def forward(x: Tensor) -> Tensor:
        h = inner(x)
        return add_update(h, h, parts)

    return forward


def loreft(layer: Any, module: Any) -> Callable[..., Any]:
    unit, count = module.units[0], module.config.prefix_positions
    rows = unit.projection.weight.detach()
    source = unit.learned_source.weight - rows
    bias, inner = unit.learned_source.bias, layer.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        output = inner(*args, **kwargs)
        h = output[0] if isinstance(output, tuple) else output
        first = h[:, :count]
        first += F.linear(first, source, bias) @ rows
        return output

    return forward


FORWARDS: dict[str, Callable[[Any, Any], Callable[..., Any]]] = {
    "lora": lora,
    "dora": dora,
    "ia3": ia3,
    "double_seq_bn": bottleneck,
    "compacter": bottleneck,
    "loreft": loreft,
}


def attend(bare: Any, prefixes: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Let `bare` (bidirectional, without padding) attend to prefixes as well."""
    owners = {id(bare.base_model.get_submodule(path)): pair for path, pair in prefixes.items()}

    def attention(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Any, scaling: float, **kwargs: Any
    ) -> tuple[Tensor, None]:
        keys, values = owners[id(module)]
        rows = key.shape[0]
        key = torch.cat([keys.expand(rows, -1, -1, -1), key], 2)
        value = torch.cat([values.expand(rows, -1, -1, -1), value], 2)
        out = F.scaled_dot_product_attention(query, key, value, scale=scaling)
        return out.transpose(1, 2), None

    AttentionInterface.register("prefix_by_hand", attention)
    AttentionMaskInterface.register("prefix_by_hand", sdpa_mask)
    bare.config._attn_implementation = "prefix_by_hand"
