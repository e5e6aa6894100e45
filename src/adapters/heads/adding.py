"""The verbs `add_..._head` of models with flexible heads: one per head type, with the options of its class."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from inspect import Parameter
from typing import Any

from adapters.heads.base import PredictionHead
from adapters.heads.classification import ClassificationHead, ImageClassificationHead, MultiLabelClassificationHead
from adapters.heads.ctc import CTCHead
from adapters.heads.dependency_parsing import BiaffineParsingHead
from adapters.heads.language_modeling import CausalLMHead, MaskedLMHead, Seq2SeqLMHead
from adapters.heads.multiple_choice import MultipleChoiceHead
from adapters.heads.question_answering import QuestionAnsweringHead
from adapters.heads.tagging import TaggingHead

OURS = {"overwrite_ok": False, "set_active": True, "multilabel": False}
"""Options of the verbs that head classes do not have, with their defaults."""
LAYERS = "layers activation_function"
TOKENS = {"layers": 2, "activation_function": "gelu", "layer_norm": True, "bias": True}


def adder(head_class: type[PredictionHead], order: str, does: str, **defaults: object) -> Callable[..., None]:
    """A verb that adds a head of a class.

    Args:
        head_class: The class. Its constructor says what the options are by default.
        order: Names of the verb's options, in the order in which they can be given.
        does: What the head does, for the documentation.
        defaults: Options that are otherwise by default than in the constructor, where stored heads leave them out.
    """
    known = inspect.signature(head_class).parameters
    place = Parameter.POSITIONAL_OR_KEYWORD
    parameters = [Parameter("self", place), Parameter("head_name", place, annotation="str")]
    for name in order.split():
        parameter = known.get(name) or Parameter(name, place, annotation="bool")
        default = defaults.get(name, OURS[name] if name not in known else parameter.default)
        parameters.append(parameter.replace(default=default))
    signature = inspect.Signature(parameters, return_annotation="None")

    def add(self: AddHeadMethods, *args: Any, **kwargs: Any) -> None:
        given = signature.bind(self, *args, **kwargs)
        given.apply_defaults()
        options = dict(list(given.arguments.items())[2:])
        overwrite_ok, set_active = options.pop("overwrite_ok"), options.pop("set_active")
        made = head_class
        if "multilabel" in options and "multilabel" not in known and options.pop("multilabel"):
            made = MultiLabelClassificationHead
        self._add_head(made.head_type, given.arguments["head_name"], overwrite_ok, set_active, options)

    add.__signature__ = signature  # type: ignore[attr-defined]
    add.__doc__ = f"Adds a head that {does}. Options as of `{head_class.__name__}`; all verbs share `AddHeadMethods`'."
    return add


class AddHeadMethods:
    """`add_..._head` methods. Their options and defaults are those of the head classes.

    Arguments that all methods share:
        head_name: Name of the new head.
        overwrite_ok: Replace a head of this name.
        set_active: Activate the head.
        id2label: Names of the labels; LABEL_0, LABEL_1, ... by default.
        layers: Linear layers, a count. `activation_function` stands between them.
        use_pooler: Classify the model's pooler output instead of the state of one position.
        dropout_prob: Before each layer; None takes the model's.
    All raise:
        UnsupportedError: the model's class does not support this type of head.
        HeadError: there is a head of this name and `overwrite_ok` is False, or an argument is not valid.
    """

    def _add_head(
        self, head_type: str, head_name: str, overwrite_ok: bool, set_active: bool, options: Mapping[str, Any]
    ) -> None:
        raise NotImplementedError

    add_classification_head = adder(
        ClassificationHead,
        f"num_labels {LAYERS} overwrite_ok multilabel id2label use_pooler bias dropout_prob set_active",
        "predicts a label, with `multilabel` any number of them, or (num_labels=1) a number",
    )
    add_image_classification_head = adder(
        ImageClassificationHead,
        f"num_labels {LAYERS} overwrite_ok multilabel id2label use_pooler bias dropout_prob set_active",
        "predicts a label, with `multilabel` any number of them, or (num_labels=1) a number per image",
    )
    add_multiple_choice_head = adder(
        MultipleChoiceHead,
        f"num_choices {LAYERS} overwrite_ok id2label use_pooler dropout_prob set_active",
        "chooses among alternatives, given as inputs [B, num_choices, S]",
    )
    add_tagging_head = adder(
        TaggingHead,
        f"num_labels {LAYERS} overwrite_ok id2label dropout_prob set_active",
        "predicts a label per position",
    )
    add_qa_head = adder(
        QuestionAnsweringHead,
        f"num_labels {LAYERS} overwrite_ok id2label dropout_prob set_active",
        "marks where an answer starts and ends",
    )
    add_dependency_parsing_head = adder(
        BiaffineParsingHead,
        "num_labels overwrite_ok id2label set_active",
        "predicts dependency trees; `num_labels` counts relations",
    )
    add_masked_lm_head = adder(
        MaskedLMHead,
        "activation_function layers layer_norm bias overwrite_ok set_active",
        "predicts masked tokens",
    )
    add_causal_lm_head = adder(
        CausalLMHead,
        "activation_function layers layer_norm bias overwrite_ok set_active",
        "predicts the next token",
        **TOKENS,
    )
    add_seq2seq_lm_head = adder(Seq2SeqLMHead, "layers overwrite_ok set_active", "predicts the decoder's tokens")
    add_ctc_head = adder(
        CTCHead,
        f"vocab_size {LAYERS} overwrite_ok blank reduction zero_infinity dropout_prob set_active",
        "predicts what is said in a sound, as tokens and blanks per frame",
    )


for _name, _verb in vars(AddHeadMethods).items():
    if inspect.isfunction(_verb) and _name != "_add_head":
        _verb.__name__, _verb.__qualname__ = _name, f"{AddHeadMethods.__name__}.{_name}"
