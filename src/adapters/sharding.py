"""Parameters that are spread over processes: which they are, and how they are read and written whole.

FSDP2 (`fully_shard`) and tensor parallelism (`tp_plan`) keep parameters as DTensors. To read one whole is collective:
all processes that share it have to ask for it, in the same order. What FSDP1 and DeepSpeed ZeRO-3 keep is refused.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from adapters.errors import ShardingError


def _dtensor() -> Any:
    """The class DTensor, if anybody has imported it: nothing is one otherwise."""
    return getattr(sys.modules.get("torch.distributed.tensor"), "DTensor", ())


def _fsdp_module() -> Any:
    """What modules are that FSDP2 has sharded; () where it has not sharded any in this process."""
    module = getattr(sys.modules.get("torch.distributed.fsdp"), "FSDPModule", None)
    return module if module is not None and module.__subclasses__() else ()


def _of_zero(tensor: Tensor | None) -> bool:
    return hasattr(tensor, "ds_id")


def class_of(model: nn.Module) -> type[Any]:
    """The class of `model` as it was before FSDP2 gave it one of its own."""
    fsdp, kind = _fsdp_module(), type(model)
    return next(c for c in kind.__mro__ if issubclass(c, nn.Module) and not issubclass(c, fsdp)) if fsdp else kind


def is_spread(tensor: Tensor | None) -> bool:
    """Whether this process may hold only a part of `tensor`, which can be brought together with the others."""
    # compiled code has to follow the first half
    return type(tensor) not in (Tensor, nn.Parameter) and isinstance(tensor, _dtensor())


def shape_of(tensor: Tensor) -> torch.Size:
    """The shape of the whole of `tensor`."""
    shape: torch.Size = getattr(tensor, "ds_shape", tensor.shape)
    return shape


def whole(tensor: Tensor) -> Tensor:
    """The values of `tensor` from all processes that share it, without gradient; itself if it is not spread.

    Raises:
        ShardingError: it is spread in a way that nobody here knows, or the processes are not connected any more.
    """
    if is_spread(tensor):
        _check_connected()
        full: Tensor = tensor.detach().full_tensor()  # type: ignore[attr-defined]
        return full
    _check_known(tensor)
    return tensor


@torch.no_grad()
def assign(target: Tensor, values: Tensor) -> None:
    """Write into `target`; `values` are whole and equal in all processes, and each keeps its part of them.

    Raises:
        ShardingError: as `whole`; or its values are elsewhere.
    """
    if target.is_meta:
        raise ShardingError(
            "The values of this tensor are elsewhere (offloaded, or on 'meta'), where they cannot be changed. Load "
            "them before the model is dispatched, or into a new adapter."
        )
    if isinstance(target, _dtensor()) and not isinstance(values, _dtensor()):
        _check_connected()
        distribute = sys.modules["torch.distributed.tensor"].distribute_tensor
        values = values.to(target.device, target.dtype)
        target.copy_(distribute(values, target.device_mesh, target.placements, src_data_rank=None))
    else:
        _check_known(target)
        target.copy_(values)


def _check_known(tensor: Tensor) -> None:
    if getattr(tensor, "_fsdp_flattened", False):
        raise ShardingError(
            "This model is sharded by FullyShardedDataParallel (FSDP1), which keeps flattened parameters that only it "
            "can read. Use FSDP2: torch.distributed.fsdp.fully_shard, or fsdp_version=2 in accelerate."
        )
    if _of_zero(tensor):
        raise ShardingError(
            "This model is sharded by DeepSpeed ZeRO-3, whose parameters are not read or written here. Use FSDP2, or "
            "ZeRO stage 1 or 2; or have transformers.Trainer save the whole model."
        )


def _check_connected() -> None:
    if not (dist.is_available() and dist.is_initialized()):
        raise ShardingError(
            "The parameters of this model are spread over several processes, but there is no process group here to "
            "bring them together. Do it in all processes, before torch.distributed.destroy_process_group()."
        )


@contextmanager
def gathered(modules: Iterable[nn.Module]) -> Iterator[None]:
    """In this context the parameters of some modules are whole and plain, to be read only."""
    replaced: list[tuple[dict[str, Any], str, Any]] = []
    for module in modules:
        for part in module.modules():
            for name, parameter in part._parameters.items():
                if parameter is not None and is_spread(parameter):
                    replaced.append((part._parameters, name, parameter))
                    part._parameters[name] = nn.Parameter(whole(parameter), requires_grad=False)
    try:
        yield
    finally:
        for parameters, name, parameter in replaced:
            parameters[name] = parameter


# Offload


def present(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`tensors` of a model, with their values where accelerate keeps these elsewhere (on the CPU or on disk)."""
    away = {id(tensor) for tensor in tensors.values() if tensor.is_meta}
    kept: dict[int, Tensor] = {}
    for module in model.modules() if away else ():
        hook = getattr(module, "_hf_hook", None)
        for one in getattr(hook, "hooks", (hook,)):
            if (values := getattr(one, "weights_map", None)) is not None:
                below = bool(getattr(one, "place_submodules", False))
                for name, tensor in chain(module.named_parameters("", below), module.named_buffers("", below)):
                    if id(tensor) in away:
                        kept[id(tensor)] = values[name]
    return {name: kept.get(id(tensor), tensor) for name, tensor in tensors.items()}


