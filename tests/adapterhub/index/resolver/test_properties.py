"""Whatever adapters there are, whatever is asked: the answer follows the rule, which is written here once more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapterhub.accounts import Principal
from adapterhub.errors import Conflict, NotFound
from adapterhub.index import resolver

from .conftest import Trial
from .rows import add

CALLER = Principal(id=1, name="me", role="read", namespaces={"me": "admin", "orga": "read"})
TASKS, SUBTASKS, ORGS = ("x", "y", "p"), ("p", "q", "x"), ("orga", "orgb")
MODELS, CONFIGS = ("m", "google-bert/m", "n"), ("seq_bn", "lora", "0123456789abcdef")


@dataclass(frozen=True)
class Adapter:
    org: str
    name: str
    task: str
    subtask: str
    model: str
    config: str
    state: str  # open | private | yanked | head_yanked
    preferred: bool
    day: int

    @property
    def id(self) -> str:
        return f"{self.org}/{self.name}"

    @property
    def place(self) -> tuple[str, str, str]:
        return self.model.removeprefix("google-bert/"), self.task, self.subtask


adapters = st.builds(
    Adapter,
    org=st.sampled_from(ORGS),
    name=st.sampled_from(["a1", "a2", "a3", "a4"]),
    task=st.sampled_from(TASKS),
    subtask=st.sampled_from(SUBTASKS),
    model=st.sampled_from(MODELS),
    config=st.sampled_from(CONFIGS),
    state=st.sampled_from(["open", "open", "open", "private", "yanked", "head_yanked"]),
    preferred=st.booleans(),
    day=st.integers(0, 3),
)
hubs = st.lists(adapters, max_size=7, unique_by=lambda adapter: adapter.id)
places = st.one_of(
    st.sampled_from(TASKS + SUBTASKS), st.builds("{}/{}".format, st.sampled_from(TASKS), st.sampled_from(SUBTASKS))
)
queries = st.tuples(
    places,
    st.one_of(st.none(), st.sampled_from([*ORGS, "orgc"])),
    st.one_of(st.none(), st.sampled_from(MODELS)),
    st.one_of(st.none(), st.sampled_from(CONFIGS)),
)


def allowed(hub: list[Adapter], query: tuple[str, str | None, str | None, str | None]) -> list[Adapter]:
    """The adapters that fit the name."""
    place, org, model, config = query

    def fits(adapter: Adapter) -> bool:
        return (
            (adapter.state == "open" or (adapter.state == "private" and adapter.org == "orga"))
            and org in (None, adapter.org)
            and (model is None or model.split("/")[-1] == adapter.place[0])
            and config in (None, adapter.config)
        )

    left = [adapter for adapter in hub if fits(adapter)]
    if "/" in place:
        return [adapter for adapter in left if f"{adapter.task}/{adapter.subtask}" == place]
    return [adapter for adapter in left if place in (adapter.task, adapter.subtask)]


async def fill(conn: Any, hub: list[Adapter]) -> dict[tuple[str, str, str], str]:
    """Puts adapters into the tables; returns which is preferred at each place."""
    preferred: dict[tuple[str, str, str], str] = {}
    for adapter in hub:
        is_id = len(adapter.config) == 16
        repo_id = await add(
            conn,
            adapter.id,
            private=adapter.state == "private",
            yanked="why" if adapter.state == "yanked" else None,
            head_yanked=adapter.state == "head_yanked",
            day=adapter.day,
            task=adapter.task,
            subtask=adapter.subtask,
            base_model=adapter.model,
            config_name=None if is_id else adapter.config,
            config_id=adapter.config if is_id else "f" * 16,
        )
        if adapter.preferred:
            await resolver.prefer(conn, repo_id)
            preferred[adapter.place] = adapter.id
    return preferred


@settings(
    max_examples=100,
    deadline=None,
    derandomize=True,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(hub=hubs, query=queries)
def test_answers_follow_the_rule(
    trial: Trial, hub: list[Adapter], query: tuple[str, str | None, str | None, str | None]
) -> None:
    place, org, model, config = query
    name = place if org is None else f"{place}@{org}"

    async def ask(conn: Any) -> Any:
        try:
            return await resolver.resolve(conn, CALLER, name, model=model, config=config)
        except (Conflict, NotFound) as error:
            return error

    async def work(conn: Any) -> Any:
        preferred = await fill(conn, hub)
        first, second = await ask(conn), await ask(conn)
        assert getattr(first, "details", first) == getattr(second, "details", second)
        return preferred, first

    preferred, answer = trial(work)
    left = {adapter.id: adapter for adapter in allowed(hub, query)}
    chosen = [id for id in left if preferred.get(left[id].place) == id]
    one_place = len({adapter.place for adapter in left.values()}) == 1
    one_org = len({adapter.org for adapter in left.values()}) == 1
    if not left:
        assert isinstance(answer, NotFound)
    elif len(left) > 1 and not (one_place and (chosen or one_org)):
        assert isinstance(answer, Conflict)
        assert {candidate["id"] for candidate in answer.details["candidates"]} == left.keys()
    else:
        assert answer.id in left
        assert {other["id"] for other in answer.others} == left.keys() - {answer.id}
        if len(left) > 1 and chosen:
            assert (answer.id, answer.reason) == (chosen[0], "preferred")
        elif len(left) > 1:
            assert answer.reason == "newest"
            assert left[answer.id].day == max(adapter.day for adapter in left.values())
