"""From files to a record: what an adapter is, read from its configs, its tensors and its card, never typed in."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from ..content import cards
from ..content.cards import Card, InvalidCard
from ..facts import configs, peft
from ..facts.taxonomy import Taxonomy
from ..repos.files import Files, Manifest
from .record import Evaluation, Record

__all__ = ["ADAPTER_WEIGHTS", "derive", "read_card", "read_json"]

_CARD, _CONFIG, _HEAD, _MODEL = "README.md", "adapter_config.json", "head_config.json", "config.json"
ADAPTER_WEIGHTS = ("adapter.safetensors", "adapter_model.safetensors")

# Head of a flexible model -> pipeline tag of the Hugging Face hub.
PIPELINES: Mapping[str, str] = {
    "classification": "text-classification",
    "multilabel_classification": "text-classification",
    "tagging": "token-classification",
    "multiple_choice": "multiple-choice",
    "question_answering": "question-answering",
    "dependency_parsing": "token-classification",
    "masked_lm": "fill-mask",
    "causal_lm": "text-generation",
    "seq2seq_lm": "text2text-generation",
    "ctc": "automatic-speech-recognition",
    "image_classification": "image-classification",
}
_PEFT_TASKS = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "CAUSAL_LM": "text-generation",
    "SEQ_2_SEQ_LM": "text2text-generation",
    "QUESTION_ANS": "question-answering",
    "FEATURE_EXTRACTION": "feature-extraction",
}


async def derive(files: Files, taxonomy: Taxonomy | None = None) -> Record:
    """The record of a repository at one commit.

    Args:
        taxonomy: tasks and data sets that are known; by default those that come with the hub.
    """
    taxonomy = taxonomy or Taxonomy.packaged()
    card = await read_card(files)
    config, model, head = [await read_json(files, path) for path in (_CONFIG, _MODEL, _HEAD)]
    record = Record(card=card.data, title=cards.title(card.body)[:200], summary=cards.summary(card.body))
    record.text = cards.words(card.body)
    record.license, record.languages = cards.license(card), cards.languages(card)
    record.datasets = cards.datasets(card)
    record.base_model = next(iter(cards.base_models(card)), None)
    record.legacy_id = next(iter(cards.as_list(card.data.get("legacy_id"))), None)
    _read_config(record, config)
    _read_head(record, head)
    await _read_weights(record, files)
    _read_model(record, card, config, model)
    _place(record, card, taxonomy)
    record.dependencies = _dependencies(card)
    record.tags = _tags(record, card, files.manifest)
    return record


async def read_card(files: Files) -> Card:
    """The card, or an empty one where it is absent or cannot be read: the checks tell of that."""
    if _CARD not in files.manifest:
        return Card()
    try:
        return cards.parse((await files.read(_CARD)).decode("utf-8", "replace"))
    except InvalidCard:
        return Card()


async def read_json(files: Files, path: str) -> dict[str, Any]:
    """The object in a JSON file; empty where there is none, or none that can be read."""
    if path not in files.manifest:
        return {}
    try:
        value = json.loads(await files.read(path))
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


# ---- configs and tensors --------------------------------------------------------------------------------------------


def _read_config(record: Record, config: Mapping[str, Any]) -> None:
    if config.get("peft_type"):
        record.library, record.method = "peft", peft.method(config)
        record.config = dict(config)
        record.base_model = _text(config.get("base_model_name_or_path")) or record.base_model
        record.rank = _whole(config.get("r"))
    elif isinstance(config.get("config"), dict):
        record.library, record.config = "adapters", config["config"]
        record.method = configs.method(record.config) or _text(record.config.get("architecture"))
        record.config_name, record.config_id = configs.config_name(record.config), configs.config_id(record.config)
        record.base_model = _text(config.get("model_name")) or record.base_model
        record.model_type, record.model_class = _text(config.get("model_type")), _text(config.get("model_class"))
        record.hidden_size = _whole(config.get("hidden_size"))
        parts = configs.members(record.config)
        record.reduction_factor = _first(parts, "reduction_factor", float)
        record.rank = _first([part for part in parts if not configs.scales(part)], "r", int)
        record.non_linearity = next((_text(part["non_linearity"]) for part in parts if part.get("non_linearity")), None)


def _first(parts: list[Mapping[str, Any]], key: str, kind: type) -> Any:
    """The first number of that name; a mapping per layer counts with its default."""
    for part in parts:
        value = part.get(key)
        if isinstance(value, dict):
            value = value.get("default")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            return kind(value)
    return None


def _read_head(record: Record, head: Mapping[str, Any]) -> None:
    inner = head.get("config")
    if isinstance(inner, dict):
        record.head_type = _text(inner.get("head_type"))
    elif head:
        # A model class with a fixed head: its name tells what the head is for.
        record.head_type = _of_class(_text(head.get("model_class")) or "")
    elif record.card.get("prediction_head") is True:
        # Taken over from the old hub, without the head's config.
        record.head_type = _of_class(record.model_class or "") or "unknown"
    record.pipeline_tag = PIPELINES.get(record.head_type or "")


def _of_class(name: str) -> str | None:
    kinds = {
        "ForSequenceClassification": "classification",
        "ForTokenClassification": "tagging",
        "ForMultipleChoice": "multiple_choice",
        "ForQuestionAnswering": "question_answering",
        "ForMaskedLM": "masked_lm",
        "ForCausalLM": "causal_lm",
        "LMHeadModel": "causal_lm",
        "ForConditionalGeneration": "seq2seq_lm",
        "ForImageClassification": "image_classification",
    }
    return next((kind for ending, kind in kinds.items() if name.endswith(ending)), None)


async def _read_weights(record: Record, files: Files) -> None:
    if record.library == "other":
        return
    record.parameters = None
    for path in ADAPTER_WEIGHTS:
        header = await files.header(path)
        if header is None:
            continue
        record.bytes = files.manifest[path].size
        config = record.config or {}
        record.parameters = sum(_elements(shape) for name, (_, shape) in header.items() if configs.trains(config, name))
        layers = {int(found[1]) for name in header if (found := _LAYER.search(name))}
        record.layers = max(layers) + 1 if layers else None
        if record.library == "peft":
            wide = [shape for name, (_, shape) in header.items() if ".lora_A." in name and len(shape) == 2]
            record.hidden_size = record.hidden_size or (min(shape[1] for shape in wide) if wide else None)
        return


_LAYER = re.compile(r"\.(?:layers?|h|block|blocks)\.(\d+)\.")


def _elements(shape: list[int]) -> int:
    count = 1
    for size in shape:
        count *= size
    return count


def _read_model(record: Record, card: Card, config: Mapping[str, Any], model: Mapping[str, Any]) -> None:
    """The parts of the protocol's model object."""
    shown: dict[str, Any] = {key: model[key] for key in ("architectures", "model_type") if key in model}
    if record.library == "adapters":
        facts = {key: config.get(key) for key in ("model_name", "model_class", "model_type")}
        shown |= {"adapter_transformers": facts, "adapters": facts}
    elif record.library == "peft":
        shown["peft"] = {key: config.get(key) for key in ("base_model_name_or_path", "task_type")}
        record.pipeline_tag = _PEFT_TASKS.get(str(config.get("task_type")))
    record.model_config = shown
    record.model_type = record.model_type or _text(model.get("model_type"))
    record.pipeline_tag = next(iter(cards.as_list(card.data.get("pipeline_tag"))), None) or record.pipeline_tag
    known = {"adapters": "adapter-transformers", "peft": "peft"}.get(record.library)
    given = next(iter(cards.as_list(card.data.get("library_name"))), None)
    record.library_name = given or known or ("transformers" if model.get("architectures") else None)