def brought(module: nn.Module, tensor: Tensor) -> Tensor:
    """A tensor of `module` whose values accelerate keeps elsewhere, on the device where it computes; or as it is."""
    found = present(module, {"": tensor})[""]
    device = getattr(getattr(module, "_hf_hook", None), "execution_device", None)
    return found if device is None or found is tensor else found.to(device)


# Processes


@dataclass(frozen=True)
class Sharing:
    """The processes that share a model.

    Attributes:
        writes: Whether this is the one that writes files.
        averages: Whether they see different rows, so that gradients are averaged; else all compute the same.
        groups: Groups of processes that together connect all.
        device: Where tensors are that they exchange.
    """

    writes: bool
    averages: bool
    groups: tuple[Any, ...]
    device: torch.device

    def any_of(self, holds: bool) -> bool:
        """Whether something holds in any of the processes. All of them have to ask."""
        flag = torch.tensor(int(holds), device=self.device)
        for group in self.groups:
            dist.all_reduce(flag, dist.ReduceOp.MAX, group=group)
        return bool(flag)

    @torch.no_grad()
    def broadcast(self, tensor: Tensor) -> None:
        """Give `tensor`, which is plain, the values that it has in the first process."""
        for group in self.groups:
            dist.broadcast(tensor.detach(), dist.get_global_rank(group, 0), group=group)

    @torch.no_grad()
    def average(self, tensor: Tensor) -> None:
        """Give `tensor`, which is plain, its mean over all processes."""
        for group in self.groups:
            dist.all_reduce(tensor, group=group)
            tensor /= dist.get_world_size(group)


def sharing(model: nn.Module) -> Sharing | None:
    """The processes over which the parameters of `model` are spread; None if they are not.

    Raises:
        ShardingError: they are not connected.
    """
    fsdp = _fsdp_module()
    units = [module for module in model.modules() if isinstance(module, fsdp)] if fsdp else []
    for unit in units:
        unit.reshard()
    spread = next((p for p in model.parameters() if is_spread(p)), None)
    if spread is None:
        return None
    _check_connected()
    mesh = spread.device_mesh  # type: ignore[attr-defined]
    groups = tuple(mesh.get_group(dim) for dim in range(mesh.ndim))
    return Sharing(not any(mesh.get_coordinate()), bool(units), groups, torch.device(mesh.device_type))


def may_move(model: nn.Module) -> bool:
    """Whether the parameters of `model` may get other memory, or other values in it, in the course of a call."""
    fsdp = _fsdp_module()
    if fsdp and any(isinstance(module, fsdp) for module in model.modules()):
        return True
    return "deepspeed" in sys.modules and any(_of_zero(parameter) for parameter in model.parameters())


