"""Is it true what was read? Numbers of the model itself decide: every place is tried before it is believed."""

from __future__ import annotations

import inspect
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from adapters.errors import UnsupportedError
from adapters.sites.discovery.reading import Added, Reading
from adapters.sites.discovery.trace import untouched
from adapters.sites.site import AttentionSite, LayerSite, ResidualSite, Site
from adapters.sites.spec import At, Branch, Layout, Turn

TOLERANCE = 1e-3
"""Largest difference that is rounding, relative to the largest number of a tensor."""

Change = Callable[[Tensor], Tensor]


class Probe:
    """Reads and changes tensors of a model at addresses, in the first call of each layer."""

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.seen: dict[tuple[str, At], Tensor] = {}
        self._stack = ExitStack()
        self._calls: dict[int, int] = defaultdict(int)

    def read(self, layer: str, at: At) -> None:
        """Keep the tensor at an address, as it is when the model computes it."""
        key = layer, at
        if at.side == "in":

            def before(module: nn.Module, args: Any, kwargs: Any) -> None:
                if key not in self.seen and self._turn(id(key), at.call):
                    given = args[at.argument] if isinstance(at.argument, int) else kwargs[at.argument]
                    self.seen[key] = given.detach().clone()

            self._hook(layer, at, "register_forward_pre_hook", before, prepend=False)
        else:

            def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                if key not in self.seen and self._turn(id(key), at.call):
                    assert isinstance(at.argument, int)
                    given = output if isinstance(output, Tensor) else output[at.argument]
                    self.seen[key] = given.detach().clone()

            self._hook(layer, at, "register_forward_hook", after, prepend=False)

    def change(self, layer: str, at: At, change: Change) -> None:
        """Put another tensor in place of what a module gives; and keep what it was."""
        key = layer, at

        def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> Any:
            if not self._turn(id(key), at.call):
                return None
            given = output if isinstance(output, Tensor) else output[0]
            if key not in self.seen:
                self.seen[key] = given.detach().clone()
            new = change(given)
            return new if isinstance(output, Tensor) else type(output)((new, *output[1:]))

        self._hook(layer, at, "register_forward_hook", after, prepend=True)

    def _turn(self, key: int, turn: Turn | None) -> bool:
        if turn is None:
            return True
        number = self._calls[key]
        self._calls[key] += 1
        return number % turn[1] == turn[0]

    def _hook(self, layer: str, at: At, kind: str, hook: Any, prepend: bool) -> None:
        module = self.model.get_submodule(f"{layer}.{at.path}" if at.path else layer)
        handle = getattr(module, kind)(hook, with_kwargs=True, prepend=prepend)
        self._stack.callback(handle.remove)

    @contextmanager
    def run(self, inputs: Mapping[str, Any]) -> Iterator[Any]:
        """One forward pass with what was asked for; no hook is left."""
        with self._stack, untouched(self.model), torch.no_grad():
            yield self.model(**inputs)


