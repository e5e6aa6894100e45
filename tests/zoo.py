"""Small models of any type of transformers, and what adapters must do in them. `scripts/zoo.py` asks all types."""

from __future__ import annotations

import copy
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, PretrainedConfig
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
)

import adapters
from adapters import (
    AdapterConfig,
    Average,
    BatchSplit,
    CompacterPlusPlusConfig,
    DoRAConfig,
    IA3Config,
    LoRAConfig,
    LoReftConfig,
    Parallel,
    ParBnConfig,
    PrefixTuningConfig,
    SeqBnConfig,
    Stack,
)
from adapters.composition.blocks import AdapterCompositionBlock
from adapters.errors import AdapterError
from adapters.sites.discovery.inputs import ROWS, candidates
from adapters.sites.discovery.trace import untouched
from adapters.sites.discovery.twin import configs, divisor, plain_torch, randomised, shrunken
from adapters.sites.site import AttentionSite, LayerSite, LinearSite, ResidualSite, Site, TableSite
from tests.tiny import adapter_parameters, perturb

DEPTHS = re.compile(r"num_hidden_layers|(.*_)?num_layers|n_layers?|(encoder|decoder)_layers|depth|num_.*coder_layers")
KINDS = re.compile(r"(mlp_)?layer_types|layers_block_type")
LAYERS = 3

OPTIONS: dict[str, dict[str, Any]] = {
    "gpt_neo": {"attention_types": [[["global", "local"], 1]], "num_layers": 2},
    "deepseek_v3": {"first_k_dense_replace": 1},
    "xmod": {"default_language": "en_XX"},
    "bamba": {"attn_layer_indices": [1]},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "falcon_h1": {"mamba_d_ssm": 1024},
    "deepseek_v2": {"num_experts_per_tok": 2, "first_k_dense_replace": 1, "moe_intermediate_size": 64},
    "qwen2_vl": {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 2]}}},
    "qwen2_5_vl": {"text_config": {"rope_parameters": {"mrope_section": [1, 1, 2]}}},
    "blip-2": {"image_token_index": 5},
    "aya_vision": {"vision_config": {"num_attention_heads": 12}},
}
"""Values without which the default config of a type, made small, is no model, or computes nothing."""

DIVISORS = {"falcon_h1": 16}
"""By what widths are divided where what follows from the width of heads does not fit a type."""

DESCRIBED = ("gemma2", "gemma3_text", "gptj", "modernbert", "phi", "xmod")
"""Types described by hand, for their files mean what tracing cannot know: `tests/sites/test_what_files_mean.py`."""


def small_config(model_type: str) -> Any:
    """The default config of a type with narrow and few layers."""
    config = AutoConfig.for_model(model_type)
    config = shrunken(config, DIVISORS.get(model_type) or divisor(config))
    for part in configs(config):
        for name, value in list(vars(part).items()):
            if DEPTHS.fullmatch(name) and type(value) is int:
                vars(part)[name] = min(value, LAYERS)
            elif KINDS.fullmatch(name) and isinstance(value, list):
                vars(part)[name] = _few(value)
    _set(config, OPTIONS.get(model_type, {}))
    return config


def _set(config: Any, options: dict[str, Any]) -> None:
    """Set options of a config; those of its parts, and entries of its tables, are given in a table each."""
    for name, value in options.items():
        old = getattr(config, name, None)
        if isinstance(old, PretrainedConfig) and isinstance(value, dict):
            _set(old, value)
        else:
            setattr(config, name, {**old, **value} if isinstance(old, dict) else value)


def _few(kinds: list[str]) -> list[str]:
    """The first layers, and among them one of each kind."""
    different = list(dict.fromkeys(kinds))
    return (different + kinds[len(different) :])[:LAYERS] if len(kinds) > LAYERS else kinds


def small_model(model_type: str) -> Any:
    """A small model of a type, in evaluation mode; always the same weights, none of them trivial."""
    with plain_torch():
        torch.manual_seed(0)
        model = AutoModel.from_config(small_config(model_type))
        return randomised(model.float()).eval()


