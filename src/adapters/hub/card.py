"""The page of an adapter on a hub: Markdown under a head of metadata, made of facts alone."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from huggingface_hub import EvalResult, ModelCardData

TAGS = ("adapter-transformers", "adapters")
LIBRARY = "adapter-transformers"
"""The name under which the public Hub knows this family of libraries."""

PIPELINES = {
    "classification": "text-classification",
    "multilabel_classification": "text-classification",
    "tagging": "token-classification",
    "dependency_parsing": "token-classification",
    "multiple_choice": "multiple-choice",
    "question_answering": "question-answering",
    "masked_lm": "fill-mask",
    "causal_lm": "text-generation",
    "seq2seq_lm": "text2text-generation",
    "ctc": "automatic-speech-recognition",
    "image_classification": "image-classification",
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMultipleChoice": "multiple-choice",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "LMHeadModel": "text-generation",
    "ForConditionalGeneration": "text2text-generation",
    "ForImageClassification": "image-classification",
}
"""`head_type` of a flexible head, or how the name of a plain class ends -> the Hub's name of what it does."""

Results = str | Sequence[Mapping[str, Any]]


@dataclass(frozen=True)
class CardInfo:
    """What a card tells.

    Args:
        repo_id: Repository that the card is for.
        name: The adapter's name, or for a set-up its composition.
        model_name: Id of the base model; None if it has none that others could load.
        model_type: Its `model_type`.
        model_class: Class the adapter was saved from.
        method: What the adapter is, in a word, such as "lora".
        config: Its config.
        head: What its head_config.json says, if it has a head.
        parameters: Trained numbers, a count.
        versions: Of the libraries it was saved with.
        endpoint: Address of the hub; None for the public one.
        is_setup: Whether it is a whole set-up of adapters.
        task: "task/subtask" of the hub's taxonomy.
        datasets: Ids of the data sets it was trained on.
        language: Language codes.
        license: Licence id, such as "apache-2.0".
        metrics: Ids of metrics.
        tags: More tags.
        description: A sentence or more about it.
        architecture_training: Text about training.
        results: Text, or mappings with "dataset", "metric", "value" and perhaps "name", "split", "config", "task".
        citation: BibTeX or text.
    """

    repo_id: str
    name: str
    model_name: str | None = None
    model_type: str | None = None
    model_class: str | None = None
    method: str | None = None
    config: Mapping[str, Any] = field(default_factory=dict)
    head: Mapping[str, Any] | None = None
    parameters: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    endpoint: str | None = None
    is_setup: bool = False
    task: str | None = None
    datasets: Sequence[str] = ()
    language: Sequence[str] = ()
    license: str | None = None
    metrics: Sequence[str] = ()
    tags: Sequence[str] = ()
    description: str | None = None
    architecture_training: str | None = None
    results: Results | None = None
    citation: str | None = None


def render(info: CardInfo) -> str:
    """The content of README.md."""
    kind = "Set-up" if info.is_setup else "Adapter"
    base = f" for {info.model_name}" if info.model_name else ""
    sections = {
        "Usage": _usage(info),
        "Architecture and training": _architecture(info),
        "Evaluation results": _results(info.results),
        "Citation": _citation(info.citation),
    }
    parts = [f"# {kind} `{_code(info.name)}`{base}", _summary(info), info.description]
    for title, text in sections.items():
        parts += [f"## {title}", text] if text else []
    return f"---\n{metadata(info)}\n---\n\n" + "\n\n".join(part.strip() for part in parts if part) + "\n"


def metadata(info: CardInfo) -> str:
    """The YAML at the head of the card."""
    task = [f"adapterhub:{info.task}"] if info.task else []
    model_type = [info.model_type] if info.model_type else []
    results = _evaluations(info)
    data = ModelCardData(
        base_model=info.model_name,
        base_model_relation="adapter" if info.model_name else None,
        datasets=list(info.datasets) or None,
        eval_results=results or None,
        language=list(info.language) or None,
        library_name=LIBRARY,
        license=info.license,
        metrics=list(info.metrics) or None,
        model_name=info.repo_id.rpartition("/")[2] if results else None,
        pipeline_tag=pipeline(info.head),
        tags=[*TAGS, *task, *model_type, *info.tags],
    )
    return data.to_yaml(line_break="\n").strip()


def pipeline(head: Mapping[str, Any] | None) -> str | None:
    """The Hub's name of what a head does; None if it has none for it."""
    if head is None:
        return None
    if config := head.get("config"):
        return PIPELINES.get(config.get("head_type"))
    name = str(head.get("model_class"))
    return next((tag for ending, tag in PIPELINES.items() if name.endswith(ending)), None)