@dataclass
class Trial:
    """What was read of the layers of one model, while it is tried."""

    model: nn.Module
    inputs: Mapping[str, Any]
    layers: Mapping[str, Reading]

    def run(self) -> None:
        """Refuse what does not hold, role by role."""
        self._sums_and_perturbations()
        self._zeroed_branches()

    def _sums_and_perturbations(self) -> None:
        """x + h + d arrives at the sum, where d is what is added to h: for all branches in one pass."""
        probe, moved = Probe(self.model), dict[tuple[str, str], Tensor]()
        for path, reading in self.layers.items():
            for one in reading.sums:
                probe.read(path, one.x)
                probe.read(path, one.total)
                for role in one.roles:
                    probe.change(path, _h(reading, role), _perturbation(moved, (path, role)))
        with probe.run(self.inputs):
            pass
        for path, reading in self.layers.items():
            for one in reading.sums:
                self._check_sum(probe, moved, path, reading, one)

    def _check_sum(
        self, probe: Probe, moved: Mapping[tuple[str, str], Tensor], path: str, reading: Reading, one: Added
    ) -> None:
        x, total = probe.seen.get((path, one.x)), probe.seen.get((path, one.total))
        found = [probe.seen.get((path, _h(reading, role))) for role in one.roles]
        hs = [h for h in found if h is not None]
        reason = ""
        if x is None or total is None or len(hs) < len(found):
            reason = "the modules at its addresses were not called"
        elif not all(_alike(h, x) for h in hs) or x.numel() != total.numel():
            reason = "its output has another shape than the hidden states that it is added to"
        else:
            expected = x.clone()
            for h, role in zip(hs, one.roles, strict=True):
                place = reading.places[role]
                assert isinstance(place, Branch)
                expected += place.scale * (h + moved[path, role]).reshape(x.shape)
            if not _close(total.reshape(expected.shape), expected * one.scale):
                reason = "the sum is not x + h: it changes otherwise than what the branch gives"
        if reason:
            for role in one.roles:
                reading.places.pop(role, None)
                reading.refused[role] = reason
            reading.closed = False

    def _zeroed_branches(self) -> None:
        """Layers that are x and branches only give x where these are 0."""
        closed = {path: reading for path, reading in self.layers.items() if reading.closed and reading.sums}
        if not closed:
            return
        probe, total = Probe(self.model), dict[str, At]()
        for path, reading in closed.items():
            probe.read(path, reading.sums[0].x)
            total[path] = At(path="", side="out")
            probe.read(path, total[path])
            for one in reading.sums:
                for role in one.roles:
                    probe.change(path, _h(reading, role), torch.zeros_like)
        with probe.run(self.inputs):
            pass
        for path, reading in closed.items():
            x, end = probe.seen[path, reading.sums[0].x], probe.seen[path, total[path]]
            if x.numel() == end.numel() and not _close(end.reshape(x.shape), x * reading.sums[-1].scale):
                for role in [role for one in reading.sums for role in one.roles]:
                    reading.places.pop(role, None)
                    reading.refused[role] = "without its branches the layer still changes its hidden states"


def _alike(h: Tensor, x: Tensor) -> bool:
    """Whether h [B, S, D] has the shape of x, or is flat, [B * S, D]."""
    return h.shape == x.shape or h.shape == x.flatten(0, -2).shape


def _h(reading: Reading, role: str) -> At:
    place = reading.places[role]
    assert isinstance(place, Branch)
    return place.h