def inputs_of(model: Any) -> dict[str, Any]:
    """The first inputs with which a forward pass succeeds."""
    errors = []
    for inputs in candidates(model):
        try:
            with untouched(model), torch.no_grad():
                model(**inputs)
            return dict(inputs)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}")
    raise RuntimeError("; ".join(errors) or "no inputs of a known kind")


Outputs = list[Tensor]


def output(model: Any, inputs: Any) -> Tensor:
    """All that a model computes that depends on its weights, in one row."""
    return torch.cat([one.flatten() for one in outputs(model, inputs)])


def outputs(model: Any, inputs: Any) -> Outputs:
    """All that a model computes that depends on its weights; where it draws random numbers, always the same."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return [one.nan_to_num() for one in _floats(model(**inputs))]


def _floats(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() else []
    if isinstance(value, dict):
        value = tuple(value.values())
    return [tensor for entry in value for tensor in _floats(entry)] if isinstance(value, (tuple, list)) else []


# ------------------------------------------------------------------------------------------------------ what is tried


@dataclass(frozen=True)
class Tried:
    """A method that is put at every role of its kinds.

    Attributes:
        kinds: Of the roles at which it acts.
        config: Makes a config of the roles.
        merges: Whether it can be folded into the weights.
    """

    kinds: tuple[type[Site], ...]
    config: Callable[[list[str]], AdapterConfig]
    merges: bool = False


METHODS: dict[str, Tried] = {
    "lora": Tried((LinearSite,), lambda places: LoRAConfig(r=2, alpha=2, places=places), merges=True),
    "dora": Tried((LinearSite,), lambda places: DoRAConfig(r=2, alpha=2, places=places), merges=True),
    "ia3": Tried((LinearSite,), lambda places: IA3Config(places=places), merges=True),
    "seq_bn": Tried((ResidualSite,), lambda places: SeqBnConfig(reduction_factor=4, places=places)),
    "par_bn": Tried((ResidualSite,), lambda places: ParBnConfig(reduction_factor=4, places=places)),
    "compacter": Tried(
        (ResidualSite,), lambda places: CompacterPlusPlusConfig(reduction_factor=2, phm_dim=2, places=places)
    ),
    "prefix_tuning": Tried(
        (AttentionSite,), lambda places: PrefixTuningConfig(prefix_length=3, bottleneck_size=8, places=places)
    ),
    "loreft": Tried((ResidualSite, LayerSite), lambda places: LoReftConfig(r=2, places=places)),
}
BLOCKS: dict[str, AdapterCompositionBlock] = {
    "Stack": Stack("a", "b"),
    "Average": Average("a", "b", weights=[1.0, 0.0]),
    "BatchSplit": BatchSplit("a", None, batch_sizes=[1, 1]),
    "Parallel": Parallel("a", "b"),
}
CHECKS: dict[str, str] = {
    "acts": "the output changes",
    "trains": "every tensor of the adapter gets a gradient, and no parameter of the base model",
    "merges": "merged gives what unmerged gave; reset, the weights are the same bits",
    "Stack": "two in a row give something else than each of them",
    "Average": "with weights of 1 and 0, what the first gives",
    "BatchSplit": "each row is what it is alone: the first with the adapter, the second without",
    "Parallel": "what two calls give, one for each",
    "goes": "deleted, names, bits, hooks and output are those of the model that never had it",
    "generates": "with a cache the tokens and scores that there are without",
}
"""What is asked of every method at every type, and what has to hold."""

VERIFIED, REFUSED, FAILED, SILENT = "verified", "refused", "failed", "cannot be told"
"""What a check can give. It cannot be told where the model itself is not what adapters would be held to."""

Results = dict[str, str]
"""Check -> what it gave; but for `VERIFIED`, with a colon and the reason."""


@dataclass
class Probed:
    """What was found in one model, and what adapters did there.

    Attributes:
        roles: Role -> at how many layers it is.
        refused: Role -> why it is not, where it is refused.
        unnamed: Linear maps of layers that have no role.
        results: Method -> its results.
    """

    roles: Counter[str] = field(default_factory=Counter)
    refused: dict[str, str] = field(default_factory=dict)
    unnamed: list[str] = field(default_factory=list)
    results: dict[str, Results] = field(default_factory=dict)

    @property
    def failures(self) -> dict[str, str]:
        """What was wrong, by method and check."""
        return {
            f"{method} {check}": result
            for method, results in self.results.items()
            for check, result in results.items()
            if result.startswith(FAILED)
        }

    def record(self) -> dict[str, Any]:
        """As it stands in docs/capabilities.json."""
        methods = {
            method: {"verified": [c for c, r in each.items() if r == VERIFIED]}
            | {check: result for check, result in each.items() if result != VERIFIED}
            for method, each in self.results.items()
        }
        return {"roles": dict(self.roles), "refused": self.refused, "unnamed": len(self.unnamed), "methods": methods}


class Wrong(Exception):
    """A check does not hold."""


class Untellable(Exception):
    """A check cannot be made on this model."""


def result_of(check: Callable[[], None]) -> str:
    """What a check gave."""
    try:
        check()
    except AdapterError as error:
        return f"{REFUSED}: {in_short(error)}"
    except Untellable as error:
        return f"{SILENT}: {error}"
    except Wrong as error:
        return f"{FAILED}: {error}"
    except Exception as error:
        return f"{FAILED}: {type(error).__name__}: {in_short(error)}"
    return VERIFIED


def in_short(error: Exception) -> str:
    """The first sentences of an error, in one line."""
    text = " ".join(str(error).partition("Places for")[0].split())
    return text if len(text) <= 200 else text[:197] + "..."


# ------------------------------------------------------------------------------------------------- against the docs

DOCS = Path(__file__).parents[1] / "docs" / "capabilities.json"


def sample_of(model_type: str) -> tuple[str, str]:
    """Two methods, so that a sample of types tries all of them."""
    number = sum(map(ord, model_type))
    names = list(METHODS)
    return names[number % len(names)], names[(number + 3) % len(names)]


def assert_documented(model_type: str, found: Probed) -> None:
    """What was found is what docs/capabilities.json says, if it was made with this version of transformers."""
    docs = _docs()
    if docs["transformers"] != transformers.__version__:
        return
    hint = f"run python scripts/zoo.py {model_type}"
    assert model_type in docs["types"], hint
    record, written = found.record(), docs["types"][model_type]
    assert {**record, "methods": None} == {**written, "methods": None}, hint
    for method, results in record["methods"].items():
        assert _states(results) == _states(written["methods"][method]), f"{method}: {hint}"


@cache
def _docs() -> dict[str, Any]:
    return dict(json.loads(DOCS.read_text(encoding="utf-8")))


def _states(results: dict[str, Any]) -> dict[str, Any]:
    """Without the numbers that are in words."""
    return {name: value if name == VERIFIED else value.partition(":")[0] for name, value in results.items()}


# ------------------------------------------------------------------------------------------------------ on base models


def probe(model: Any, inputs: Any, model_type: str = "", methods: Iterable[str] = METHODS) -> Probed:
    """Put adapters at every place of a model, and see what they do.

    Args:
        model: A model, which is left as it was, but for the verbs of `init`.
        inputs: Of a forward pass, two rows.
        model_type: Its language model has to generate too, where there is one.
        methods: Of `METHODS`.
    """
    found = Probed()
    plain = Plain(model, inputs)
    adapters.init(model)
    if model._engine.spec.natives is not None:  # adapters of its own are silent from now on
        plain = Plain(model, inputs)
    sites = model._engine.sites
    found.refused = model._engine.spec.refusals()
    found.roles = Counter(role for site in sites for role in set(site.role.split("+")) if role and site.layer >= 0)
    found.unnamed = [site.path for site in sites if isinstance(site, LinearSite) and not site.role and site.layer >= 0]
    speaker = language_model(model_type) if model_type else None
    for name in methods:
        results = OnBase(model, plain, METHODS[name]).results()
        if speaker is not None and results["acts"] == VERIFIED:
            results["generates"] = result_of(partial(speaker.check, METHODS[name]))
        found.results[name] = results
        if results.get("goes", VERIFIED) != VERIFIED:
            model = adapters.init(copy.deepcopy(plain.model))
    return found


class Plain:
    """What a model gives without adapters: for two rows, for each alone, and for all of them twice."""

    def __init__(self, model: Any, inputs: Any) -> None:
        self.model, self.inputs = copy.deepcopy(model), inputs
        self.state, self.hooks = state(model), hook_names(model)
        model.requires_grad_(True)
        _weighted(outputs(model, inputs)).backward()
        self.silent = {name for name, parameter in model.named_parameters() if parameter.grad is None}
        model.zero_grad()
        self.modules = {path for path, _ in model.named_modules()}
        self.whole = given(model.requires_grad_(False), inputs)  # torch computes otherwise, by a bit, where they train

    @cached_property
    def rows(self) -> list[Any]:
        """The inputs of each row alone."""
        return [{name: _row(value, row) for name, value in self.inputs.items()} for row in range(ROWS)]

    @cached_property
    def alone(self) -> list[Outputs]:
        """What each row gives alone."""
        return [given(self.model, one) for one in self.rows]

    def by_rows(self) -> None:
        """Raise Untellable where rows of the model itself are not what they are alone."""
        self._told(lambda: joined(self.alone, self.whole), "a row of the model itself is not what it is alone")

    def twice(self) -> None:
        """Raise Untellable where the model itself does not give all twice for all inputs twice."""
        inputs = {name: _twice(value) for name, value in self.inputs.items()}
        self._told(
            lambda: joined([self.whole, self.whole], given(self.model, inputs)),
            "the model itself gives something else for twice the rows",
        )

    def _told(self, check: Callable[[], None], words: str) -> None:
        try:
            check()
        except Exception as error:
            raise Untellable(f"{words}: {in_short(error)}") from None

    def unused(self, key: str) -> bool:
        """Whether an adapter's tensor stands at a module whose own parameters have no part in the output either."""
        path = key
        while path and path not in self.modules:
            path = path.rpartition(".")[0]
        while path:
            own = [name for name in self.state if name.startswith(f"{path}.")]
            if own:
                return all(name in self.silent for name in own)
            path = path.rpartition(".")[0]
        return False