def _summary(info: CardInfo) -> str:
    base = f"`{_code(info.model_name)}`" if info.model_name else f"{info.model_type or 'other'} models"
    if info.is_setup:
        what = "A set-up of adapters"
    elif info.method:
        what = f"{'An' if info.method[0] in 'aeiou' else 'A'} `{_code(info.method)}` adapter"
    else:
        what = "An adapter"
    data = f", trained on {', '.join(map(_dataset, info.datasets))}" if info.datasets else ""
    return f"{what} for {base}{data}{_head(info.head)}."


def _head(head: Mapping[str, Any] | None) -> str:
    if head is None:
        return ""
    config = head.get("config") or {}
    kind = str(config.get("head_type") or (pipeline(head) or "prediction").replace("-", " ")).replace("_", " ")
    labels = config.get("num_labels") or head.get("num_labels")
    return f", with a prediction head for {kind}" + (f" ({labels} labels)" if labels and labels > 1 else "")


def _dataset(name: str) -> str:
    return f"[{name}](https://huggingface.co/datasets/{name})"


def _usage(info: CardInfo) -> str:
    model = _quoted(info.model_name) if info.model_name else "..."
    choose = [f"adapters.hub.use({_quoted(info.endpoint)})", ""] if info.endpoint else []
    load = "load_adapter_setup" if info.is_setup else "load_adapter"
    lines = [
        *(["import adapters"] if info.endpoint else []),
        "from adapters import AutoAdapterModel",
        "",
        *choose,
        f"model = AutoAdapterModel.from_pretrained({model})",
        f"model.{load}({_quoted(info.repo_id)}, set_active=True)  # in adapters 1.x add use_safetensors=True",
    ]
    return _fenced("python", "\n".join(lines))


def _architecture(info: CardInfo) -> str:
    facts = {
        "base model": info.model_name,
        "saved from": info.model_class,
        "trained parameters": f"{info.parameters:,}" if info.parameters else None,
        "saved with": ", ".join(f"{name} {version}" for name, version in info.versions.items()),
    }
    tables = [_table(("", ""), [(key, value) for key, value in facts.items() if value])]
    if info.config:
        options = _table(("option", "value"), _flat(info.config))
        tables.append(f"<details><summary>All options</summary>\n\n{options}\n\n</details>")
    return "\n\n".join(part for part in (*tables, info.architecture_training) if part)


def _results(results: Results | None) -> str | None:
    if results is None or isinstance(results, str):
        return results
    columns = [
        key for key in ("name", "dataset", "config", "split", "metric", "value") if any(key in r for r in results)
    ]
    return _table(columns, [[result.get(column, "") for column in columns] for result in results])


def _evaluations(info: CardInfo) -> list[EvalResult]:
    if info.results is None or isinstance(info.results, str):
        return []
    return [
        EvalResult(
            task_type=result.get("task") or pipeline(info.head) or "other",
            dataset_type=result["dataset"],
            dataset_name=result.get("name") or result["dataset"],
            dataset_config=result.get("config"),
            dataset_split=result.get("split"),
            metric_type=result["metric"],
            metric_value=result["value"],
        )
        for result in info.results
    ]


def _citation(citation: str | None) -> str:
    if citation is None:
        return (
            "Adapters were trained with the methods described in [Adapters (2023)](https://arxiv.org/abs/2311.11077)."
        )
    return _fenced("bibtex", citation.strip()) if citation.lstrip().startswith("@") else citation


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """The options of a config; those of a union's members under `<number>.<option>`."""
    rows: list[tuple[str, Any]] = []
    for key, value in config.items():
        if key == "configs" and isinstance(value, Sequence):
            for index, member in enumerate(value):
                rows += _flat(member, f"{prefix}{index}.")
        elif value is not None:
            rows.append((f"{prefix}{key}", f"`{_code(str(value))}`"))
    return rows


def _table(head: Sequence[str], rows: Iterable[Sequence[Any]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)


def _cell(value: Any) -> str:
    return " ".join(str(value).split()).replace("|", "\\|")


def _code(text: str | None) -> str:
    return str(text).replace("`", "'")


def _quoted(text: str) -> str:
    """`text` as a literal of Python."""
    return json.dumps(text, ensure_ascii=False)


def _fenced(language: str, text: str) -> str:
    fence = "`" * 3
    while fence in text:
        fence += "`"
    return f"{fence}{language}\n{text}\n{fence}"
