"""Checks of the card."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ..content import cards
from ..content.cards import InvalidCard
from ..facts.taxonomy import Taxonomy, canonical_metric
from .finding import Finding, error, listed, nearest, quoted, warning
from .subject import CARD, CONFIG, CheckContext, Subject

__all__ = ["base_model", "license", "results", "task", "validate_card", "yaml"]

# Fields with a meaning here, and what they may hold.
_TEXT, _TEXTS, _LIST = "a text", "a text or a list of texts", "a list"
_FIELDS = {
    "base_model": _TEXTS,
    "base_model_relation": _TEXT,
    "datasets": _TEXTS,
    "dependencies": _LIST,
    "language": _TEXTS,
    "library_name": _TEXT,
    "license": _TEXTS,
    "license_name": _TEXT,
    "model-index": _LIST,
    "pipeline_tag": _TEXT,
    "results": _LIST,
    "tags": _TEXTS,
}
_RELATIONS = ("adapter", "finetune", "merge", "quantized")
# Ids of licences as the Hugging Face hub writes them.
_LICENSES = frozenset(
    name
    for line in (
        "afl-3.0 agpl-3.0 apache-2.0 apple-amlr apple-ascl artistic-2.0 bigcode-openrail-m bigscience-bloom-rail-1.0",
        "bigscience-openrail-m bsd bsd-2-clause bsd-3-clause bsd-3-clause-clear bsl-1.0 c-uda cc cc-by-2.0 cc-by-2.5",
        "cc-by-3.0 cc-by-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nc-nd-3.0 cc-by-nc-nd-4.0 cc-by-nc-sa-2.0",
        "cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cc-by-nd-4.0 cc-by-sa-3.0 cc-by-sa-4.0 cc0-1.0 cdla-permissive-1.0 cdla-",
        "permissive-2.0 cdla-sharing-1.0 creativeml-openrail-m deepfloyd-if-license ecl-2.0 epl-1.0 epl-2.0",
        "etalab-2.0 eupl-1.1 eupl-1.2 fair-noncommercial-research-license gemma gfdl gpl gpl-2.0 gpl-3.0 h-research",
        "intel-research isc lgpl lgpl-2.1 lgpl-3.0 lgpl-lr llama2 llama3 llama3.1 llama3.2 llama3.3 llama4 lppl-1.3c",
        "mit mpl-2.0 ms-pl ncsa odbl odc-by ofl-1.1 open-mdw openrail openrail++ osl-3.0 other pddl postgresql",
        "unknown unlicense wtfpl zlib",
    )
    for name in line.split()
)
_LICENSE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]*")
_PLACE = re.compile(r"[A-Za-z0-9][\w.+-]*(?:/[A-Za-z0-9][\w.+-]*)?")
_ADAPTERHUB = "adapterhub:"


def validate_card(content: str, context: CheckContext) -> tuple[list[str], list[str]]:
    """What is wrong with a card, before anything is uploaded.

    Args:
        content: the card: front matter and Markdown.

    Returns:
        Errors and warnings, each a text with what to do.
    """
    try:
        card, problem = cards.parse(content), ""
    except InvalidCard as invalid:
        card, problem = None, str(invalid)
    subject = Subject({CARD: len(content)}, card, problem, {}, (), context)
    found = [finding for check in (yaml, license, task, _relation, results) for finding in check(subject) or ()]
    errors = [f"{finding.message} {finding.fix}" for finding in found if finding.level == "error"]
    warnings = [f"{finding.message} {finding.fix}" for finding in found if finding.level == "warning"]
    return errors, warnings


def yaml(subject: Subject) -> list[Finding] | None:
    """The front matter can be read, and its fields hold what they should."""
    if subject.card_problem:
        return [error(subject.card_problem, "Mend the front matter: YAML between two lines '---'.")]
    if subject.card is None:
        missing = f"There is no {CARD}, so nobody learns what this adapter is for."
        return [warning(missing, f"Add a {CARD} with front matter.")] if subject.is_adapter else None
    return list(_field_findings(subject.card.data))


def license(subject: Subject) -> list[Finding] | None:
    """The card names a licence."""
    if subject.card is None or not (subject.is_adapter or "license" in subject.card.data):
        return None
    data, known = subject.card.data, listed(("apache-2.0", "mit", "cc-by-4.0"))
    given = cards.as_list(data.get("license"))
    if not given:
        missing = "The card has no 'license', so it is unclear who may use the adapter."
        return [warning(missing, f"Add 'license:' with an id such as {known}.")]
    found = [finding for value in given for finding in _license(value, known)]
    if given == ["other"] and not data.get("license_name"):
        found.append(
            warning("'license' is 'other', but 'license_name' is missing.", "Add 'license_name:' and 'license_link:'.")
        )
    return found


def task(subject: Subject) -> list[Finding] | None:
    """The tag `adapterhub:<task>/<subtask>` names a place of the taxonomy."""
    if subject.card is None:
        return None
    tags = cards.as_list(subject.card.data.get("tags"))
    places = [tag for tag in tags if tag.strip().lower().startswith(_ADAPTERHUB)]
    return [finding for tag in places for finding in _place(tag, subject.context)] if places else None


def base_model(subject: Subject) -> list[Finding] | None:
    """The card's base model is that of the config."""
    if not subject.is_adapter:
        return None
    data = subject.card.data if subject.card else {}
    named = cards.as_list(data.get("base_model"))
    found = _relation(subject) or []
    trained = {adapter.folder + CONFIG: name for adapter in subject.adapters if (name := _base_of(adapter.config))}
    if not named and not any(map(_is_id, trained.values())):
        paths = "".join(f" ({path} names {quoted(name)})" for path, name in list(trained.items())[:1])
        message = f"Neither 'base_model' of the card nor the config names a model that others could load{paths}."
        found.append(warning(message, "Add 'base_model:' with the model's id, such as google-bert/bert-base-cased."))
    for path, name in trained.items():
        if named and _is_id(name) and not any(_same_model(name, other) for other in named):
            message = f"'base_model' of the card is {listed(map(repr, named))}, but {path} says {name!r}."
            found.append(error(message, "Name the model that the adapter was trained on in both."))
    return found


