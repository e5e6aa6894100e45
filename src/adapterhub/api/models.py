"""What goes in and out of the API."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, PlainSerializer, StringConstraints

from ..http import iso
from .shared import Body, FullName, Problem, Text

__all__ = [
    "Adapter",
    "Ambiguous",
    "Board",
    "Check",
    "CheckReport",
    "CheckRequest",
    "Collection",
    "Compatible",
    "Detail",
    "Event",
    "FoundFile",
    "Listed",
    "Member",
    "NewCollection",
    "NewOrganisation",
    "NewToken",
    "Organisation",
    "Page",
    "Preferred",
    "Quota",
    "Resolved",
    "Role",
    "Snippet",
    "Stacked",
    "Token",
    "TokenSecret",
    "TypeOfAdapter",
    "Unknown",
    "Usage",
    "Yank",
]

Moment = Annotated[datetime, PlainSerializer(iso, return_type=str)]
Id = Annotated[str, Field(validation_alias="full_name", description="The repository: `org/name`.")]
Reason = Annotated[str, StringConstraints(min_length=3, max_length=500, pattern=r"^[^\x00]*$")]


class Answer(BaseModel):
    """An answer."""

    model_config = ConfigDict(from_attributes=True, populate_by_name=True)


# ---- places ---------------------------------------------------------------------------------------------------------


class Subtask(Answer):
    """A data set of a task, or a domain of a language."""

    id: str
    displayname: str
    count: int = Field(description="Public adapters that stand here.")
    metric: str | None = None
    higher_is_better: bool | None = None
    datasets_id: str | None = Field(None, description="The data set's id on the Hugging Face hub.")


class Task(Answer):
    """A task or a language."""

    id: str
    displayname: str
    description: str
    count: int
    subtasks: list[Subtask]


class TypeOfAdapter(Answer):
    """One of the two trees: `text_task` holds tasks, `text_lang` languages."""

    type: str
    count: int
    tasks: list[Task]


class BoardLine(Answer):
    """An adapter on a leaderboard."""

    rank: int = Field(description="1 for the best; equal values share a rank.")
    id: Id
    value: float = Field(description="What is compared: percentages as fractions.")
    reported: float = Field(description="The number as the card has it.")
    split: str | None
    adapter: dict[str, Any] = Field(description="Base model, method, sizes, parameters and bytes.")


class Board(Answer):
    """Adapters of a data set, the best first."""

    task: str
    subtask: str
    metric: str | None
    higher_is_better: bool
    metrics: dict[str, int] = Field(description="Metrics that cards report here, each with the number of adapters.")
    lines: list[BoardLine]
    missing: list[str] = Field(description="Adapters of this place that do not report the metric: the most used ones.")
    unranked: int = Field(description="How many adapters of this place do not report the metric.")


class Preferred(Body):
    """Makes an adapter the default of the task, subtask and base model that it belongs to."""

    id: FullName


# ---- adapters -------------------------------------------------------------------------------------------------------


class Adapter(Answer):
    """What the hub knows of an adapter; all of it is read from its files."""

    id: Id
    revision: str = Field(validation_alias="oid", description="The commit it was read from.")
    private: bool
    type: str | None
    task: str | None
    subtask: str | None
    library: str = Field(description="`adapters`, `peft` or `other`.")
    method: str | None
    config_name: str | None
    config_id: str | None
    base_model: str | None
    model_type: str | None
    model_class: str | None
    hidden_size: int | None
    layers: int | None
    reduction_factor: float | None
    rank: int | None
    non_linearity: str | None
    head_type: str | None
    parameters: int | None
    bytes: int
    license: str | None
    languages: list[str]
    datasets: list[str]
    tags: list[str]
    title: str
    summary: str
    errors: int = Field(description="How many checks fail.")
    legacy_id: str | None = Field(description="Its name on the old hub: `@org/file`.")
    downloads: int = Field(description="In the last 30 days.")
    likes: int
    created: Moment
    updated: Moment


class Found(Adapter):
    """An adapter of a list."""

    reason: str = Field(description="Why it fits the words, such as `matches the data set SST-2`; empty without words.")
    score: float | None = Field(None, description="For `sort=score`: what its card reports, percentages as fractions.")


class Page(Answer):
    """A page of a list of adapters."""

    adapters: list[Found]
    total: int = Field(description="How many there are on all pages.")
    facets: dict[str, dict[str, int]] = Field(description="Filter to value to number, as if the filter were not set.")
    cursor: str | None = Field(description="For the next page; null on the last one.")
    corrected: str | None = Field(description="The words looked for instead, where no adapter fits those of `q`.")
    near: list[str] = Field(description="What else to look for, where nothing was found.")


class Stacked(Answer):
    """Adapters to stack, those below first."""

    below: list[Found] = Field(description="For languages, the most used first.")
    above: list[Found] = Field(
        description="For tasks: the best of the data set, if one was asked for, else the most used first."
    )


class Listed(Answer):
    """A collection of a list."""

    namespace: str
    name: str
    title: str
    note: str


class Collection(Listed):
    """A collection."""

    setup: str = Field(description="How its adapters are used together; empty where each is used by itself.")
    adapters: list[Found] = Field(description="Those that the caller may see, in the collection's order.")
    code: str = Field(description="Python that loads them, and activates the set-up.")


class NewCollection(Body):
    """All of a collection; who sees it sees title and note."""

    title: Text = ""
    note: Annotated[str, StringConstraints(max_length=5000, pattern=r"^[^\x00]*$")] = ""
    setup: Literal["", "Stack", "Parallel", "Average"] = ""
    items: list[FullName] = Field(min_length=1, max_length=50, description="Adapters, in the order of their use.")


class Evaluation(Answer):
    """A number that a card reports."""

    task: str | None
    subtask: str | None
    dataset: str | None
    split: str | None
    metric: str
    value: float


class Dependency(Answer):
    """An adapter that another one is trained upon."""

    target: str
    note: str


class Check(Answer):
    """What one check says."""

    id: str
    level: str = Field(description="`ok`, `warning` or `error`.")
    message: str
    fix: str | None = None
    link: str | None = None


class Detail(Adapter):
    """All that the hub knows of an adapter."""

    config: dict[str, Any] | None
    card: dict[str, Any] = Field(description="The front matter of its card.")
    checks: list[Check]
    evaluations: list[Evaluation]
    dependencies: list[Dependency]
    dependents: list[str] = Field(description="Adapters that are trained upon this one.")
    yanked: str | None = Field(description="Why it, or this revision of it, should not be used any more.")


class Candidate(Answer):
    """An adapter that a name may mean."""

    id: str
    org: str
    task: str | None
    subtask: str | None
    base_model: str | None
    method: str | None
    config: str | None = Field(description="Its named config, else the id of its config.")
    config_id: str | None
    legacy_id: str | None
    revision: str


class Resolved(Candidate):
    """The adapter that a name means."""

    reason: str = Field(description="`id`, `only`, `preferred`, `score` or `newest`.")
    others: list[Candidate] = Field(description="Adapters that fit as well, but come second.")


class Near(BaseModel):
    """Something of a similar name."""

    model_config = ConfigDict(extra="allow")

    name: str


class Unknown(Problem):
    """No adapter fits."""

    near: list[Near] = Field(default_factory=list)


class Ambiguous(Problem):
    """Several adapters fit, and nothing says which of them is meant."""

    candidates: list[Candidate] = Field(default_factory=list)


class Fit(Answer):
    """An adapter that fits a model."""

    id: Id
    base_model: str | None
    model_type: str | None
    hidden_size: int | None
    layers: int | None
    task: str | None
    subtask: str | None
    method: str | None
    config_name: str | None
    parameters: int | None
    downloads: int


class Shape(Answer):
    """What must be equal for the tensors of an adapter to fit."""

    model_type: str | None
    hidden_size: int | None
    layers: int | None


class Compatible(Answer):
    """Adapters that fit a model."""

    shape: Shape
    same: list[Fit] = Field(description="Made for this model.")
    fits: list[Fit] = Field(description="Made for another model of this shape: they load, but may not do well.")


class FoundFile(Answer):
    """A file with the bytes that were asked for."""

    id: Id
    revision: str = Field(description="A commit that has the file.")
    path: str
    size: int


class Snippet(Answer):
    """Code that loads or fetches an adapter."""

    id: str = Field(description="The library or program it is for.")
    label: str
    language: str = Field(description="`python` or `bash`.")
    code: str


class Yank(Body):
    """Takes a repository, or one of its revisions, out of lists and names; its commits can still be downloaded."""

    id: FullName
    revision: Text | None = Field(None, description="Branch, tag or commit; null for the whole repository.")
    reason: Reason = Field(description="Shown to everyone who comes across it.")


# ---- checks ---------------------------------------------------------------------------------------------------------


class CheckReport(Answer):
    """What the checks say of some files."""

    revision: str | None = Field(description="The commit; null for files that are not in the hub.")
    errors: int
    warnings: int
    checks: list[Check]


class DryFile(Body):
    """A file that is not in the hub yet."""

    path: Annotated[str, StringConstraints(min_length=1, max_length=512)]
    size: Annotated[int, Field(ge=0, lt=2**53)]
    content: str | None = Field(None, max_length=2**21, description="The text of a card or a config.")
    header: str | None = Field(None, max_length=2**23, description="The JSON at the beginning of a safetensors file.")


class CheckRequest(Body):
    """All files of a repository as it is to become."""

    repo: Text | None = Field(None, description="Its name, if it has one.")
    files: list[DryFile] = Field(max_length=1000)


# ---- accounts -------------------------------------------------------------------------------------------------------

RoleName = Literal["read", "write", "admin"]


class Member(Answer):
    """A user of an organisation."""

    name: str
    role: str


class Organisation(Answer):
    """An organisation; only its members see who belongs to it."""

    name: str
    fullname: str
    about: str
    members: list[Member] = Field(default_factory=list)


class NewOrganisation(Body):
    """A new organisation. Who makes it is its first admin."""

    name: Text
    fullname: Text = ""
    about: Annotated[str, StringConstraints(max_length=2000, pattern=r"^[^\x00]*$")] = ""


class Role(Body):
    """What a member may do: read private repositories, write, or manage members too."""

    role: RoleName


class NewToken(Body):
    """A new token."""

    name: Text
    role: Literal["read", "write"] = "read"
    scope: list[Text] = Field(
        default_factory=list, max_length=50, description="`org` and `org/name` it is limited to; empty for all."
    )
    days: Annotated[int, Field(ge=1, le=3650)] | None = Field(None, description="It ends then; null for never.")


class Token(Answer):
    """A token, without its secret."""

    id: int
    name: str
    hint: str = Field(description="How it begins.")
    role: str
    scope: list[str]
    created: Moment
    expires: Moment | None
    last_used: Moment | None


class TokenSecret(Answer):
    """A new token. It is shown this once."""

    token: str


class Quota(Body):
    """How many bytes a namespace may hold."""

    quota: Annotated[int, Field(ge=0, lt=2**53)] | None = Field(description="Null for the hub's default.")


class Usage(Answer):
    """How many bytes a namespace holds, and may hold."""

    namespace: str
    bytes: int
    quota: int


class Event(Answer):
    """A line of the audit log."""

    id: int
    at: Moment
    actor: str
    action: str
    target: str
    detail: dict[str, Any]
