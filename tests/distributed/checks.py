"""What every process of a pair runs: the same with one process, with both, and how far they are apart.

Each check asserts what must hold in its own process, and returns what the test compares between processes.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from accelerate.state import AcceleratorState, PartialState
from accelerate.utils import DistributedType
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import apply_activation_checkpointing
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from transformers import AutoModelForCausalLM
from transformers.distributed import DistributedConfig

import adapters
from adapters import AdapterTrainer
from adapters.composition import Fuse, Route
from adapters.errors import CheckpointError, ShardingError, UnsupportedError
from adapters.sharding import is_spread, whole
from tests.contract.cases import CONFIGS
from tests.distributed.launch import WORLD
from tests.tiny import VOCAB, adapter_parameters, build, checkpoint, inputs, labels, perturb
from tests.training.toy import any_examples, arguments, trained

ROWS, STEPS = 8, 2
DEVICE = "cuda" if torch.cuda.device_count() >= WORLD else "cpu"


def mesh() -> Any:
    return init_device_mesh(DEVICE, (WORLD,))


def batch(rank: int | None = None) -> Any:
    """The whole batch, or the rows of one process."""
    given = {**inputs("llama", "lm", rows=ROWS, padded=False), "labels": labels("llama", "lm", rows=ROWS)}
    size = ROWS // WORLD
    rows = slice(None) if rank is None else slice(rank * size, (rank + 1) * size)
    return {name: values[rows].to(DEVICE) for name, values in given.items()}


def prepared(config: str = "lora", model: Any = None) -> Any:
    """A model whose adapter "a" does something, and trains: the same in every process."""
    model = adapters.init(build("llama", "lm", adapted=False) if model is None else model)
    torch.manual_seed(1)
    model.add_adapter("a", config=CONFIGS[config])
    perturb(model, "a", scale=0.05)
    model.train_adapter("a")
    return model.to(DEVICE)


def fusing() -> Any:
    """A model whose fusion of two adapters trains."""
    model = prepared("seq_bn")
    model.add_adapter("b", config=CONFIGS["seq_bn"])
    perturb(model, "b", scale=0.05)
    model.add_adapter_fusion(Fuse("a", "b"))
    perturb(model, "a,b", scale=0.05)
    model.train_adapter_fusion(Fuse("a", "b"))
    return model


def routing() -> Any:
    """A model whose routing trains, with its adapters."""
    model = prepared("lora")
    model.add_adapter("b", config=CONFIGS["lora"])
    perturb(model, "b", scale=0.05)
    model.add_adapter_routing(Route("a", "b"))
    model.train_adapter_routing(Route("a", "b"))
    return model


def fully(model: Any) -> Any:
    """`model`, every layer and the rest sharded."""
    for layer in model.base_model.layers:
        fully_shard(layer, mesh=mesh())
    return fully_shard(model, mesh=mesh())


WRAPPERS: dict[str, Callable[[Any], Any]] = {
    "ddp": DistributedDataParallel,
    "ddp static": lambda model: DistributedDataParallel(model, static_graph=True),
    "fsdp": fully,
}


def train(model: Any, given: Any, parts: int = 1) -> list[float]:
    """The losses of some steps, each of which accumulates the gradients of `parts` parts of the batch."""
    # with a small eps, Adam would take whole steps along gradients that are 0 but for rounding
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2, eps=1e-4)
    losses = []
    for _ in range(STEPS):
        total = 0.0
        for part in range(parts):
            size = len(given["input_ids"]) // parts
            rows = {name: values[part * size : (part + 1) * size] for name, values in given.items()}
            with waiting(model) if part < parts - 1 else nullcontext():
                loss = model(**rows).loss / parts
                loss.backward()
            total += loss.item()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(total)
    return losses


@contextmanager
def waiting(model: Any) -> Iterator[None]:
    """Gradients stay in their process."""
    if isinstance(model, DistributedDataParallel):
        with model.no_sync():
            yield
    elif hasattr(model, "set_requires_gradient_sync"):
        model.set_requires_gradient_sync(False)
        yield
        model.set_requires_gradient_sync(True)
    else:
        yield


def mean(values: list[float]) -> Tensor:
    """The mean over the processes."""
    found = torch.tensor(values, device=DEVICE)
    dist.all_reduce(found)
    return found.cpu() / WORLD


def compare(one: Any, many: Any, losses: list[float], found: list[float], tolerance: float = 1e-5) -> None:
    """Assert that two models have trained alike, one of them with others."""
    torch.testing.assert_close(mean(found), torch.tensor(losses), rtol=tolerance, atol=0)
    other = dict(getattr(many, "module", many).named_parameters())
    for name, parameter in one.named_parameters():
        torch.testing.assert_close(whole(other[name]).detach(), parameter.detach(), rtol=1e-4, atol=1e-5, msg=name)


def trains_alike(rank: int, wrapper: str, what: str, checkpointing: bool = False, parts: int = 1) -> None:
    """Training with two processes is that with one."""
    make = {"fusion": fusing, "routing": routing}.get(what, lambda: prepared(what))
    one, own = make(), make()
    before = {name: p.detach().clone() for name, p in one.named_parameters() if p.requires_grad}
    assert before
    if checkpointing:
        checkpoint(own.train())
        one.train()
    many = WRAPPERS[wrapper](own)
    losses, found = train(one, batch(), 1), train(many, batch(rank), parts)
    compare(one, many, losses, found)
    assert any(not torch.equal(before[name], p) for name, p in one.named_parameters() if name in before)
    with torch.no_grad():
        one.eval(), many.eval()
        expected = one(**batch()).logits
        for _ in range(2):  # what is derived from weights may be kept
            torch.testing.assert_close(many(**batch()).logits, expected, rtol=1e-4, atol=1e-5)


def digests(folder: str) -> dict[str, str]:
    """File -> hash of its bytes."""
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(Path(folder).iterdir())}


def files(rank: int, folder: str, method: str) -> dict[str, str]:
    """What a sharded model saves, loads, merges and activates is what a whole one does."""
    one, many = prepared(method), fully(prepared(method))
    given = batch()
    one.eval(), many.eval()
    logits = infer(one, given)
    torch.testing.assert_close(infer(many, given), logits, rtol=1e-4, atol=1e-5)
    if rank == 0:
        one.save_adapter(f"{folder}/one", "a")
        perturb(one, "a", seed=2)
        one.save_adapter(f"{folder}/other", "a")
    other = infer(one, given) if rank == 0 else logits.clone()
    dist.broadcast(other, 0)
    assert not torch.allclose(other, logits, atol=1e-3)

    many.save_adapter(f"{folder}/many", "a")
    assert digests(f"{folder}/many") == digests(f"{folder}/one")
    placed = {name: p.placements for name, p in many.named_parameters()}

    # the same adapter, with other values: every process takes its part
    many.load_adapter(f"{folder}/other")
    assert {name: p.placements for name, p in many.named_parameters()} == placed
    torch.testing.assert_close(infer(many, given), other, rtol=1e-4, atol=1e-5)
    many.save_adapter(f"{folder}/again", "a")
    assert digests(f"{folder}/again") == digests(f"{folder}/other")

    # a new one is in every process as a whole
    many.load_adapter(f"{folder}/one", load_as="b", set_active=True)
    torch.testing.assert_close(infer(many, given), logits, rtol=1e-4, atol=1e-5)
    many.set_active_adapters("a")
    torch.testing.assert_close(infer(many, given), other, rtol=1e-4, atol=1e-5)
    many.set_active_adapters(None)
    torch.testing.assert_close(infer(many, given), infer(build("llama", "lm").to(DEVICE), given), rtol=1e-4, atol=1e-5)
    many.set_active_adapters("a")

    # what cannot be saved or loaded is refused in every process, and nothing has changed
    (Path(folder) / "file").touch()
    with pytest.raises(CheckpointError, match="file"):
        many.save_adapter(f"{folder}/file", "a")
    broken = Path(folder) / f"broken{rank}"
    shutil.copytree(f"{folder}/one", broken)
    tensors = load_file(broken / "adapter.safetensors")
    save_file({name: values[:-1] for name, values in tensors.items()}, broken / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="does not fit"):
        many.load_adapter(str(broken))
    torch.testing.assert_close(infer(many, given), other, rtol=1e-4, atol=1e-5)
    return digests(f"{folder}/many")


def merges(rank: int, wrapper: str, method: str) -> None:
    """Merging into sharded weights gives what the adapter gave, and taking it out brings back every bit."""
    many = sharded(wrapper, method)
    given, before = batch(), weights(many)
    many.eval()
    logits = infer(many, given)
    many.merge_adapter("a")
    many.set_active_adapters(None)
    merged = weights(many)
    assert any(not torch.equal(before[name], merged[name]) for name in before)
    torch.testing.assert_close(infer(many, given), logits, rtol=1e-4, atol=1e-4)
    many.reset_adapter()
    assert all(torch.equal(values, before[name]) for name, values in weights(many).items())


def added_later(rank: int, method: str) -> None:
    """An adapter that is added to a sharded model starts, trains and is saved as one in a whole model."""
    one = prepared(method)
    many = fully(adapters.init(build("llama", "lm", adapted=False)).to(DEVICE))
    torch.manual_seed(rank)
    many.add_adapter("a", config=CONFIGS[method])
    first = dict(many.named_parameters())
    for name, parameter in adapter_parameters(many, "a").items():
        others = parameter.detach().clone()
        dist.broadcast(others, 0)
        assert torch.equal(others, parameter), f"{name} starts otherwise in other processes"
    with torch.no_grad():
        for name, parameter in adapter_parameters(one, "a").items():
            first[name].copy_(parameter)
    many.train_adapter("a")
    compare(one, many, train(one, batch()), train(many, batch(rank)))


def initialised_later(rank: int) -> None:
    """`adapters.init` finds the places of a model that is sharded already."""
    many = adapters.init(fully(build("llama", "lm", adapted=False).to(DEVICE)))
    many.add_adapter("a", config=CONFIGS["dora"])
    one = adapters.init(build("llama", "lm", adapted=False).to(DEVICE))
    one.add_adapter("a", config=CONFIGS["dora"])
    with torch.no_grad():
        for name, parameter in adapter_parameters(one, "a").items():
            found = dict(many.named_parameters())[name]
            assert found.shape == parameter.shape
            found.copy_(parameter)
    for model in (one, many):
        model.set_active_adapters("a")
    torch.testing.assert_close(infer(many, batch()), infer(one, batch()), rtol=1e-4, atol=1e-5)


def disconnected(rank: int) -> None:
    """Without a process group a sharded model says that it needs one."""
    many = fully(prepared())
    with patch.object(dist, "is_initialized", lambda: False), pytest.raises(ShardingError, match="process group"):
        many.save_adapter("/nowhere", "a")
    assert not Path("/nowhere").exists()


def wrapped_layers(rank: int) -> None:
    """What torch wraps around layers to checkpoint them (accelerate's `activation_checkpointing`) changes no place."""
    one, many = prepared(), prepared()
    layers = set(many.base_model.layers)
    apply_activation_checkpointing(many, check_fn=lambda module: module in layers)
    assert not layers & set(many.base_model.layers)
    many = fully(many)
    losses, found = train(one, batch()), train(many, batch(rank))
    torch.testing.assert_close(mean(found), torch.tensor(losses), rtol=1e-5, atol=0)
    many.add_adapter("b", config="lora")
    many.set_active_adapters("a")
    torch.testing.assert_close(infer(many, batch()), infer(one, batch()), rtol=1e-4, atol=1e-5)
    many.delete_adapter("b")
    assert not any(".b." in name for name in many.state_dict())


@torch.no_grad()
def infer(model: Any, given: Any) -> Tensor:
    logits: Tensor = model(**given).logits
    return logits


def weights(model: Any) -> dict[str, Tensor]:
    """Name -> whole tensor."""
    return {name: whole(p).detach().clone() for name, p in model.named_parameters()}


# Tensor parallelism


def split(method: str, folder: str) -> Any:
    """A model whose linear maps are spread over the processes, with a trained adapter."""
    model = AutoModelForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(tp_plan="auto"))
    return prepared(method, model.eval())