def follow(model: nn.Module, added: Iterable[nn.Module]) -> None:
    """Let modules that are added to a sharded model be the same in all processes, and stay so when they train.

    Each process has them whole. They start as in the first one; where the processes see different rows, their gradients
    are averaged as soon as they are there.
    """
    if not (dist.is_available() and dist.is_initialized()):
        return
    shared = sharing(model)
    if shared is None:
        return
    if "sequence_parallel" in (getattr(model, "_tp_plan", None) or {}).values():
        raise ShardingError(
            "This model's tp_plan spreads positions over processes (sequence_parallel), so that each would see a part "
            "of what an adapter's gradient depends on. Load it with a tp_plan of rows and columns alone ('auto')."
        )
    for module in added:
        for tensor in (*module.parameters(), *module.buffers()):
            if not is_spread(tensor) and not tensor.is_meta:
                shared.broadcast(tensor)
        if shared.averages:
            for parameter in module.parameters():
                if not is_spread(parameter):
                    parameter.register_post_accumulate_grad_hook(Averaging(shared))


class Averaging:
    """Averages the gradient of a parameter over the processes that hold it."""

    def __init__(self, shared: Sharing) -> None:
        self.shared = shared

    def __call__(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self.shared.average(parameter.grad)


# Tensor parallelism


def whole_features(x: Tensor, width: int, like: Tensor) -> Tensor:
    """`x` [..., width] of which each process has some of the last dimension, with gradients.

    All processes go on to compute the same, so the gradient of each is the part of it that is its own.

    Args:
        x: Its part.
        width: The whole width.
        like: A parameter that is spread over the same processes.
    """
    if x.shape[-1] == width:
        return x
    api = sys.modules["torch.distributed.tensor"]
    shape = (*x.shape[:-1], width)
    strides = torch.empty(shape, device="meta").stride()
    spread = api.DTensor.from_local(x, _mesh(like), [api.Shard(-1)], run_check=False, shape=shape, stride=strides)
    found: Tensor = spread.full_tensor()
    return found


def own_features(x: Tensor, width: int, like: Tensor, dim: int = -1) -> Tensor:
    """The part of `x`, which all processes have, that is this process's own: `width` of its dimension `dim`."""
    if x.shape[dim] == width:
        return x
    api = sys.modules["torch.distributed.tensor"]
    spread = api.DTensor.from_local(x, _mesh(like), [api.Replicate()], run_check=False)
    found: Tensor = spread.redistribute(placements=[api.Shard(dim)]).to_local()
    if found.shape[dim] != width:
        raise ShardingError(
            f"A process has {width} of {x.shape[dim]} features, where an even split would give it {found.shape[dim]}: "
            "the model's tp_plan splits this map in a way that adapters cannot follow. Put no adapter there."
        )
    return found


def spread_over(module: nn.Module) -> Any:
    """A parameter below `module` that a process has a part of while the module runs; None if there is none."""
    if not (dist.is_available() and dist.is_initialized()):
        return None
    return next((p for p in module.parameters() if isinstance(p, _dtensor())), None)


def is_planned(module: nn.Module) -> bool:
    """Whether a tp_plan of transformers changes what `module` itself reads, computes or returns."""
    return bool(getattr(module, "_is_hooked", False)) and dist.is_available() and dist.is_initialized()


def is_split(module: nn.Module) -> bool:
    """Whether a tp_plan lets this process compute only a part of what is below `module`."""
    return any(is_planned(part) for part in module.modules())


def is_evenly_split(module: nn.Module) -> bool:
    """Whether each process has one run of the rows, or of the columns, of the weight of a linear map."""
    weight = module._parameters.get("weight")
    return isinstance(weight, _dtensor()) and [type(p).__name__ for p in weight.placements] == ["Shard"]


def own_heads(keys: Tensor, module: nn.Module) -> Tensor:
    """Of keys or values [B, heads, ...] those of the heads that this process computes in the attention `module`."""
    like = spread_over(module)
    return keys if like is None else own_features(keys, keys.shape[1] // like.device_mesh.size(), like, 1)


def _mesh(like: Tensor) -> Any:
    if not isinstance(like, _dtensor()):
        raise ShardingError(
            "A linear map reads or returns another width than its module says, and its weight is not spread over "
            "processes, so adapters cannot tell which part is there. Put no adapter there."
        )
    return like.device_mesh