def _row(value: Any, row: int) -> Any:
    return value[row : row + 1] if _by_rows(value) else value


def _twice(value: Any) -> Any:
    return torch.cat([value, value]) if _by_rows(value) else value


def _by_rows(value: Any) -> bool:
    return isinstance(value, Tensor) and value.dim() > 0 and value.shape[0] == ROWS


def given(model: Any, inputs: Any) -> Outputs:
    """The outputs of a call without gradients."""
    with torch.no_grad():
        return outputs(model, inputs)


def _weighted(values: Outputs) -> Tensor:
    flat = torch.cat([one.flatten() for one in values])
    return (flat * torch.linspace(0.5, 1.5, len(flat))).sum()


def close(found: Tensor, expected: Tensor, tolerance: float = 2e-4) -> None:
    """Raise Wrong where numbers differ by more than a part of the largest of them."""
    if not expected.numel():
        return
    difference = float((found - expected).abs().max())
    if difference > tolerance * max(1e-3, float(expected.abs().max())):
        raise Wrong(f"differs by {difference:.1g} where numbers are up to {float(expected.abs().max()):.1g}")


def joined(parts: list[Outputs], whole: Outputs) -> None:
    """Raise Wrong unless `whole` is made of `parts`, each tensor along the dimension in which its rows are."""
    told = False
    for tensor, *pieces in zip(whole, *parts, strict=True):
        for dim in range(tensor.dim()):
            others = {(*piece.shape[:dim], *piece.shape[dim + 1 :]) for piece in pieces}
            if others == {(*tensor.shape[:dim], *tensor.shape[dim + 1 :])} and (
                sum(piece.shape[dim] for piece in pieces) == tensor.shape[dim]
            ):
                close(tensor, torch.cat(pieces, dim))
                told = True
                break
    if not told:
        raise Wrong(f"no output of shape {[list(one.shape) for one in whole][:3]} is made of rows")


