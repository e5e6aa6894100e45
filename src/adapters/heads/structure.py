"""What stands after the base model of a plain class? A small model of the class is run once, and compared with numbers.

    base model --> pooled --> (Linear, activation, norm) x (layers - 1) --> Linear --> scaled, capped --> logits

Nothing is taken from names: which module follows which, what lies between two of them, and which vector of the base
model they read is believed where it gives the numbers of the class.
"""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain, pairwise
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.activations import ACT2FN
from transformers.conversion_mapping import get_model_conversion_mapping
from transformers.models.auto import modeling_auto
from transformers.utils.generic import ModelOutput

from adapters.errors import UnsupportedError, choices
from adapters.heads.base import norm_eps, width_of
from adapters.heads.kinds import BASES, MODEL_KINDS, stem
from adapters.heads.language_modeling import scales_decoder
from adapters.heads.pooling import POOLINGS, summary, text_config
from adapters.sites.discovery.inputs import candidates
from adapters.sites.discovery.twin import configs, divisor, plain_torch, randomised, shrunken, size

TASKS = {
    "seq2seq_lm": ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ"),
    "classification": ("SEQUENCE_CLASSIFICATION", "AUDIO_CLASSIFICATION"),
    "tagging": ("TOKEN_CLASSIFICATION", "AUDIO_FRAME_CLASSIFICATION"),
    "question_answering": ("QUESTION_ANSWERING", "DOCUMENT_QUESTION_ANSWERING"),
    "multiple_choice": ("MULTIPLE_CHOICE",),
    "causal_lm": ("CAUSAL_LM", "IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM"),
    "masked_lm": ("MASKED_LM",),
    "ctc": ("CTC",),
    "image_classification": ("IMAGE_CLASSIFICATION", "VIDEO_CLASSIFICATION"),
}
"""Type of a flexible head -> the tasks of transformers that it is for. The first that names a class is the class's."""

ROWS = ("classification", "multiple_choice", "image_classification")
"""Heads that read one vector per row."""
TOKENS = ("masked_lm", "causal_lm", "seq2seq_lm")
"""Heads that predict tokens."""
GENERATORS = {"causal_lm": "seq2seq_lm", "seq2seq_lm": "causal_lm"}
"""Heads that write. Which of them a class for images or sounds has is told by its type, not by its task."""
BIASED = ("tagging", "question_answering", "multiple_choice", "ctc")
"""Heads whose last layer has a bias, whatever their options say."""
ENCODER_DECODER = ("encoder", "decoder", "shared")
"""Children of classes like T5ForConditionalGeneration that are the base model; the others are the head."""
USUAL = ("gelu", "tanh", "relu", "silu", "gelu_new")
"""Activations that are tried first, if no field of the config names one that fits."""
UNTOLD = ("mt5",)
"""Types whose config does not say whether their decoder states are scaled, so that their class does not tell it."""
LARGEST = 150_000_000
"""Parameters up to which a model is run with its own widths, if it cannot be made small."""
FACTORS = ("d_model", "hidden_size", "logit", "scale", "scaling", "multiplier", "cap")
"""What the fields of configs are called that states or logits are multiplied by, or their square roots or inverses."""


@dataclass(frozen=True)
class StaticHead:
    """Where one transformers class keeps its head, and which flexible head computes the same.

    Args:
        head_type: Type of the flexible head.
        modules: Name of the module at each index; None for those without weights.
        options: Arguments of the flexible head; those left out take the defaults of its class.
        base: Names of the children that are the base model: one, or those over which it is spread.
        aliases: Other names that tensors of the head have -> their names below the flexible head.
        zeros: Names below the flexible head of biases that the class does not have.
        factor: By which the last weight is multiplied, because flexible heads read scaled states.
    """

    head_type: str
    modules: tuple[str | None, ...]
    options: Mapping[str, Any] = field(default_factory=dict)
    base: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    factor: float = 1.0


