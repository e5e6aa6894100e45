"""Where are the places of a model that nobody described? One forward pass is traced, read, verified and remembered.

    model --> twin --> trace --> graph --> layers, attentions, branches --> verified by numbers --> ModelSpec

A twin is a small model of the same class: what is found on it is tried on it, so that neither the weights nor the
device of the model matter. Where it cannot be built or run, the model itself is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

from torch import nn

from adapters.errors import UnsupportedError
from adapters.sites.discovery import cache
from adapters.sites.discovery.assembling import assemble
from adapters.sites.discovery.inputs import Inputs, candidates
from adapters.sites.discovery.layers import stacks
from adapters.sites.discovery.reading import Reading, read
from adapters.sites.discovery.trace import trace
from adapters.sites.discovery.twin import twin
from adapters.sites.discovery.verify import Trial, check_widths, is_causal
from adapters.sites.resolve import resolve
from adapters.sites.spec import ModelSpec

logger = logging.getLogger(__name__)

__all__ = ["discover"]


def discover(model: nn.Module, example_inputs: Mapping[str, Any] | None = None) -> ModelSpec:
    """The spec of a model, found by tracing it. It is remembered on disk by what it depends on (`cache.py`).

    Args:
        model: A base model.
        example_inputs: Arguments of one forward pass, for models whose inputs cannot be told from their signature. The
            model itself is run with them.
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
    spec = _found(model, example_inputs)
    cache.store(key, spec)
    return spec


def _found(model: nn.Module, example_inputs: Mapping[str, Any] | None) -> ModelSpec:
    errors: list[str] = []
    for subject, inputs in _subjects(model, example_inputs, errors):
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
    model: nn.Module, example_inputs: Mapping[str, Any] | None, errors: list[str]
) -> Iterator[tuple[nn.Module, Mapping[str, Any]]]:
    """What can be looked at, with inputs: the twin, then the model itself."""
    if example_inputs is not None:
        yield model, example_inputs
        return
    try:
        small = twin(model)
    except Exception as error:
        errors.append(f"A small model of its class cannot be built: {type(error).__name__}: {error}")
    else:
        yield from ((small, inputs) for inputs in candidates(small))
    if all(parameter.device.type != "meta" for parameter in model.parameters()):
        yield from ((model, inputs) for inputs in candidates(model))


def _looked_at(model: nn.Module, inputs: Mapping[str, Any] | Inputs) -> ModelSpec:
    graph = trace(model, inputs)
    lists = stacks(graph, model)
    readings = {call.path: read(graph, call) for stack in lists for call in stack.calls.values()}
    Trial(model, inputs, readings).run()
    untried = assemble(model, graph, lists, readings)
    numbered = [readings.get(f"{stack.path}.{number}", Reading()) for stack in lists for number in range(stack.length)]
    check_widths(resolve(model, untried), numbered)
    spec = assemble(model, graph, lists, readings)
    return replace(spec, causal=is_causal(model, inputs))
