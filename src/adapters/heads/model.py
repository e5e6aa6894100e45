"""How does a base model run with heads on top? Constructor, forward and loading of all model classes of `auto.py`."""

from __future__ import annotations

import copy
import inspect
import logging
import re
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, cast

import torch
from torch import Tensor, nn
from transformers import GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.conversion_mapping import get_checkpoint_conversion_mapping
from transformers.core_model_loading import WeightRenaming
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils.generic import ModelOutput, TransformersKwargs

from adapters.errors import HeadError, UnsupportedError, choices
from adapters.heads.base import PredictionHead
from adapters.heads.classification import classification_vector
from adapters.heads.language_modeling import scales_decoder
from adapters.heads.mixin import MULTILABEL, FlexibleHeadsMixin
from adapters.heads.output_embeddings import Heads, head_names
from adapters.heads.pooling import POOLINGS, Pooling
from adapters.heads.registry import HEADS
from adapters.heads.running import LABELS
from adapters.heads.shifting import Shift
from adapters.heads.static import (
    DEFAULT_HEAD,
    HEAD_MODULES,
    find_static_head,
    static_head_config,
    static_key_mapping,
)
from adapters.heads.structure import StaticHead
from adapters.runtime.arguments import UnknownArgument, refuse_adapter_names
from adapters.runtime.entry import REPORTS

logger = logging.getLogger(__name__)

HEAD_ARGUMENTS = (*LABELS, "word_starts", "num_items_in_batch")
"""Arguments of built-in heads."""
RUNTIME = (
    "task_ids",
    *(f"output_{name}" for name in REPORTS),
    "adapter_input_parallelized",
)
"""Arguments that adapters read from the call of the base model."""
SIGNATURE = ("head", "labels", "start_positions", "end_positions", "word_starts", *RUNTIME, "return_dict")
"""What `forward` takes besides the base model's arguments. Data sets may have columns of these names.

`labels_arcs` and `labels_rels` are left out: the HF Trainer takes all names with "label" for required."""
CHOICES = ("input_ids", "attention_mask", "token_type_ids", "position_ids")
HUB = ("cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token")
NOT_CONFIG = ("dtype", "torch_dtype", "quantization_config")

if TYPE_CHECKING:

    class _Base(FlexibleHeadsMixin, PreTrainedModel):
        def _init_adapters(self) -> None: ...
else:
    _Base = FlexibleHeadsMixin