class OnBase:
    """The checks of one method on one base model."""

    def __init__(self, model: Any, plain: Plain, tried: Tried) -> None:
        self.model, self.plain, self.tried = model, plain, tried

    def results(self) -> Results:
        """What they gave; where the method is refused altogether, that alone."""
        added = result_of(self.add)
        if added != VERIFIED:
            return {"acts": added}
        try:
            results = {"acts": result_of(self.acts), "trains": result_of(self.trains)}
            if self.tried.merges:
                results["merges"] = result_of(self.merges)
            for block in BLOCKS:
                results[block] = result_of(partial(self.block, block))
        finally:
            goes = result_of(self.goes)
        return {**results, "goes": goes}

    def add(self) -> None:
        config = self.tried.config(roles(self.model, self.tried.kinds))
        for number, name in enumerate("ab"):
            self.model.add_adapter(name, config=config)
            perturb(self.model, name, scale=0.1, seed=number)

    @cached_property
    def singles(self) -> list[Outputs]:
        """What each adapter gives alone."""
        found = []
        for name in "ab":
            self.model.set_active_adapters(name)
            found.append(given(self.model, self.plain.inputs))
        return found

    def acts(self) -> None:
        for single in self.singles:
            if _same(single, self.plain.whole):
                raise Wrong("the output does not change")

    def trains(self) -> None:
        self.model.requires_grad_(True)
        self.model.train_adapter("a")
        self.model.eval()
        _weighted(outputs(self.model, self.plain.inputs)).backward()
        parameters = adapter_parameters(self.model, "a")
        reached = {key for key, p in self.model.named_parameters() if p.grad is not None}
        self.model.zero_grad()
        if reached - set(parameters):
            raise Wrong(f"gradients of the base model: {sorted(reached - set(parameters))[:3]}")
        if silent := sorted(key for key in set(parameters) - reached if not self.plain.unused(key)):
            raise Wrong(f"no gradient: {silent[0]} and {len(silent)} in all")

    def merges(self) -> None:
        self.model.set_active_adapters("a")
        try:
            self.model.merge_adapter("a")
            for found, expected in zip(given(self.model, self.plain.inputs), self.singles[0], strict=True):
                close(found, expected, 1e-3)
        finally:
            self.model.reset_adapter()
        now = state(self.model)
        if any(now[name] != bits for name, bits in self.plain.state.items()):
            raise Wrong("reset, the weights are not the same bits")

    def block(self, name: str) -> None:
        self.model.set_active_adapters(BLOCKS[name])
        try:
            self._holds(name, given(self.model, self.plain.inputs))
        except AdapterError:
            raise
        except Exception:
            if name == "BatchSplit":
                self.plain.by_rows()
            if name == "Parallel":
                self.plain.twice()
            raise
        finally:
            self.model.set_active_adapters(None)

    def _holds(self, name: str, found: Outputs) -> None:
        one, two = self.singles
        if name == "BatchSplit":
            self.model.set_active_adapters("a")
            joined([given(self.model, self.plain.rows[0]), self.plain.alone[1]], found)
        elif name == "Parallel":
            joined([one, two], found)
        elif name == "Average":
            for mean, expected in zip(found, one, strict=True):
                close(mean, expected)
        elif _same(found, one) or _same(found, two):
            raise Wrong("it gives what one of them gives")

    def goes(self) -> None:
        for name in "ab":
            if name in self.model.adapters_config:
                self.model.delete_adapter(name)
        if state(self.model) != self.plain.state or hook_names(self.model) != self.plain.hooks:
            raise Wrong("names, weights or hooks are not what they were")
        if not _same(given(self.model, self.plain.inputs), self.plain.whole):
            raise Wrong("the output is not what it was")