def sharded(wrapper: str, method: str) -> Any:
    return fully(prepared(method)) if wrapper == "fsdp" else split(method, wrapper)


def splits_alike(rank: int, method: str, folder: str) -> None:
    """Tensor parallelism computes and trains what one process does, every process the same."""
    one, many = prepared(method), split(method, folder)
    losses, found = train(one, batch()), train(many, batch())
    compare(one, many, losses, found)
    for values in adapter_parameters(many, "a").values():
        others = values.detach().clone()
        dist.broadcast(others, 0)
        torch.testing.assert_close(others, values.detach(), rtol=1e-5, atol=1e-7)
    one.eval(), many.eval()
    torch.testing.assert_close(infer(many, batch()), infer(one, batch()), rtol=1e-4, atol=1e-5)


def refused_splits(rank: int, folder: str) -> None:
    """Where a process cannot tell which part it has, no adapter is put, and the reason is given."""
    model = split("lora", folder)
    layer = model.model.layers[0]
    layer.input_layernorm._is_hooked = True  # as a plan may ask of norms
    with pytest.raises(UnsupportedError, match=r"tp_plan .* splits layers\.0\.input_layernorm"):
        model.add_adapter("norms", config="ln_tuning")
    weight = layer.mlp.down_proj._parameters["weight"]
    layer.mlp.down_proj._parameters["weight"] = nn.Parameter(weight.to_local())  # as libraries of kernels keep it
    with pytest.raises(UnsupportedError, match=r"tp_plan .* splits layers\.0\.mlp\.down_proj"):
        model.add_adapter("plain", config=CONFIGS["lora_everywhere"])
    assert list(model.adapters_config) == ["a"]
    model._engine.base._tp_plan = {"norm": "sequence_parallel"}
    with pytest.raises(ShardingError, match="sequence_parallel"):
        model.add_adapter("b", config="lora")
    assert list(model.adapters_config) == ["a"]


