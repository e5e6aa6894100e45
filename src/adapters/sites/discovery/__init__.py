"""Where are the places of a model that nobody described? One forward pass is traced, read, verified and remembered.

    model --> twin --> trace --> graph --> layers, attentions, branches --> verified by numbers --> ModelSpec

A twin is a small model of the same class: what is found on it is tried on it, so that neither the weights nor the
device of the model matter. Where it cannot be built or run, the model itself is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from itertools import takewhile
from typing import Any

from torch import nn

from adapters.errors import UnsupportedError
from adapters.sites.discovery import cache
from adapters.sites.discovery.assembling import assemble
from adapters.sites.discovery.inputs import Inputs, candidates
from adapters.sites.discovery.layers import stacks
from adapters.sites.discovery.reading import Reading, read
from adapters.sites.discovery.trace import given_to, trace
from adapters.sites.discovery.twin import divisors, plain_torch, twin
from adapters.sites.discovery.verify import Trial, check_widths, is_causal, layouts, takes_prompts
from adapters.sites.resolve import resolve
from adapters.sites.spec import ModelSpec, prompts

logger = logging.getLogger(__name__)

__all__ = ["discover"]


def discover(
    model: nn.Module, example_inputs: Mapping[str, Any] | None = None, root: nn.Module | None = None
) -> ModelSpec:
    """The spec of a model, found by tracing it. It is remembered on disk by what it depends on (`cache.py`).

    Args:
        model: A base model.
        example_inputs: Arguments of one forward pass of `root`, for models whose inputs cannot be told from their
            signature. The model itself is run with them.
        root: The model of which it is the base; by default itself. What a base model is given by its root is found out
            where nothing else lets it run.
    Raises:
        UnsupportedError: no forward pass succeeds.
    """
    key = "" if example_inputs is not None else cache.key(model)
    known = cache.load(key)
    if known is not None:
        try:
            resolve(model, known)
            return known
        except (UnsupportedError, ValueError) as error:
            logger.warning(
                "What was found for %s earlier does not fit it. It is looked at again: %s", type(model).__name__, error
            )
    with plain_torch():  # also while `from_pretrained` builds everything on "meta"
        spec = _found(model, example_inputs, root or model)
    cache.store(key, spec)
    return spec


def _found(model: nn.Module, example_inputs: Mapping[str, Any] | None, root: nn.Module) -> ModelSpec:
    errors: list[str] = []
    for subject, inputs in _subjects(model, example_inputs, root, errors):
        try:
            spec = _looked_at(subject, inputs)
            resolve(model, spec)
            return spec
        except UnsupportedError as error:
            errors.append(str(error))
    tried = "\n  ".join(dict.fromkeys(errors)) or "none of its arguments is of a known kind"
    raise UnsupportedError(
        f"{type(model).__name__} has no description of its layers, and could not be looked at:\n  {tried}\n"
        "Give adapters.init the arguments of one forward pass as example_inputs={...}, or describe the model with an "
        "AdapterModelInterface."
    )


def _subjects(
    model: nn.Module, example_inputs: Mapping[str, Any] | None, root: nn.Module, errors: list[str]
) -> Iterator[tuple[nn.Module, Mapping[str, Any]]]:
    """What can be looked at, with inputs: a twin, the same inside of a twin of the root, then the model itself."""
    if example_inputs is not None:
        yield from _inside(root, model, [example_inputs], errors)
        return
    for whole in (model, root) if root is not model else (model,):
        path = next(path for path, module in whole.named_modules() if module is model)
        for small in _twins(whole, errors):
            yield from _inside(small, small.get_submodule(path), candidates(small), errors)
    if all(parameter.device.type != "meta" for parameter in model.parameters()):
        yield from ((model, inputs) for inputs in candidates(model))


def _twins(model: nn.Module, errors: list[str]) -> Iterator[nn.Module]:
    """Twins of a model, the narrowest first."""
    try:
        for by in divisors(model):
            try:
                yield twin(model, by)
            except Exception as error:
                errors.append(f"A small {type(model).__name__} cannot be built: {type(error).__name__}: {error}")
    except Exception as error:  # not even without weights
        errors.append(f"A small {type(model).__name__} cannot be built: {type(error).__name__}: {error}")


def _inside(
    whole: nn.Module, part: nn.Module, several: Iterable[Inputs | Mapping[str, Any]], errors: list[str]
) -> Iterator[tuple[nn.Module, Mapping[str, Any]]]:
    """A part of a model, with what it is given where the whole is given `several`."""
    for inputs in several:
        try:
            yield part, inputs if part is whole else given_to(part, whole, inputs)
        except UnsupportedError as error:
            errors.append(str(error))


def _looked_at(model: nn.Module, inputs: Mapping[str, Any] | Inputs) -> ModelSpec:
    graph = trace(model, inputs)
    lists = stacks(graph, model)
    readings = {call.path: read(graph, call) for stack in lists for call in stack.calls.values()}
    Trial(model, inputs, readings).run()
    untried = assemble(model, graph, lists, readings)
    numbered = [readings.get(f"{stack.path}.{number}", Reading()) for stack in lists for number in range(stack.length)]
    sites = resolve(model, untried)
    check_widths(sites, numbered)
    spec = assemble(model, graph, lists, readings)
    lying = layouts(model, inputs, sites)
    uncalled = tuple(path for path in graph.uncalled if any(path.startswith(f"{one.path}.") for one in lists))
    spec = replace(spec, causal=is_causal(model, inputs), layouts=lying, uncalled=uncalled)
    return _with_prompts(spec, model, inputs)


def _with_prompts(spec: ModelSpec, model: nn.Module, inputs: Mapping[str, Any] | Inputs) -> ModelSpec:
    """The spec with the place of prompts: in front of a decoder, or of the encoder that a decoder reads."""
    if not spec.layers:
        return spec
    first, *others = spec.layers
    if not spec.causal and not (first.stack and others and all(one.stack not in ("", first.stack) for one in others)):
        return spec
    around = [layers.path.split(".")[:-1] for layers in (spec.layers if spec.causal else spec.layers[:1])]
    shared = list(takewhile(lambda names: len(set(names)) == 1, zip(*around)))
    for depth in range(len(shared), -1, -1):  # outer modules may be passed over: OPT's language model calls its decoder
        path = ".".join(names[0] for names in shared[:depth])
        if takes_prompts(model.get_submodule(path), inputs):
            refused = {role: reason for role, reason in spec.refused.items() if role != "embed.prompt"}
            return replace(spec, places={**spec.places, **prompts(path)}, refused=refused)
    return spec