def results(subject: Subject) -> list[Finding] | None:
    """The numbers in the card can be read, and are in their metric's range."""
    if subject.card is None or not subject.is_adapter:
        return None
    problems: list[str] = []
    numbers = cards.results(subject.card, problems)
    if not numbers and not problems:
        return None
    form = "Write each result as {dataset: glue/sst2, split: validation, metric: accuracy, value: 0.93}."
    found = [error(problem, form) for problem in problems[:20]]
    metrics = subject.context.metrics
    for result in numbers[:200]:
        name = canonical_metric(result.metric)
        if name not in metrics:
            hint = nearest(name, metrics)
            message = f"The metric {quoted(result.metric)} is not known, so it is not ranked.{hint}"
            found.append(warning(message, "Use the name of a known metric, or leave it as it is."))
        elif not _within(result.value, metrics[name]):
            message = (
                f"The value {result.value:g} of {quoted(result.metric)} is not in its range {_range(metrics[name])}."
            )
            found.append(error(message, "Correct the value; shares are written as 0.93 or 93."))
    return list(dict.fromkeys(found))


# ---- fields ---------------------------------------------------------------------------------------------------------


def _field_findings(data: Mapping[str, Any]) -> Iterator[Finding]:
    for name, kind in _FIELDS.items():
        value = data.get(name)
        if value is None:
            continue
        if name == "tags" and isinstance(value, list):
            yield from _tag_findings(value)
        elif not _is(value, kind):
            yield error(f"'{name}' must be {kind}, but is {quoted(value)}.", f"Write {kind} behind '{name}:'.")


def _tag_findings(tags: list[Any]) -> Iterator[Finding]:
    for i, tag in enumerate(tags):
        if isinstance(tag, dict):
            text = ":".join(str(part) for pair in list(tag.items())[:1] for part in pair)
            fix = f"Write it without a space behind the colon: '- {text[:80]}'."
            yield error(f"tags[{i}] must be a text, but is the mapping {quoted(tag)}.", fix)
        elif isinstance(tag, (list, bool)) or tag is None:
            yield error(f"tags[{i}] must be a text, but is {quoted(tag)}.", "Write it in quotes, or take it out.")