# Trainers


def fits(rank: int, folder: str, fsdp: bool) -> list[float]:
    """The losses of a run of the Trainer, which a run that resumes it repeats."""
    options: dict[str, Any] = {"fsdp": True, "fsdp_config": {"version": 2}} if fsdp else {}

    def trainer() -> AdapterTrainer:
        AcceleratorState._reset_state(reset_partial_state=True)
        given = arguments(folder, ddp_backend="gloo", per_device_train_batch_size=ROWS // WORLD, **RUN, **options)
        if fsdp:  # accelerate would take DDP on a CPU
            PartialState()._shared_state["distributed_type"] = DistributedType.MULTI_GPU
        made = AdapterTrainer(trained("llama", "lora"), given, train_dataset=any_examples("llama", 32))
        assert made.is_fsdp_enabled == fsdp
        return made

    first, again = trainer(), None
    first.train()
    assert any(is_spread(p) for p in first.model.parameters()) == fsdp
    again = trainer()
    again.train(resume_from_checkpoint=f"{folder}/checkpoint-2")
    assert losses_of(again) == losses_of(first)
    for name, values in weights(first.adapted_model).items():
        assert torch.equal(values, weights(again.adapted_model)[name]), name
    first.save_model(f"{folder}/model")
    return losses_of(first)


RUN = {"logging_strategy": "steps", "logging_steps": 1, "max_steps": 4, "save_strategy": "steps", "save_steps": 2}


def losses_of(trainer: Any) -> list[float]:
    """The loss of every step, those before a checkpoint included."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def guide(rank: int, blocks: list[str], folder: str) -> list[str]:
    """The code of docs/distributed.md runs, in all processes at once."""
    os.chdir(folder)
    given = batch(rank)
    names: dict[str, Any] = {"batch": {"input_ids": given["input_ids"], "attention_mask": given["attention_mask"]}}
    classes = []
    for block in blocks:
        AcceleratorState._reset_state(reset_partial_state=True)
        exec(compile(block, "docs/distributed.md", "exec"), names)
        classes.append(type(names["model"]).__name__)
        dist.barrier()
    assert names["arguments"].fsdp_plugin_args["fsdp_version"] == 2
    assert names["logits"].shape == (*given["input_ids"].shape, VOCAB)
    return classes
