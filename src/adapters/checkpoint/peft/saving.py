"""How is an adapter of ours written as a checkpoint that PEFT opens, and that computes the same there?"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from adapters.checkpoint.layout import PEFT
from adapters.checkpoint.peft import heads, prompts, tokens
from adapters.checkpoint.peft.modules import BASE_LAYER, Modules, short_names
from adapters.checkpoint.peft.registry import TRANSLATORS
from adapters.checkpoint.peft.translator import Translator, Written
from adapters.checkpoint.tensors import write_checkpoint
from adapters.errors import MergeError, UnsupportedError
from adapters.methods.bitfit import BitFit
from adapters.methods.trainable_tokens import TrainableTokens
from adapters.runtime.engine import Engine
from adapters.sites.site import AffineSite, ExpertsSite

ONLY = {
    "LORA": "lora_only",
    "OFT": "oft_only",
    "VERA": "vera_only",
    "VBLORA": "vblora_only",
    "RANDLORA": "randlora_only",
}
"""Type of PEFT -> the value of its option `bias` that means the biases of the adapted modules."""


def write_peft(model: Any, folder: Path, name: str, with_head: bool = True, use_safetensors: Any = True) -> None:
    """Write adapter_config.json and the tensors of an adapter, as PEFT has them, into an existing folder.

    Raises:
        AdapterNameError: there is no adapter of this name.
        UnsupportedError: no adapter of PEFT computes the same; the error says why, and what would.
    """
    engine: Engine = model._engine
    engine.require(name)
    if name in engine.merged:
        raise MergeError(f"Adapter {name!r} is merged into the base model. Call reset_adapter first, then save it.")
    modules = [part.module for part in engine.parts[name] if part.hooked is not None]
    saved, tensors = heads.written(model, name) if with_head else ([], {})
    rows = [module for module in modules if isinstance(module, TrainableTokens)]
    main = [module for module in modules if not isinstance(module, BitFit | TrainableTokens)]
    kind, written = _written(engine, name, main or rows)
    biases = {m.site: m.addition() for m in modules if isinstance(m, BitFit)} | written.biases
    known = Modules(engine)
    options: dict[str, Any] = {
        "peft_type": kind,
        "task_type": heads.task_of(model) if saved or heads.task_of(model) not in heads.LABELLED else None,
        "base_model_name_or_path": getattr(model.config, "name_or_path", None) or None,
        "inference_mode": True,
        **written.options,
    }
    if saved:
        options["modules_to_save"] = saved
    start = "base_model." if kind in prompts.TRANSLATORS else "base_model.model."
    result: dict[str, Tensor] = {f"{start}{key}": tensor for key, tensor in tensors.items()}
    if kind in prompts.TRANSLATORS:
        result |= written.shared
    else:
        options |= _targets(engine, known, written)
        names = _names(known, (*written.tensors, *biases))
        result |= {f"base_model.{key}": tensor for key, tensor in written.shared.items()}
        for site, own in written.tensors.items():
            result |= {f"{start}{names[site]}.{end}": tensor for end, tensor in own.items()}
        result |= _biases(kind, options, names, written, biases, start)
        if rows and main:
            result |= _rows(engine, kind, options, known, rows, start)
    write_checkpoint(folder, PEFT, options, result, use_safetensors=use_safetensors)


def _written(engine: Engine, name: str, modules: Sequence[Any]) -> tuple[str, Written]:
    """The type of PEFT that all modules are of, and what its translator writes."""
    for method, (kind, write) in prompts.WRITERS.items():
        if modules and all(isinstance(module, method) for module in modules):
            return kind, write(engine, modules)
    for translator in TRANSLATORS.values():
        if modules and all(type(getattr(module, "one", module)) in translator.methods for module in modules):
            _check_sites(modules, translator)
            written = translator.write(modules)
            if isinstance(modules[0], TrainableTokens):
                written.tensors = {tokens.holder(engine, site): own for site, own in written.tensors.items()}
            return translator.peft_type, written
    kinds = sorted({type(module).__name__ for module in modules}) or ["BitFit"]
    able = [method.__name__ for t in TRANSLATORS.values() for method in t.methods]
    able += [method.__name__ for method in prompts.WRITERS]
    raise UnsupportedError(
        f"Adapter {name!r} has modules of {', '.join(kinds)}, which no one type of PEFT has. It can hold adapters of "
        "one of: "
        f"{', '.join(able)}; to one of a linear map BitFit may be added."
    )


def _check_sites(modules: Sequence[Any], translator: Translator) -> None:
    twice = [module.site.path for module in modules if module.site.call is not None]
    if twice:
        raise UnsupportedError(
            f"{translator.peft_type} cannot adapt one call of several of a module: {', '.join(twice)}."
        )


def _names(known: Modules, sites: Iterable[AffineSite]) -> dict[AffineSite, str]:
    """The paths of modules; of those with packed parameters with a `base_layer` for each that comes after the own."""
    sites = dict.fromkeys(sites)
    packed: dict[Any, list[str]] = {}
    for site in sites:
        if isinstance(site, ExpertsSite):
            packed.setdefault(site.module, []).append(site.parameter)
    names = {}
    for site in sites:
        path = f"{known.prefix}{site.address}"
        if isinstance(site, ExpertsSite):
            order = [name for name in site.module._parameters if name in packed[site.module]]
            path = path.removesuffix(f".{site.parameter}") + BASE_LAYER * (len(order) - 1 - order.index(site.parameter))
        names[site] = path
    return names


def _rows(
    engine: Engine, kind: str, options: dict[str, Any], known: Modules, modules: Sequence[Any], start: str
) -> dict[str, Tensor]:
    """Rows of trained tokens beside an adapter of another type; `options` says of which tokens."""
    if kind != "LORA":
        raise UnsupportedError(f"{kind} of PEFT has no trained tokens beside it. LORA has, and TRAINABLE_TOKENS alone.")
    indices, rows = tokens.beside(engine, modules)
    options["trainable_token_indices"] = {f"{known.prefix}{path}": own for path, own in indices.items()}
    return {f"{start}{known.prefix}{site.path}.{tokens.AT_ANOTHER}": own for site, own in rows.items()}


def _targets(engine: Engine, known: Modules, written: Written) -> dict[str, Any]:
    """The options that name modules."""
    names = {site: f"{known.prefix}{site.address}" for site in written.tensors}
    parameters = sorted(names[site] for site in names if isinstance(site, ExpertsSite))
    others = {name for name, _ in engine.root.named_modules()} - set(names.values())
    listed = {option: {names[site] for site in sites} for option, sites in written.lists.items()}
    targets = short_names({*names.values()}.difference(parameters), others)
    options: dict[str, Any] = {"target_modules": targets}
    if parameters:
        options["target_parameters"] = parameters
    for option, inside in listed.items():
        ends = [end for end in targets if any(n == end or n.endswith(f".{end}") for n in inside)]
        means = {n for n in names.values() if any(n == end or n.endswith(f".{end}") for end in ends)}
        if means != inside:  # one name for some of both kinds: say all in full
            options["target_modules"], ends = sorted(names.values()), sorted(inside)
        options[option] = ends
    for option, (default, values) in written.patterns.items():
        options |= _pattern(option, default, {names[site]: value for site, value in values.items()})
    return options


def _pattern(option: str, default: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """The option of a pattern, and that of its default: what most modules have."""
    if not default:
        return {option: {f"{name}.lora_E": value for name, value in values.items()} or None}
    usual = Counter(values.values()).most_common(1)[0][0]
    return {default: usual, option: {name: value for name, value in values.items() if value != usual}}


def _biases(
    kind: str,
    options: dict[str, Any],
    names: Mapping[AffineSite, str],
    written: Written,
    biases: Mapping[AffineSite, Tensor],
    start: str,
) -> dict[str, Tensor]:
    """The biases of the base model with what an adapter adds to them; `options` says which PEFT trains."""
    if not biases:
        return {}
    if kind not in ONLY:
        raise UnsupportedError(f"{kind} of PEFT has no biases. Of adapters with BitFit it holds: {', '.join(ONLY)}.")
    options["bias"] = ONLY[kind] if biases.keys() <= written.tensors.keys() else "all"
    result = {}
    for site, change in biases.items():
        assert site.bias is not None
        inner = ".base_layer" if site in written.tensors else ""
        result[f"{start}{names[site]}{inner}.bias"] = site.bias.detach() + change.to(site.bias.dtype)
    return result