class HeadModel(_Base):
    """A base model of transformers under its usual attribute, with flexible heads on top.

    Classes derive from this, from `AdapterModelMixin` and from the model's own base class, in this order.

    Args:
        config: Config of the base model; `prediction_heads` in it describes heads.
    """

    base_model_class: ClassVar[type[PreTrainedModel]]
    pooling: ClassVar[Pooling | None] = None
    """Vector per row for classification; None: position 0 or the pooler."""
    shift: ClassVar[Shift | None] = None
    """Decoder inputs from targets or encoder inputs; None for models without encoder."""
    base_arguments: ClassVar[tuple[str, ...]] = ()

    def __init__(self, config: PreTrainedConfig, *args: Any, **kwargs: Any) -> None:
        config = copy.deepcopy(config)
        if config.model_type == "mt5" and not hasattr(config, "scale_decoder_outputs"):
            config.scale_decoder_outputs = False
        super().__init__(config, *args, **kwargs)
        setattr(self, self.base_model_prefix, self.base_model_class(self.config))
        self.post_init()  # type: ignore[no-untyped-call]
        self._init_adapters()
        self._init_heads()

    def forward(self, *args: Any, head: Heads = None, **kwargs: Any) -> Any:
        """Runs the base model and the heads on its output.

        Args:
            args: Arguments of the base model.
            head: Name(s) of the heads to run, instead of the active ones.
            kwargs: Arguments of the base model, of the adapters (`task_ids`, ...) and of the heads (`labels`, ...).
        Returns:
            The head's output, with hidden states, attentions and caches of the base model. Without head the base
            model's output.
        Raises:
            UnknownArgument: neither the base model nor a head takes one of the arguments (a TypeError).
            HeadError: as `forward_head`.
        """
        inputs = self._name_arguments(args, kwargs)
        return_dict = inputs.pop("return_dict", None)
        return_dict = bool(self.config.return_dict if return_dict is None else return_dict)
        heads = self._used_heads(head)
        for_base, for_heads = self._sort_arguments(inputs, heads)
        tasks = for_base.pop("task_ids", None)
        flatten_choices(for_base)
        self._complete_decoder_inputs(for_base, for_heads.get("labels"), heads)
        outputs: ModelOutput = self.base_model(**for_base, return_dict=True)
        if not heads and not scales_decoder(self.config):
            return self.forward_head(outputs, return_dict=return_dict, **for_heads)
        states: Tensor = outputs[0]
        unscaled = copy.copy(outputs)
        if scales_decoder(self.config):
            outputs["last_hidden_state"] = states * self.config.d_model**-0.5

        mask = self._output_mask(for_base.get("attention_mask"), states.size(1))
        seen = {**for_base, "attention_mask": mask}

        def cls_vector(head: PredictionHead) -> Tensor:
            named = (head.config.get("structure") or {}).get("pooling")
            pool = type(self).pooling if named is None else POOLINGS[named]
            if pool is None:
                return classification_vector(head, outputs, None)
            return pool(self.config, unscaled, seen)

        return self.forward_head(
            outputs,
            head_name=heads,
            cls_output=cls_vector,
            attention_mask=mask if mask is not None and mask.dim() == 2 else None,
            return_dict=return_dict,
            task_ids=tasks,
            **for_heads,
        )

    def _output_mask(self, mask: Tensor | None, length: int) -> Tensor | None:
        """The attention mask of the base model's output: of frames, where a sound has more values than those."""
        frames = getattr(self.base_model, "_get_feature_vector_attention_mask", None)
        if mask is None or mask.dim() != 2 or mask.size(1) == length or frames is None:
            return mask
        found: Tensor = frames(length, mask)
        return found

    def __setattr__(self, name: str, value: Any) -> None:
        if name in HEAD_MODULES and isinstance(value, nn.Module):
            raise HeadError(
                f"{type(self).__name__}.{name} would do nothing: the heads of this model are in `heads`. Replace the "
                "layer onto the vocabulary of the active head with set_output_embeddings(layer), or add a head with "
                "one of the add_..._head methods."
            )
        super().__setattr__(name, value)

    def _name_arguments(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
        """All arguments of a call by name; the base model's may be given by position."""
        named = dict(zip(self.base_arguments, args, strict=False))
        twice = sorted(set(named) & set(kwargs))
        if twice or len(args) > len(self.base_arguments):
            problem = f"{twice[0]!r} twice" if twice else f"{len(args)} arguments by position"
            raise UnknownArgument(
                f"{type(self).__name__} was given {problem}. Allowed by position: {', '.join(self.base_arguments)}."
            )
        return {**named, **kwargs}

    def _sort_arguments(self, inputs: Mapping[str, Any], heads: Heads) -> tuple[dict[str, Any], dict[str, Any]]:
        base = {*self.base_arguments, *RUNTIME, *TransformersKwargs.__optional_keys__} - {"num_items_in_batch"}
        if "past_key_values" in base:  # what multimodal models hand on to their text model, unnamed
            base.add("use_cache")
        for_base = {name: value for name, value in inputs.items() if name in base}
        for_heads = {name: value for name, value in inputs.items() if name not in base}
        for_heads.pop("token_type_ids", None)  # tokenizers give it, and a base model without it has no use for it
        refuse_adapter_names(for_heads)
        custom = any(self._get_head(name).head_type not in HEADS for name in head_names(heads))
        unknown = [name for name in for_heads if name not in HEAD_ARGUMENTS]
        if unknown and not custom:
            raise UnknownArgument(
                f"{type(self).__name__} does not take the argument {unknown[0]!r}. "
                f"{choices(unknown[0], [*self.base_arguments, 'head', *HEAD_ARGUMENTS, *RUNTIME])}"
            )
        return for_base, for_heads

    def _complete_decoder_inputs(
        self, inputs: dict[str, Any], labels: Tensor | Mapping[str, Tensor] | None, heads: Heads
    ) -> None:
        shift = type(self).shift
        if shift is None or inputs.get("decoder_input_ids") is not None:
            return
        if inputs.get("decoder_inputs_embeds") is not None:
            return
        token_heads = any(self._get_head(name).head_type == "seq2seq_lm" for name in head_names(heads))
        if isinstance(labels, Mapping) and token_heads:
            raise HeadError("Labels by head do not tell what the decoder reads. Give decoder_input_ids too.")
        source = labels if isinstance(labels, Tensor) and token_heads else inputs.get("input_ids")
        if source is not None:
            inputs["decoder_input_ids"] = shift(self.config, source)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: Any, *model_args: Any, **kwargs: Any) -> Any:
        """Loads a checkpoint, as in transformers.

        The head of a plain class (`BertForSequenceClassification`, ...) becomes a flexible head called "default".

        Args:
            pretrained_model_name_or_path: Folder or hub repository.
            model_args: As in transformers.
            kwargs: As in transformers.
        """
        path = pretrained_model_name_or_path
        if path is None:
            return super().from_pretrained(path, *model_args, **kwargs)
        config, kwargs = load_config(cls.config_class, path, kwargs)
        if (static := cls._static_head(config)) is None:
            return super().from_pretrained(path, *model_args, config=config, **kwargs)
        name = config.architectures[0]
        options = static_head_config(name, config.label2id, config.num_labels, config)
        if config.problem_type == MULTILABEL and options["head_type"] == "classification":
            options["head_type"] = "multilabel_classification"
        elif config.problem_type == MULTILABEL and options["head_type"] == "image_classification":
            options["multilabel"] = True
        heads = static_key_mapping(name, DEFAULT_HEAD, config)
        renames = heads | _class_mapping(name) | _base_mapping(static, cls.base_model_prefix)
        config.prediction_heads = {DEFAULT_HEAD: options}
        kwargs["key_mapping"] = {**(kwargs.get("key_mapping") or {}), **renames}
        loaded = super().from_pretrained(path, *model_args, config=config, **kwargs)
        finish_static(loaded[0] if isinstance(loaded, tuple) else loaded, static, renames)
        return loaded

    @classmethod
    def _static_head(cls, config: PreTrainedConfig) -> StaticHead | None:
        """The head of the plain class that wrote the checkpoint of a config; None if it has none, or none to take."""
        name = next(iter(config.architectures or ()), "")
        own = (cls.__name__, cls.base_model_class.__name__, "")
        if name in own or name.endswith("AdapterModel") or getattr(config, "prediction_heads", None):
            return None
        try:
            return find_static_head(name, config)
        except UnsupportedError as error:
            logger.warning(
                "The head of %s is left out. %s Open the checkpoint with transformers.%s and adapters.init to keep it, "
                "or add a head with one of the add_..._head methods.",
                name,
                error,
                name,
            )
            return None

    # What transformers asks of where a class is written: it is for the code of the base model

    @classmethod
    def is_custom_code(cls) -> bool:
        """Whether the model is none of transformers, so that its checkpoints are not renamed."""
        return bool(cls.base_model_class.is_custom_code())

    @classmethod
    def _can_set_attn_implementation(cls) -> bool:
        return bool(cls.base_model_class._can_set_attn_implementation())

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return bool(cls.base_model_class._can_set_experts_implementation())

    # What the HF Trainer asks of a model or its class

    @property
    def accepts_loss_kwargs(self) -> bool:
        """Whether the loss of the active head is that of a whole optimizer step if told its number of labels."""
        name = self._active_head
        if not isinstance(name, str):
            return False
        return "num_items_in_batch" in inspect.signature(type(self._get_head(name)).forward).parameters

    @property
    def loss_type(self) -> str:
        """By which the HF Trainer counts labels: with a causal head those that are left when they are shifted."""
        return "ForCausalLM" if self._shifts_labels() else ""

    @loss_type.setter
    def loss_type(self, value: str) -> None:
        """What transformers reads from the name of the class says nothing about its heads."""

    def _shifts_labels(self) -> bool:
        heads = head_names(self._used_heads()) if "heads" in self._modules else []
        return bool(heads) and all(self._get_head(name).config.get("shift_labels") for name in heads)

    def _get_name(self) -> str:
        """By which the HF Trainer tells whether to shift labels that it smooths: the name of a causal class."""
        if self._shifts_labels():
            return str(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(self.config.model_type, "GPT2LMHeadModel"))
        return type(self).__name__

    def __repr__(self) -> str:
        return type(self).__name__ + super().__repr__().removeprefix(self._get_name())