def _same(one: Outputs, other: Outputs) -> bool:
    return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(one, other, strict=True))


def roles(model: Any, kinds: tuple[type[Site], ...]) -> list[str]:
    """The roles of these kinds that a model has; where it has linear maps without roles only, all of them.

    Tables of embeddings count as no linear maps: those that share weights can be merged by few methods.
    """
    sites = [site for site in model._engine.sites if isinstance(site, kinds) and not isinstance(site, TableSite)]
    found = {role for site in sites for role in site.role.split("+")} - {""}
    return sorted(found) or ["*"]


# -------------------------------------------------------------------------------------------------- on language models

SPEAKERS = (
    MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_SPEECH_SEQ_2_SEQ_MAPPING_NAMES,
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
)
NEW = 2


class LanguageModel:
    """The small language model of a type."""

    def __init__(self, model: Any) -> None:
        self.model = adapters.init(model)
        self.why = result_of(self._start)

    def _start(self) -> None:
        self.inputs = {
            name: value for name, value in inputs_of(self.model).items() if not name.startswith("decoder_input")
        }
        self.expected = self.generated()
        _agree(self.expected, self.generated(use_cache=False))

    def generated(self, **options: Any) -> Any:
        """Tokens and scores."""
        fixed: dict[str, Any] = {"max_new_tokens": NEW, "min_new_tokens": NEW, "do_sample": False, "num_beams": 1}
        fixed |= {"eos_token_id": None, "pad_token_id": 0, "decoder_start_token_id": 0, "bos_token_id": 0}
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            return self.model.generate(
                **self.inputs, **fixed, **options, return_dict_in_generate=True, output_logits=True
            )

    def check(self, tried: Tried) -> None:
        """The check "generates" of a method."""
        if self.why != VERIFIED:
            raise Untellable(f"the model itself does not generate the same: {self.why.partition(': ')[2]}")
        self.model.add_adapter("a", config=tried.config(roles(self.model, tried.kinds)), set_active=True)
        try:
            perturb(self.model, "a", scale=0.1)
            found = self.generated()
            _agree(found, self.generated(use_cache=False))
            if all(torch.equal(one, other) for one, other in zip(found.logits, self.expected.logits, strict=True)):
                raise Wrong("the scores do not change")
        finally:
            self.model.delete_adapter("a")