# ---- the card -------------------------------------------------------------------------------------------------------


def _place(record: Record, card: Card, taxonomy: Taxonomy) -> None:
    """Where it stands among tasks and languages: told by its tag, else by its data sets or its language."""
    task, subtask = cards.adapterhub_place(card)
    if task is None or taxonomy.lookalike(task):
        task, subtask = next(filter(None, map(taxonomy.place_of_dataset, record.datasets)), (None, None))
    record.task, record.subtask = task, subtask
    record.type = taxonomy.type_of(task, subtask) if task else None
    for result in cards.results(card):
        place = taxonomy.place_of_dataset(result.dataset) if result.dataset else None
        at = place or (record.task, record.subtask)
        metric = taxonomy.metric(result.metric)
        record.evaluations.append(Evaluation(*at, result.dataset, result.split, metric, result.value))


def _dependencies(card: Card) -> dict[str, str]:
    """Adapters that belong below this one, such as a language adapter: name to note."""
    found = {}
    items = card.data.get("dependencies")
    for item in items if isinstance(items, list) else [items]:
        if isinstance(item, str) and item:
            found[item] = ""
        elif isinstance(item, dict) and isinstance(item.get("key"), str):
            found[item["key"]] = str(item.get("description") or "")[:300]
    return found


def _tags(record: Record, card: Card, manifest: Manifest) -> list[str]:
    tags = cards.as_list(card.data.get("tags"))
    tags += [name for name in (record.library_name, record.pipeline_tag) if name]
    if record.library == "adapters":
        # Clients of the old library ask for one or the other.
        tags += ["adapter-transformers", "adapters", *([record.model_type] if record.model_type else [])]
    tags += record.languages
    tags += [f"dataset:{name}" for name in record.datasets]
    tags += [f"license:{name}" for name in cards.as_list(card.data.get("license"))]
    relation = cards.relation(card) if record.library != "other" or "base_model_relation" in card.data else None
    for name in dict.fromkeys([*cards.base_models(card), *([record.base_model] if record.base_model else [])]):
        tags += [f"base_model:{name}", *([f"base_model:{relation}:{name}"] if relation else [])]
    if record.task:
        place = f"{record.task}/{record.subtask}" if record.subtask else record.task
        tags.append(f"adapterhub:{place}")
    if any(path.endswith(".safetensors") for path in manifest):
        tags.append("safetensors")
    return [tag[:200] for tag in dict.fromkeys(tags)]


def _text(value: Any) -> str | None:
    return value[:200] if isinstance(value, str) and value else None


def _whole(value: Any) -> int | None:
    return value if isinstance(value, int) and not isinstance(value, bool) and 0 < value < 2**31 else None
