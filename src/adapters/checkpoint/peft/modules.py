"""Which modules does a checkpoint of PEFT mean, and what are they called here? PEFT's rules for names, both ways."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from adapters.checkpoint.names import path_of
from adapters.checkpoint.peft.options import Options
from adapters.errors import CheckpointError, choices
from adapters.runtime.engine import Engine
from adapters.sites.site import AffineSite, ExpertsSite, LinearSite, TableSite

ALL_LINEAR = "all-linear"
START = "base_model."
BASE_LAYER = ".base_layer"
DEFAULT_NAME = re.compile(r"\.default(?=\.|$)")
"""The name of an adapter, which state dicts of PEFT have in their names and its files do not."""


class Modules:
    """The linear maps and norms of a model by the names that a checkpoint has for them.

    Args:
        engine: Of the model.
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self.sites: dict[str, AffineSite] = {}
        for hooked in engine.hooked:
            if isinstance(site := hooked.site, AffineSite):
                self.sites.setdefault(site.address, site)
                self.sites.setdefault(engine.names.on_disk(site.address), site)
        own = path_of(engine.root, engine.base)
        self.prefix = f"{own}." if own else ""

    def start(self, paths: Iterable[str]) -> str:
        """What comes before the names below the base model in a checkpoint with modules at `paths`."""
        found: Counter[str] = Counter()
        for path in paths:
            rest = path
            while rest:
                if rest in self.sites:
                    found[path[: len(path) - len(rest)]] += 1
                    break
                rest = rest.partition(".")[2]
        return found.most_common(1)[0][0] if found else self.prefix

    def has(self, path: str, start: str) -> bool:
        """Whether adapters can act at the module that a checkpoint calls `path`."""
        return path.startswith(start) and path.removeprefix(start) in self.sites

    def site(self, path: str, start: str, what: str) -> AffineSite:
        """The place of the module that a checkpoint calls `path`.

        Raises:
            CheckpointError: the model has no such module, or adapters cannot act there.
        """
        site = self.sites.get(path.removeprefix(start)) if path.startswith(start) else None
        if site is None:
            raise CheckpointError(self._absent(path, start, what))
        if site.call is not None:
            raise CheckpointError(
                f"{what} has tensors for {path}, which this model calls {site.call[1]} times in a layer."
            )
        return site

    def _absent(self, path: str, start: str, what: str) -> str:
        root: Any = self.engine.root
        modules = dict(root.named_modules())
        there = modules.get(path)
        if there is None and path.startswith(start):
            there = modules.get(f"{self.prefix}{path.removeprefix(start)}")
        if isinstance(there, nn.Embedding):
            why = "an embedding that is not called with tokens alone, so that what it looks up is not known"
        elif there is not None:
            why = f"a {type(there).__name__} outside of what adapters act on: linear maps and norms of the base model"
        else:
            maps = [
                name
                for name, site in self.sites.items()
                if isinstance(site, LinearSite) and not isinstance(site, TableSite)
            ]
            last = Counter(name.rpartition(".")[2] for name in maps)
            return (
                f"{what} has tensors for the module {path}, but this {type(root).__name__} has no such module. Linear "
                "maps "
                f"are called otherwise here. {choices(path.rpartition('.')[2], sorted(last))}"
            )
        return (
            f"{what} has tensors for {path}, which is {why}. Merge the adapter in PEFT "
            "(PeftModel.from_pretrained(...).merge_and_unload()), save that model and open it here."
        )

    def targeted(self, options: Options, start: str, kind: type[AffineSite]) -> dict[AffineSite, str]:
        """The modules of a kind that the config means, and their names; none where it does not say."""
        if options["target_modules"] is None:
            return {}
        named = {f"{start}{path}": site for path, site in self.sites.items() if isinstance(site, kind)}
        everything = str(options["target_modules"]).lower() == ALL_LINEAR
        return {
            site: name
            for name, site in named.items()
            if (
                is_parameter(options, name)
                if isinstance(site, ExpertsSite)
                else is_target(options, name) and not (everything and isinstance(site, TableSite))
            )
        }

    def by_parameter(
        self, modules: Mapping[str, dict[str, Tensor]], options: Options, start: str
    ) -> dict[str, dict[str, Tensor]]:
        """The tensors by module, those of parameters (`target_parameters`) by the name of the parameter.

        PEFT wraps a module once for each of its parameters that are meant, in their order: those of the last stand at
        the module itself, those of the others one `base_layer` further down each.
        """
        result: dict[str, dict[str, Tensor]] = {}
        inside: dict[str, dict[int, dict[str, Tensor]]] = {}
        for path, own in modules.items():
            owner = path
            while owner.endswith(BASE_LAYER):
                owner = owner.removesuffix(BASE_LAYER)
            if any(is_parameter(options, name) for name in self._parameters(owner, start)):
                inside.setdefault(owner, {})[(len(path) - len(owner)) // len(BASE_LAYER)] = own
            else:
                result[path] = own
        for owner, levels in inside.items():
            meant = [name for name in self._parameters(owner, start) if is_parameter(options, name)]
            if len(meant) != len(levels):
                raise CheckpointError(
                    f"{options.what} has tensors for {len(levels)} parameters of {owner}, but its config means "
                    f"{', '.join(meant)} (target_parameters={options['target_parameters']!r})."
                )
            result.update({name: levels[depth] for depth, name in enumerate(reversed(meant))})
        return result

    def _parameters(self, owner: str, start: str) -> list[str]:
        """The names of the packed parameters of a module, in its order."""
        found = {
            site.parameter: name
            for name, site in self.sites.items()
            if isinstance(site, ExpertsSite) and f"{start}{name}".rpartition(".")[0] == owner
        }
        module = next((self.sites[name].module for name in found.values()), None)
        return [] if module is None else [f"{start}{found[own]}" for own in module._parameters if own in found]


def is_parameter(options: Mapping[str, Any], name: str) -> bool:
    """Whether the options of a config mean the parameter `name`."""
    return any(name == end or name.endswith(f".{end}") for end in options.get("target_parameters") or ())


def is_target(options: Options, name: str) -> bool:
    """Whether the options of a config mean the module `name`."""
    excluded, wanted = options["exclude_modules"], options["target_modules"]
    if excluded and _named(excluded, name):
        return False
    if any(re.match(rf"(^|.*\.){saved}($|\..*)", name) for saved in options["modules_to_save"] or ()):
        return False
    if isinstance(wanted, str):
        return wanted.lower() == ALL_LINEAR or _fullmatch(wanted, name)
    if name in wanted:
        return True
    if not any(name.endswith(f".{end}") for end in wanted):
        return False
    layers, lists = options["layers_to_transform"], options["layers_pattern"]
    if layers is None or layers == []:
        return True
    starts = [rf"(?:^|.*?\.){part}" for part in ([lists] if isinstance(lists, str) else lists or ())]
    number = next((m for m in (re.match(rf"{s}\.(\d+)\.", name) for s in starts or [r".*?\.[^.]*"]) if m), None)
    return number is not None and int(number[1]) in ([layers] if isinstance(layers, int) else layers)


def _named(wanted: str | Sequence[str], name: str) -> bool:
    if isinstance(wanted, str):
        return _fullmatch(wanted, name)
    return name in wanted or any(name.endswith(f".{end}") for end in wanted)


def _fullmatch(pattern: str, name: str) -> bool:
    try:
        return re.fullmatch(pattern, name) is not None
    except re.error as error:
        raise CheckpointError(f"{pattern!r} is no regular expression: {error}.") from None


def by_pattern(patterns: Mapping[str, Any], name: str, default: Any) -> Any:
    """The value of the first pattern that ends the name of a module."""
    for pattern, value in patterns.items():
        try:
            if re.match(rf"(.*\.)?({pattern})$", name):
                return value
        except re.error as error:
            raise CheckpointError(f"{pattern!r} is no regular expression: {error}.") from None
    return default


def short_names(names: Iterable[str], others: Iterable[str]) -> list[str]:
    """The shortest list of ends of names that means the modules `names`, and none of `others`."""
    names, rest = set(names), set(others)
    ends = {name.rpartition(".")[2] for name in names}
    unique = {end for end in ends if not any(other == end or other.endswith(f".{end}") for other in rest)}
    return sorted(unique) + sorted(name for name in names if name.rpartition(".")[2] not in unique)


@dataclass
class Found:
    """One module of a checkpoint: its name there, its place here, and its tensors by their names in the type."""

    name: str
    site: AffineSite
    tensors: dict[str, Tensor]


def take_apart(
    tensors: Mapping[str, Tensor], parts: Mapping[str, str], shared: Mapping[str, str]
) -> tuple[dict[str, dict[str, Tensor]], dict[str, Tensor], dict[str, Tensor]]:
    """The tensors of a file: those of modules by module, those that all modules share, and all others.

    Args:
        tensors: By their names in the file.
        parts: End of the name of a module's tensor -> what it is called in a translator.
        shared: The same for what stands at the top.
    """
    modules: dict[str, dict[str, Tensor]] = {}
    common: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    for key, tensor in tensors.items():
        name = DEFAULT_NAME.sub("", key)
        name = name.removeprefix(START).removeprefix("model.") if name.startswith(f"{START}model.") else name
        top = next((part for end, part in shared.items() if name in (end, f"{START}{end}")), None)
        end = next((end for end in parts if name.endswith(f".{end}")), None)
        if top is not None:
            common[top] = tensor
        elif end is not None:
            modules.setdefault(name.removesuffix(f".{end}"), {})[parts[end]] = tensor
        else:
            others[name.removeprefix(START)] = tensor
    return modules, common, others