def _classes() -> dict[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    for head_type, tasks in TASKS.items():
        for task in tasks:
            for model_type, names in getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES").items():
                for name in (names,) if isinstance(names, str) else names:
                    if model_type not in MODEL_KINDS or (name in found and found[name][0] != head_type):
                        continue
                    if name not in found or name.startswith(stem(BASES[model_type])):
                        found[name] = head_type, model_type
    return found


CLASSES = _classes()
"""Name of a class of transformers -> type of the flexible head for its task, and a model type that has it."""

_READ: dict[str, StaticHead | str] = {}


def read_head(class_name: str, config: PreTrainedConfig | None = None) -> StaticHead:
    """The flexible head that computes what a class's own head does.

    Args:
        class_name: Name of the transformers class.
        config: Of the model; by default that of the class.
    Raises:
        UnsupportedError: no flexible head can do the same, with the reason.
    """
    if class_name not in CLASSES:
        known = hasattr(transformers, class_name)
        raise _refused(class_name, "its task is that of no flexible head." if known else choices(class_name, CLASSES))
    cls = getattr(transformers, class_name)
    given: Any = config if isinstance(config, cls.config_class) else cls.config_class()
    key = f"{class_name} {json.dumps(given.to_dict(), sort_keys=True, default=str)}"
    if key not in _READ:
        try:
            _READ[key] = _Reading(cls, given).head()
        except UnsupportedError as error:
            _READ[key] = str(error)
    found = _READ[key]
    if isinstance(found, str):
        raise _refused(class_name, found)
    return found


def _refused(class_name: str, why: str) -> UnsupportedError:
    return UnsupportedError(f"The head of {class_name!r} cannot be turned into a flexible head: {why}")


@dataclass
class _Step:
    """A module of the head that ran: its name, what went in and what came out."""

    name: str
    module: nn.Module
    given: Tensor
    out: Tensor


class _Reading:
    """One run of a small model of a class, and what is read from it."""

    def __init__(self, cls: type[PreTrainedModel], config: Any) -> None:
        self.cls, self.given = cls, config
        self.head_type, model_type = CLASSES[cls.__name__]
        self.kind = MODEL_KINDS.get(config.model_type) or MODEL_KINDS[model_type]
        other = GENERATORS.get(self.head_type)
        if self.head_type not in self.kind.head_types and other in self.kind.head_types and _senses(cls.__name__):
            self.head_type = other
        if self.head_type not in self.kind.head_types:
            raise UnsupportedError(f"{self.kind.name}AdapterModel has no heads of type {self.head_type!r}.")
        self.steps: list[_Step] = []
        self.outputs = ModelOutput()
        self.inputs: dict[str, Any] = {}
        with plain_torch():
            self.model = _small(cls, config)
            self.config: Any = self.model.config
            self.base, self.stack = self._find_base()
            self.logits = self._run()
            if not self.logits.isfinite().all():  # deep convolutions
                self.model = _small(cls, config, as_trained=True)
                self.base, self.stack = self._find_base()
                self.logits = self._run()
            self._check_base()

    @torch.no_grad()
    def _check_base(self) -> None:
        """Refuse a class that gives its base model what models with flexible heads do not."""
        if len(self.base) > 1:
            return
        names = inspect.signature(self.stack.forward).parameters
        given = {name: value for name, value in self.inputs.items() if name in names}
        if self.head_type == "multiple_choice":
            given = {name: value.flatten(0, 1) for name, value in given.items()}
        if self.kind.shift is not None and "decoder_input_ids" not in given:
            given["decoder_input_ids"] = self.kind.shift(self.config, given["input_ids"])
        seen = self.outputs[0]
        self.stack(**given, return_dict=True)
        if not _same(self.outputs[0], seen):
            raise UnsupportedError("it gives its base model inputs of its own.")

    def _find_base(self) -> tuple[tuple[str, ...], nn.Module]:
        """Names of the children that are the base model, and the module that gives its output."""
        base_class = getattr(transformers, self.kind.base)
        children = dict(self.model.named_children())
        for name, child in children.items():
            if type(child) is base_class:
                return (name,), child
        if set(ENCODER_DECODER) <= set(children) and self.kind.shift is not None:
            return ENCODER_DECODER, children["decoder"]
        found = next((type(m).__name__ for m in children.values() if isinstance(m, PreTrainedModel)), "no base model")
        raise UnsupportedError(f"it stands on {found}, but that of {self.kind.name}AdapterModel on a whole model.")

    @torch.no_grad()
    def _run(self) -> Tensor:
        self.stack.register_forward_hook(self._on_base)
        handles = []
        for name, module in self.model.named_modules():
            if name and name.partition(".")[0] not in self.base and not list(module.children()):
                handles.append(module.register_forward_hook(self._on_step(name)))
        errors = []
        try:
            tried = (_inputs(inputs, self.config, self.head_type) for inputs in candidates(self.model))
            for self.inputs in chain.from_iterable(tried):
                self.steps.clear()
                try:
                    return _logits(self.model(**self.inputs))
                except Exception as error:
                    errors.append(f"{type(error).__name__}: {error}".partition("\n")[0])
        finally:
            for handle in handles:
                handle.remove()
        raise UnsupportedError(f"a small model of it could not be run ({'; '.join(dict.fromkeys(errors))}).")

    def _on_base(self, module: nn.Module, args: Any, output: Any) -> None:
        self.outputs = output if isinstance(output, ModelOutput) else ModelOutput(last_hidden_state=output[0])

    def _on_step(self, name: str) -> Callable[..., None]:
        def note(module: nn.Module, args: Any, output: Any) -> None:
            if args and isinstance(args[0], Tensor) and isinstance(output, Tensor):
                self.steps.append(_Step(name, module, args[0], output))

        return note

    @torch.no_grad()
    def head(self) -> StaticHead:
        """What was read.

        Raises:
            UnsupportedError: it is no flexible head.
        """
        linears = [step for step in self.steps if isinstance(step.module, nn.Linear)]
        if not linears:
            raise UnsupportedError("no linear layer stands after its base model.")
        activation, norms = self._between(linears)
        last: Any = linears[-1].module
        rows, tokens = self.head_type in ROWS, self.head_type in TOKENS
        options: dict[str, Any] = {"layers": len(linears), "activation_function": activation}
        structure: dict[str, Any] = {}
        modules: list[str | None] = []
        for linear, norm in zip(linears, [*norms, None], strict=True):
            modules += [linear.name] if tokens else [None, linear.name]
            modules += [None] if activation and linear is not linears[-1] else []
            modules += [norm.name] if norm is not None else []
        if self.head_type not in BIASED:
            options["bias"] = last.bias is not None
        if tokens:
            options["layer_norm"] = any(norms)
        elif any(norms):
            structure["layer_norm"] = True
        structure |= self._norms(norms) | self._widths(linears, options)
        factor = 1.0
        if rows:
            self._pool(linears, activation, norms, options, structure)
        else:
            factor = self._scale(linears[0].given)
            structure |= self._end(linears[-1].out, factor) if tokens else {}
        if structure:
            options["structure"] = structure
        names = {i: name for i, name in enumerate(modules) if name is not None}
        return StaticHead(
            self.head_type,
            tuple(modules),
            options,
            self.base,
            self._aliases(names),
            self._zeros(names, options),
            1.0 if tokens else factor,
        )

    def _between(self, linears: list[_Step]) -> tuple[str | None, list[_Step | None]]:
        """The activation behind each linear layer but the last, and the norms there."""
        functions: list[str | None] = []
        norms: list[_Step | None] = []
        for linear, following in pairwise(linears):
            passed = self.steps[self.steps.index(linear) + 1 : self.steps.index(following)]
            norm = next((step for step in passed if isinstance(step.module, nn.LayerNorm)), None)
            target = following.given if norm is None else norm.given
            if norm is None and linear.out.dim() > target.dim():  # pooled here, which `_pool` finds out
                functions.append(None)
                norms.append(None)
                continue
            fits = [name for name in self._activations() if _same(_activated(name, linear.out), target)]
            if not fits or (norm is not None and not _same(norm.out, following.given)):
                raise UnsupportedError(f"{following.name} reads something else than {linear.name} and an activation.")
            functions.append(fits[0])
            norms.append(norm)
        if len(set(functions)) > 1 or len({norm is None for norm in norms}) > 1:
            raise UnsupportedError(f"what stands between its layers differs: {functions}.")
        return (functions[0] if functions else None), norms

    def _activations(self) -> list[str | None]:
        """Names of activations, the likeliest first."""
        said = [value for value in vars(self.config).values() if isinstance(value, str) and value in ACT2FN]
        return list(dict.fromkeys([None, *said, *USUAL, *ACT2FN]))

    def _norms(self, norms: list[_Step | None]) -> dict[str, Any]:
        eps = [norm.module.eps for norm in norms if norm is not None]
        return {"norm_eps": eps[0]} if eps and eps[0] != norm_eps(self.config) else {}

    def _widths(self, linears: list[_Step], options: dict[str, Any]) -> dict[str, int]:
        """What differs from the width of the model; sizes are those of the real model, not of the small one."""
        usual = width_of(self.config)
        first, inner = (step.module.in_features for step in (linears[0], linears[-1]))
        if any(step.module.in_features != inner for step in linears[1:]):
            raise UnsupportedError("its layers have different widths.")
        if self.head_type in TOKENS:
            tied = getattr(self.config, "embedding_size", None) or usual
            if first != usual and len(linears) > 1:
                raise UnsupportedError(f"{linears[0].name} reads {first} columns, the model has {usual}.")
            if inner == tied:
                return {}
            if self.head_type == "seq2seq_lm":
                raise UnsupportedError(f"{linears[-1].name} reads {inner} columns, the model has {usual}.")
            options["embedding_size"] = self._real(linears[-1].name).in_features
            return {}
        sizes = {"input_size": (first, usual, linears[0]), "inner_size": (inner, usual, linears[-1])}
        if len(linears) == 1:
            del sizes["inner_size"]
        return {
            name: self._real(step.name).in_features for name, (size, wanted, step) in sizes.items() if size != wanted
        }

    def _real(self, name: str) -> Any:
        """A module as it is in the model itself, without weights."""
        with torch.device("meta"):
            return self.cls(self.given).get_submodule(name)

    def _pool(
        self,
        linears: list[_Step],
        activation: str | None,
        norms: list[_Step | None],
        options: dict[str, Any],
        structure: dict[str, Any],
    ) -> None:
        """Which vector per row gives the logits: that of the model type, the pooler's, or another."""
        ways: dict[str, Any] = {"": self.kind.pooling or POOLINGS["first"], **POOLINGS}
        for name, pool in ways.items():
            try:
                state = pool(self.config, self.outputs, self.inputs)
            except Exception:
                continue
            if state.dim() != 2 or state.size(-1) != linears[0].module.in_features:
                continue
            if (name == "pooler" or pool is summary) and not self._pools():
                continue
            for linear, norm in zip(linears, [*norms, None], strict=True):
                state = linear.module(state)
                state = state if linear is linears[-1] else _activated(activation, state)
                state = state if norm is None else norm.module(state)
            if not _same(state.view(self.logits.shape), self.logits):
                continue
            options["use_pooler"] = name == "pooler"
            if name not in ("", "pooler") or (name and self.kind.pooling is not None):
                structure["pooling"] = name
            return
        raise UnsupportedError("its layers read no vector per row that flexible heads can read.")

    def _pools(self) -> bool:
        """Whether the base model under flexible heads has the pooler, too."""
        with torch.device("meta"):
            own = set(dict(type(self.stack)(self.config).named_parameters()))
        return set(dict(self.stack.named_parameters())) <= own

    def _scale(self, given: Tensor) -> float:
        """By what the states that the first layer reads are multiplied, compared with those of flexible heads."""
        states = self.outputs[0]
        if self.config.model_type in UNTOLD and self.head_type in TOKENS:
            return 1.0
        if states.shape != given.shape:
            raise UnsupportedError("its layers read other states than the last of the base model.")
        here = self.config.d_model**-0.5 if scales_decoder(self.config) else 1.0
        if _same(given, states * here):
            return 1.0
        return self._explained(given, states * here, "states")

    def _explained(self, value: Tensor, plain: Tensor, what: str) -> float:
        """The factor between two tensors, as a field of the real config gives it."""
        factor = float((value * plain).sum() / (plain * plain).sum()) if value.shape == plain.shape else 0.0
        if not _same(value, plain * factor):
            raise UnsupportedError(f"its {what} are computed further.")
        for name, field_ in self._fields():
            for power in (1.0, -1.0, 0.5, -0.5):
                if abs(float(field_) ** power / factor - 1) < 1e-4:
                    return float(getattr(text_config(self.given), name) ** power)
        raise UnsupportedError(f"its {what} are multiplied by {factor:.4g}, which no field of its config says.")

    def _fields(self) -> Iterable[tuple[str, float]]:
        """Numbers of the config that something may be multiplied by."""
        text = text_config(self.config)
        for part in FACTORS:
            for name, value in vars(text).items():
                if part in name and type(value) in (int, float) and value > 0:
                    yield name, value

    def _end(self, out: Tensor, scale: float) -> dict[str, float]:
        """What happens to the logits behind the last layer, and to the states before it."""
        found = {} if scale == 1 else {"scale": scale}
        if _same(out, self.logits, 1e-6):
            return found
        for name, cap in self._fields():
            if "cap" in name and _same(torch.tanh(out / cap) * cap, self.logits, 1e-6):
                return {**found, "cap": float(getattr(text_config(self.given), name))}
        return {"scale": scale * self._explained(self.logits, out, "logits")}

    def _aliases(self, names: Mapping[int, str]) -> dict[str, str]:
        """Other names of the head's tensors in the class, outside of the base model."""
        state = self.model.state_dict(keep_vars=True)
        found: dict[str, str] = {}
        for index, module in names.items():
            for part in ("weight", "bias"):
                own = state.get(f"{module}.{part}")
                same = [name for name, tensor in state.items() if own is not None and tensor is own]
                outside = [name for name in same if name.partition(".")[0] not in self.base]
                stored = [name for name in self._stored(f"{module}.{part}") if own is not None]
                found |= {name: f"{index}.{part}" for name in (*outside, *stored) if name != f"{module}.{part}"}
        return found

    def _stored(self, name: str) -> list[str]:
        """What transformers calls a tensor in files, where it is renamed when it is read."""
        found = []
        for conversion in get_model_conversion_mapping(self.model, add_legacy=False):
            for source, target in zip(conversion.source_patterns, conversion.target_patterns, strict=False):
                plain = source.removeprefix("^").replace("\\.", ".")
                whole = source.startswith("^") or name == target
                if whole and name.startswith(target) and re.fullmatch(r"[\w.]+", plain):
                    found.append(plain + name.removeprefix(target))
        return found

    def _zeros(self, names: Mapping[int, str], options: Mapping[str, Any]) -> tuple[str, ...]:
        """Biases that the flexible head has, and the class has not."""
        last = max(names)
        without = [i for i, name in names.items() if getattr(self.model.get_submodule(name), "bias", None) is None]
        return tuple(f"{i}.bias" for i in without if i != last or options.get("bias", True))


def _senses(class_name: str) -> bool:
    """Whether a class writes about what it sees or hears."""
    tasks = ("IMAGE_TEXT_TO_TEXT", "MULTIMODAL_LM", "SPEECH_SEQ_2_SEQ", "SEQ_TO_SEQ_CAUSAL_LM")
    maps = (getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES") for task in tasks)
    return any(class_name in names.values() for names in maps)


def _small(cls: type[PreTrainedModel], config: Any, as_trained: bool = False) -> Any:
    """A small model of a class, in evaluation mode; one with the real widths if it is small enough.

    Its weights are random, or (`as_trained`) as the class begins training with them.
    """
    errors = []
    for by in dict.fromkeys((divisor(config), 1)):
        small: Any = _complete(shrunken(config, by))
        try:
            with torch.device("meta"):
                few = by > 1 or size(cls(small)) <= LARGEST
            if few:
                model: Any = cls(small).float().eval()
                return model if as_trained else randomised(model)
        except Exception as error:
            errors.append(f"{type(error).__name__}: {error}".partition("\n")[0])
    raise UnsupportedError(f"a small model of it cannot be built ({'; '.join(dict.fromkeys(errors)) or 'too large'}).")


def _complete(config: Any) -> Any:
    """A config with the special tokens that poolings look for, and without what would be in the way."""
    text = text_config(config)
    if getattr(text, "vocab_size", None):
        for token, name in enumerate(("pad_token_id", "eos_token_id")):
            if getattr(text, name, None) is None:
                setattr(text, name, token)
    if not hasattr(config, "decoder_start_token_id"):
        config.decoder_start_token_id = 0
    for part in configs(config):
        if isinstance(getattr(part, "dtype", None), str):  # as it is read from files
            part.dtype = getattr(torch, part.dtype)
    for name in ("adapters", "quantization_config", "prediction_heads"):
        if hasattr(config, name):
            delattr(config, name)
    if getattr(config, "_attn_implementation", None) not in ("eager", "sdpa", None):
        config._attn_implementation = "eager"
    config.use_cache = False
    return config


def _inputs(inputs: Mapping[str, Any], config: Any, head_type: str) -> Iterator[dict[str, Any]]:
    """Inputs that tell poolings apart: rows end with <eos>, the second is padded. Some classes want three <sep>."""
    found = dict(inputs)
    ids, mask = found.get("input_ids"), found.get("attention_mask")
    if head_type not in TOKENS:
        found.pop("decoder_input_ids", None)
    text = text_config(config)
    if ids is not None and mask is not None and ids.size(1) > 4:
        ends, separator = text.eos_token_id, getattr(text, "sep_token_id", None)
        ids, mask = ids.clone(), mask.clone()
        ids[0, -1] = ids[1, -3] = ends[0] if isinstance(ends, list | tuple) else ends
        ids[1, -2:], mask[1, -2:] = text.pad_token_id, 0
        found |= {"input_ids": ids, "attention_mask": mask}
        yield _with_choices(found, head_type)
        if isinstance(separator, int):
            ids = ids.clone()
            ids[:, [1, 3, 4]] = separator
            ids[0, -1] = 10
            yield _with_choices({**found, "input_ids": ids}, head_type)
    else:
        yield _with_choices(found, head_type)


def _with_choices(inputs: dict[str, Any], head_type: str) -> dict[str, Any]:
    if head_type == "multiple_choice":
        return {name: value.unsqueeze(0) for name, value in inputs.items()}
    return inputs


def _logits(output: Any) -> Tensor:
    if "logits" in output:
        logits: Tensor = output["logits"]
        return logits
    return torch.stack([output["start_logits"], output["end_logits"]], -1)


def _activated(name: str | None, value: Tensor) -> Tensor:
    if name is None:
        return value
    result: Tensor = ACT2FN[name](value)
    return result


def _same(one: Tensor, other: Tensor, tolerance: float = 1e-5) -> bool:
    if one.shape != other.shape:
        return False
    return bool((one - other).abs().max() <= tolerance * other.abs().max())
