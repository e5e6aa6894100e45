"""How is a checkpoint of PEFT loaded? Whole or not at all, as `checkpoint/adapters.py` loads ours."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapters.checkpoint.adapters import add_stored
from adapters.checkpoint.atomic import reading
from adapters.checkpoint.layout import PEFT
from adapters.checkpoint.names import Match, match, tensors_of
from adapters.checkpoint.peft import heads, prompts, tokens
from adapters.checkpoint.peft.modules import BASE_LAYER, Found, Modules, take_apart
from adapters.checkpoint.peft.options import Options, type_of
from adapters.checkpoint.peft.registry import TRANSLATORS
from adapters.checkpoint.peft.translator import Member, Translator
from adapters.checkpoint.tensors import read_checkpoint
from adapters.checkpoint.undo import Before
from adapters.errors import AdapterError, CheckpointError
from adapters.methods import METHODS
from adapters.methods.config import AdapterConfig, ConfigUnion
from adapters.methods.places import INPUT, WHOLE
from adapters.runtime.adapters_config import check_name
from adapters.runtime.engine import Engine
from adapters.runtime.parts import Part
from adapters.sites.layers import require_layers
from adapters.sites.site import AffineSite, LinearSite

logger = logging.getLogger(__name__)


def load_peft(
    model: Any,
    folder: Path,
    before: Before,
    name: str,
    leave_out: Sequence[int] | None = None,
    use_safetensors: bool = True,
    with_head: bool = True,
    strict: bool = True,
    loading_info: dict[str, Any] | None = None,
) -> str:
    """Add the adapter of PEFT that lies in a folder, and the head that was saved with it.

    Args:
        model: The model.
        folder: Where it lies.
        before: Brings the model back if this fails.
        name: What to call it here; files of PEFT have no name.
        leave_out: Layers whose part of the adapter is not loaded.
        use_safetensors: Which file of tensors to take if both lie there.
        with_head: Load the head too.
        strict: Whether tensors that are missing, or that nothing here needs, are errors.
        loading_info: Receives missing_keys and unexpected_keys.
    Returns:
        `name`.
    Raises:
        CheckpointError: the checkpoint is none that can be read, or does not fit this model. Nothing has changed then.
    """
    engine: Engine = model._engine
    check_name(name)
    what = f"The PEFT adapter in {folder}"
    with reading(folder):
        saved, tensors = read_checkpoint(folder, PEFT, use_safetensors)
    if not tensors:
        raise CheckpointError(f"{what} has no tensors.")
    kind = type_of(saved, {**TRANSLATORS, **prompts.TRANSLATORS}, what)
    if name in engine.config:
        raise CheckpointError(
            f"There is an adapter {name!r} already. Pass load_as to give the one in {folder} another name, or delete "
            "it."
        )
    require_layers(leave_out or (), engine.sites, "leave_out")
    if kind in prompts.TRANSLATORS:
        config, own, others = prompts.read(engine, kind, saved, tensors, name, what)
        start = Modules(engine).prefix
    else:
        config, own, others, start = _read(engine, TRANSLATORS[kind], saved, tensors, name, what, strict)
    others = _without_base(engine, others, start)
    head, others = heads.split(model, others)

    def held(parts: Sequence[Part]) -> Match:
        expected = tensors_of(engine, parts, name)
        result = match(expected, own, lambda key: False)
        if leave_out:  # what is stored for those layers is passed over
            result.unexpected = {}
        result.unexpected |= others
        return result

    if leave_out:
        config = config.without_layers(set(leave_out), sorted({site.layer for site in engine.sites}))
    try:
        add_stored(engine, name, config, held, what, strict, _origin(saved), loading_info)
    except AdapterError as error:
        if isinstance(error, CheckpointError):
            raise
        raise type(error)(f"{what}: {error}") from error
    if head and with_head:
        heads.load(model, head, saved, before, name, what)
    elif head:
        logger.info("%s: its head is not loaded (with_head=False).", what)
    return name


def _origin(saved: Mapping[str, Any]) -> str:
    base = saved.get("base_model_name_or_path")
    return f"It was trained for {base!r}." if isinstance(base, str) and base else ""


def _without_base(engine: Engine, others: Mapping[str, Tensor], start: str) -> dict[str, Tensor]:
    """`others` but for those that repeat one of the base model's, as embeddings saved with an adapter often do."""
    whole, base = dict(engine.root.named_parameters()), dict(engine.base.named_parameters())

    def repeats(key: str, tensor: Tensor) -> bool:
        path = key.removeprefix("model.")
        for parameters, name in ((whole, path), (base, path.removeprefix(start)), (whole, key)):
            own = parameters.get(name.replace(".base_layer.", "."))
            if own is not None and own.shape == tensor.shape and torch.equal(own.to("cpu", tensor.dtype), tensor):
                return True
        return False

    return {key: tensor for key, tensor in others.items() if not repeats(key, tensor)}