class EncoderDecoderHeadModel(HeadModel):
    """A `HeadModel` whose decoder has inputs of its own."""

    def prepare_decoder_input_ids_from_labels(self, labels: Tensor) -> Tensor:
        """Decoder inputs that predict the labels; data collators of transformers call this.

        Args:
            labels: Token ids, [B, S].
        """
        shift = type(self).shift
        assert shift is not None
        return shift(self.config, labels)


class UncachedGenerationMixin(GenerationMixin):
    """Generation with a base model that has no cache: every step reads the whole sequence."""

    def prepare_inputs_for_generation(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """What the next step reads."""
        return {"input_ids": input_ids, "attention_mask": kwargs.get("attention_mask")}


class OwnPositionsGenerationMixin(GenerationMixin):
    """Generation with a base model that says where tokens are: those of an image in time, rows and columns."""

    def _prepare_position_ids_for_generation(self, inputs_tensor: Any, model_kwargs: dict[str, Any]) -> Any:
        """Positions [4, B, S]: in the text, and in time, rows and columns."""
        text = super()._prepare_position_ids_for_generation(inputs_tensor, model_kwargs)  # type: ignore[no-untyped-call]
        base: Any = self.base_model  # type: ignore[attr-defined]
        ids = model_kwargs.get("input_ids", inputs_tensor)
        grids = any(model_kwargs.get(f"{what}_grid_thw") is not None for what in ("image", "video"))
        if ids.dim() != 2 or not grids:
            base.rope_deltas = text.new_zeros(text.size(0), 1)
            return text.expand(4, *text.shape)
        takes = inspect.signature(base.get_rope_index).parameters
        given = {name: value for name, value in model_kwargs.items() if name in takes and name != "input_ids"}
        seen, base.rope_deltas = base.get_rope_index(ids, **given)
        return torch.cat([text[None], seen])


def argument_names(base_model_class: type[PreTrainedModel]) -> tuple[str, ...]:
    """Names of the arguments of a base model's forward, in order."""
    variable = (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
    parameters = list(inspect.signature(base_model_class.forward).parameters.values())[1:]
    return tuple(parameter.name for parameter in parameters if parameter.kind not in variable)


def make_signature(base_model_class: type[PreTrainedModel]) -> inspect.Signature:
    """Signature of `forward`: the base model's arguments and ours, by which the HF Trainer chooses columns."""
    parameters = inspect.signature(base_model_class.forward).parameters
    known = ("self", *argument_names(base_model_class))
    keyword = inspect.Parameter.KEYWORD_ONLY
    extra = [inspect.Parameter(name, keyword, default=None) for name in SIGNATURE if name not in known]
    rest = inspect.Parameter("kwargs", inspect.Parameter.VAR_KEYWORD)
    return inspect.Signature([*(parameters[name] for name in known), *extra, rest])


def flatten_choices(inputs: dict[str, Any]) -> None:
    """Turns the alternatives of multiple choice, [B, choices, S], into rows."""
    ids, embeds = inputs.get("input_ids"), inputs.get("inputs_embeds")
    if embeds is not None and embeds.dim() == 4:
        inputs["inputs_embeds"] = embeds.flatten(0, 1)
    elif ids is None or ids.dim() != 3:
        return
    for name in CHOICES:
        value = inputs.get(name)
        if isinstance(value, Tensor) and value.dim() == 3:
            inputs[name] = value.flatten(0, 1)


def load_config(config_class: Any, path: Any, kwargs: Mapping[str, Any]) -> tuple[Any, dict[str, Any]]:
    """The config of a checkpoint as it is used here, and the arguments that are left for loading weights."""
    kwargs = dict(kwargs)
    hub = {name: kwargs[name] for name in HUB if name in kwargs}
    config = kwargs.pop("config", None)
    if not isinstance(config, PreTrainedConfig):
        weights = {name: kwargs.pop(name) for name in (*NOT_CONFIG, "key_mapping") if name in kwargs}
        source = path if config is None else config
        config, kwargs = config_class.from_pretrained(source, return_unused_kwargs=True, **kwargs)
        kwargs = {**kwargs, **weights, **hub}
    config = copy.deepcopy(config)
    if config.model_type == "mt5" and not hasattr(config, "scale_decoder_outputs"):
        raw, _ = PreTrainedConfig.get_config_dict(path, **hub)
        config.scale_decoder_outputs = _was_tied(raw)
    return config, kwargs


def _was_tied(raw: Mapping[str, Any]) -> bool:
    """What a stored config says about tied embeddings; transformers 5 writes true for every mT5."""
    major = str(raw.get("transformers_version") or "0").partition(".")[0]
    return raw.get("tie_word_embeddings") is True and major.isdigit() and int(major) < 5


def _class_mapping(class_name: str) -> dict[str, str]:
    """What transformers renames in checkpoints of a class alone, not in all of its type."""
    conversions = get_checkpoint_conversion_mapping(class_name) or ()
    renamings = [one for one in conversions if type(one) is WeightRenaming]
    return {one.source_patterns[0]: one.target_patterns[0] for one in renamings}


def _base_mapping(static: StaticHead, prefix: str) -> dict[str, str]:
    """What renames the base model's tensors, where a class has it under another attribute."""
    if len(static.base) != 1 or static.base == (prefix,):
        return {}
    return {rf"^{re.escape(static.base[0])}\.": f"{prefix}."}


@torch.no_grad()
def finish_static(model: Any, static: StaticHead, renames: Mapping[str, str]) -> None:
    """After a plain class's checkpoint was read: adjusts scale and biases; saving will keep the new names."""
    head = cast(PredictionHead, model.heads[DEFAULT_HEAD])
    layer = head[-1]
    assert isinstance(layer, nn.Linear)
    if static.factor != 1:
        layer.weight.mul_(static.factor)
    for name in static.zeros:
        head.get_parameter(name).zero_()
    conversions = getattr(model, "_weight_conversions", None)
    if conversions is not None:
        model._weight_conversions = [c for c in conversions if not set(c.source_patterns) & set(renames)]