def _perturbation(moved: dict[tuple[str, str], Tensor], key: tuple[str, str]) -> Change:
    def change(h: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(len(moved))
        noise = torch.randn(h.shape, generator=generator).to(h) * h.abs().mean().clamp_min(1e-3)
        moved.setdefault(key, noise)
        return h + noise

    return change


def _close(one: Tensor, other: Tensor) -> bool:
    difference, size = (one - other).abs().max(), other.abs().max()
    return bool(difference <= TOLERANCE * size)


def check_widths(sites: Iterable[Site], readings: Sequence[Reading]) -> None:
    """Refuse where the modules of a place tell other widths than its tensors have.

    Args:
        sites: The sites of a model, by the spec that is tried.
        readings: What was read of its layers, by their numbers.
    """
    for site in sites:
        reading = readings[site.layer] if site.role and site.layer >= 0 else None
        if reading is None:
            continue
        if isinstance(site, (ResidualSite, LayerSite)):
            width = reading.widths.get(site.role)
            if width != site.width:
                reading.places.pop(site.role, None)
                reading.refused[site.role] = f"its states are {width} wide, where its linear maps say {site.width}"
        elif isinstance(site, AttentionSite) and not _tells_heads(site, reading):
            reading.places.pop(site.role)
            reading.refused[site.role] = "the attention module does not tell how wide its keys and values are"


def _tells_heads(site: AttentionSite, reading: Reading) -> bool:
    try:
        widths = site.head_dim, site.value_dim
        return site.num_heads > 0 and widths == reading.head_sizes[site.role.partition(".")[0]]
    except UnsupportedError:
        return False


def layouts(model: nn.Module, inputs: Mapping[str, Any], sites: Iterable[Site]) -> dict[str, Layout]:
    """How rows lie in what the modules of these sites give, where not [B, S, D]: another first row tells."""
    rows = next((len(value) for value in inputs.values() if isinstance(value, Tensor) and value.dim()), 1)
    if rows < 2:
        return {}
    layers = {id(site.module): site.layer for site in sites if site.layer >= 0 or site.role}
    modules = {path: module for path, module in model.named_modules() if id(module) in layers}
    one: dict[str, list[Tensor]] = {path: [] for path in modules}
    other: dict[str, list[Tensor]] = {path: [] for path in modules}
    for seen, given in ((one, inputs), (other, _other_first_row(inputs, rows))):
        with ExitStack() as stack, untouched(model), torch.no_grad():
            for path, module in modules.items():
                handle = module.register_forward_hook(partial(_keep, seen[path]))
                stack.callback(handle.remove)
            model(**given)
    found: dict[str, Layout] = {}
    for path, module in modules.items():
        both = list(zip(one[path], other[path]))
        if any(_rows_are_second(*pair, rows) for pair in both):
            found[path] = "sequence"
        elif layers[id(module)] >= 0 and both and all(_rows_are_stretches(*pair, rows) for pair in both):
            found[path] = "flat"
    return found


def _keep(seen: list[Tensor], module: nn.Module, args: Any, output: Any) -> None:
    given = output[0] if isinstance(output, (tuple, list)) and output else output
    if isinstance(given, Tensor):
        seen.append(given.detach().clone())


def _rows_are_second(one: Tensor, other: Tensor, rows: int) -> bool:
    if one.shape != other.shape or one.dim() != 3 or one.shape[1] != rows:
        return False
    changed = one != other
    first, second = changed.flatten(1).any(1), changed.transpose(0, 1).flatten(1).any(1)
    positions = len(one) != rows or bool(first[1:].any())  # what comes first: there may be one position only
    return bool(second[0]) and not bool(second[1:].any()) and positions


def _rows_are_stretches(one: Tensor, other: Tensor, rows: int) -> bool:
    """Whether the first of as many stretches of the first dimension changes, all of it, and no other."""
    if one.shape != other.shape or not 2 <= one.dim() <= 3 or len(one) % rows or len(one) == rows:
        return False
    changed = (one != other).flatten(1).any(1).view(rows, -1)
    return bool(changed[0].all()) and not bool(changed[1:].any())


def _other_first_row(inputs: Mapping[str, Any], rows: int) -> dict[str, Any]:
    """The inputs with other tokens or numbers in the first row."""
    result = dict(inputs)
    for name, value in inputs.items():
        if not isinstance(value, Tensor) or not value.dim() or len(value) != rows:
            continue
        if value.is_floating_point():
            result[name] = torch.cat([value[:1].flip(-1) + 0.5, value[1:]])
        elif name.endswith("input_ids"):
            known = value.unique()
            moved = known[(torch.searchsorted(known, value[:1].contiguous()) + 1) % len(known)]
            result[name] = torch.cat([moved, value[1:]])
    return result


def is_causal(model: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether the model caches keys and values, and what comes later does not reach what was before."""
    ids = inputs.get("input_ids")
    names = inspect.signature(model.forward).parameters
    if ids is None or "past_key_values" not in names or "decoder_input_ids" in names:
        return False
    pair = ids[:1].repeat(2, 1)
    pair[1, -1] = ids[0, 0]
    given = {
        name: value[:1].repeat(2, *[1] * (value.dim() - 1)) if isinstance(value, Tensor) and value.dim() else value
        for name, value in inputs.items()
    }
    with untouched(model), torch.no_grad():
        states = _states(model(**{**given, "input_ids": pair}))
    return states is not None and bool((states[0, 0] - states[1, 0]).abs().max() <= 1e-5 * states.abs().max())


def takes_prompts(stack: nn.Module, inputs: Mapping[str, Any]) -> bool:
    """Whether a stack computes of embeddings, some more than it was given ids, what it computes of their ids."""
    names, ids = inspect.signature(stack.forward).parameters, inputs.get("input_ids")
    if ids is None or not {"input_ids", "inputs_embeds", "attention_mask"} <= set(names):
        return False
    longer = torch.cat([ids[:, :3], ids], 1)
    options = {"attention_mask": torch.ones_like(longer), **({"use_cache": False} if "use_cache" in names else {})}
    try:
        with untouched(stack), torch.no_grad():
            embedded = stack.get_input_embeddings()(longer)  # type: ignore[operator]
            states = [
                _states(stack(**options, **given)) for given in ({"input_ids": longer}, {"inputs_embeds": embedded})
            ]
    except Exception:  # whatever the model's own code raises where it does not take them
        return False
    one, other = states
    return one is not None and other is not None and one.shape[:2] == longer.shape and _close(other, one)


def _states(output: Any) -> torch.Tensor | None:
    found = getattr(output, "last_hidden_state", None)
    return found if isinstance(found, torch.Tensor) and found.dim() == 3 else None