def _read(
    engine: Engine,
    translator: Translator,
    saved: Mapping[str, Any],
    tensors: Mapping[str, Tensor],
    name: str,
    what: str,
    strict: bool,
) -> tuple[AdapterConfig, dict[str, Tensor], dict[str, Tensor], str]:
    """Config, tensors by our names, all other tensors of the file, and what comes before names below the base model."""
    options = Options(saved, translator.options, translator.history, translator.refused, what)
    modules, shared, others = take_apart(tensors, translator.parts, translator.shared_parts)
    known = Modules(engine)
    start = known.start(path.partition(BASE_LAYER)[0] for path in modules)
    rows, modules = tokens.take_out(modules)
    modules = known.by_parameter(modules, options, start)
    targeted = known.targeted(options, start, translator.site_type)
    found, odd = [], {}
    for path, own in modules.items():
        if strict or known.has(path, start):
            found.append(Found(path, known.site(path, start, what), own))
        else:
            odd.update({f"{path}.{part}": tensor for part, tensor in own.items()})
    trained = tokens.read(known, start, options, rows)
    if not found and not trained:
        raise CheckpointError(
            f"{what} has no tensor of the type {translator.peft_type}, whose names end with: "
            f"{', '.join(translator.parts)}. "
            f"It has: {', '.join(sorted(tensors)[:5])}, ..."
        )
    if found:
        _check_targets(options, found, targeted, strict)
    members = [*translator.read(options, found, shared), *trained]
    biases, others = _biases(known, options, others, start)
    if biases:
        members = translator.with_biases(options, members, biases)
    members = [member for member in members if member.tensors]
    if not members:
        raise CheckpointError(f"{what} acts nowhere: no rank is left at any module.")
    placed = [_placed(engine, member) for member in members]
    own = _named(engine, name, members, placed)
    return placed[0] if len(placed) == 1 else ConfigUnion(*placed), own, {**others, **odd}, start


def _check_targets(options: Options, found: Sequence[Found], targeted: Mapping[AffineSite, str], strict: bool) -> None:
    """Raise CheckpointError if the config means modules that have no tensors, or tensors are of others."""
    if not targeted and not options.get(
        "target_parameters"
    ):  # the config does not say, or says it of a class with other names
        return
    there = {module.site for module in found}
    problems = {
        "lacks tensors for modules that its config means": sorted(
            n for site, n in targeted.items() if site not in there
        ),
        "has tensors for modules that its config does not mean": sorted(
            m.name for m in found if m.site not in targeted
        ),
    }
    for words, modules in problems.items():
        if modules:
            some = ", ".join(modules[:5]) + (f" and {len(modules) - 5} more" if len(modules) > 5 else "")
            message = f"{options.what} {words}: {some} (target_modules={options['target_modules']!r})."
            if strict:
                raise CheckpointError(message)
            logger.warning("%s", message)


def _biases(
    known: Modules, options: Options, others: Mapping[str, Tensor], start: str
) -> tuple[dict[AffineSite, Tensor], dict[str, Tensor]]:
    """The biases of the base model that were trained, as what is added to them; and all other tensors."""
    if options.get("bias", "none") == "none":
        return {}, dict(others)
    found: dict[AffineSite, Tensor] = {}
    rest: dict[str, Tensor] = {}
    for key, tensor in others.items():
        path = key.removeprefix("model.") if not known.has(key.rpartition(".")[0], start) else key
        path = path.removesuffix(".bias").removesuffix(".base_layer")
        site = known.sites.get(path.removeprefix(start)) if path.startswith(start) else None
        if not key.endswith(".bias") or site is None or site.bias is None or site.bias.shape != tensor.shape:
            rest[key] = tensor
            continue
        change = tensor.to(site.bias.device, site.bias.dtype) - site.bias.detach()
        if bool(change.any()):
            found[site] = change
    return found, rest


def _placed(engine: Engine, member: Member) -> AdapterConfig:
    """The config of a member with places: roles where all places of a role are meant, module paths elsewhere."""
    all_sites: dict[str, set[AffineSite]] = {}
    for site in (hooked.site for hooked in engine.hooked):
        if isinstance(site, AffineSite) and site.role:
            all_sites.setdefault(site.role, set()).add(site)
    places: list[str] = []
    for side in (False, True):
        left = {site for site in member.tensors if (site in member.inward) == side}
        for role, sites in all_sites.items():
            if sites <= left:
                left -= sites
                places.append(_entry(role.partition("+")[0], next(iter(sites)), side))
        places += [_entry(site.address, site, side) for site in member.tensors if site in left]
    return member.config.replace(places=places)


def _entry(place: str, site: AffineSite, inward: bool) -> str:
    fused = isinstance(site, LinearSite) and site.parts
    return f"{place}{INPUT if inward else WHOLE if fused else ''}"


def _named(engine: Engine, name: str, members: Sequence[Member], configs: Sequence[AdapterConfig]) -> dict[str, Tensor]:
    """The tensors of all members by their names on disk."""
    result: dict[str, Tensor] = {}
    with_shared = [member for member in members if member.shared]
    for member, config in zip(members, configs):
        method = next(method for method in METHODS if method.handles(config))
        for site, tensors in member.tensors.items():
            path = f"{engine.names.on_disk(site.path)}.{method.container}.{name}"
            result.update({f"{path}.{inner}": tensor for inner, tensor in tensors.items()})
        number = f"{with_shared.index(member)}." if member.shared and len(with_shared) > 1 else ""
        result.update({f"{method.shared_container}.{name}.{number}{key}": t for key, t in member.shared.items()})
    return result