def _is(value: Any, kind: str) -> bool:
    if kind == _LIST:
        return isinstance(value, list)
    items = value if kind == _TEXTS and isinstance(value, list) else [value]
    return all(isinstance(item, (str, int, float)) and not isinstance(item, bool) for item in items)


def _license(value: str, known: str) -> Iterable[Finding]:
    if not _LICENSE_ID.fullmatch(value):
        fix = f"Write an id such as {known}; for any other licence 'license: other' and 'license_name:'."
        yield error(f"'license' is {quoted(value)}, which is not an id of a licence.{nearest(value, _LICENSES)}", fix)
    elif value.lower() not in _LICENSES:
        fix = "Write the id that the Hugging Face hub uses, or 'other' with 'license_name:'."
        yield warning(f"'license' is {quoted(value)}, which is not known.{nearest(value, _LICENSES)}", fix)


def _place(tag: str, context: CheckContext) -> Iterator[Finding]:
    place = tag.removeprefix(_ADAPTERHUB)
    if not tag.startswith(_ADAPTERHUB) or not _PLACE.fullmatch(place):
        fix = "Write it as in 'adapterhub:sentiment/imdb', in lower case and without spaces."
        yield error(f"The tag {quoted(tag)} is not of the form 'adapterhub:<task>/<subtask>'.", fix)
        return
    task, _, subtask = place.partition("/")
    fix = "Use a task that the hub knows, see /explore, or ask its administrators to add it."
    if known := Taxonomy.of([{"id": name} for name in context.tasks], []).lookalike(task):
        yield error(f"The tag {quoted(tag)} names the task {task!r}, which looks like {known!r} but is another.", fix)
    elif task not in context.tasks:
        places = (*context.tasks, *(f"{name}/{sub}" for name, subs in context.tasks.items() for sub in subs))
        hint = nearest(place, places) or nearest(task, context.tasks)
        yield warning(f"The tag {quoted(tag)} names the task {task!r}, which is not known.{hint}", fix)
    elif subtask and subtask not in context.tasks[task]:
        hint = nearest(subtask, context.tasks[task])
        yield warning(f"The tag {quoted(tag)} names {subtask!r}, which is not known below {task!r}.{hint}", fix)


def _relation(subject: Subject) -> list[Finding] | None:
    if subject.card is None or "base_model_relation" not in subject.card.data:
        return None
    relation = subject.card.data["base_model_relation"]
    if relation in _RELATIONS:
        return []
    allowed = listed(map(repr, _RELATIONS), len(_RELATIONS))
    message = f"'base_model_relation' is {quoted(relation)}; allowed are {allowed}."
    return [error(message, "For an adapter, write 'base_model_relation: adapter'.")]


# ---- base models and results ----------------------------------------------------------------------------------------


def _base_of(config: Mapping[str, Any] | None) -> str | None:
    found = (config or {}).get("base_model_name_or_path" if (config or {}).get("peft_type") else "model_name")
    return found if isinstance(found, str) and found else None


def _is_id(name: str) -> bool:
    """Whether a name is a model's id on a hub and not a path on its author's disk."""
    return re.fullmatch(r"[\w-][\w.-]*(?:/[\w.-]+)?", name) is not None


def _same_model(one: str, other: str) -> bool:
    """Whether two ids are of one model; `bert-base-uncased` was the name of `google-bert/bert-base-uncased`."""
    one, other = one.lower(), other.lower()
    if "/" in one and "/" in other:
        return one == other
    return one.rpartition("/")[2] == other.rpartition("/")[2]


def _within(value: float, limits: tuple[float | None, float | None]) -> bool:
    low, high = limits
    return (low is None or value >= low) and (high is None or value <= high)


def _range(limits: tuple[float | None, float | None]) -> str:
    low, high = limits
    return f"{'-∞' if low is None else f'{low:g}'} to {'∞' if high is None else f'{high:g}'}"