def _agree(one: Any, other: Any) -> None:
    for a, b in zip(one.logits, other.logits, strict=True):
        close(a, b)
    if not torch.equal(one.sequences, other.sequences):
        raise Wrong("other tokens")


def language_model(model_type: str) -> LanguageModel | None:
    """The small language model of a type; None where it has none."""
    name = next((names[model_type] for names in SPEAKERS if model_type in names), None)
    if name is None:
        return None
    kind = getattr(transformers, name)
    config = small_config(model_type)
    if getattr(config, "is_decoder", True) is False and not config.is_encoder_decoder:
        config.is_decoder = True
    with plain_torch():
        torch.manual_seed(0)
        model = randomised(kind._from_config(config).float()).eval()
    return LanguageModel(model.requires_grad_(False))


# ------------------------------------------------------------------------------------------------------------- traces


def state(model: nn.Module) -> dict[str, int]:
    """Names of tensors with a sum over their bits."""
    return {name: hash(tensor.numpy().tobytes()) for name, tensor in model.state_dict().items()}


def hook_names(model: nn.Module) -> list[str]:
    """The hooks of all modules."""
    kinds = ("_forward_hooks", "_forward_pre_hooks")
    return [f"{path}.{kind}" for path, module in model.named_modules() for kind in kinds if getattr(module, kind)]
