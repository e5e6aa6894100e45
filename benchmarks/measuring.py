"""How is something measured? CPU time of functions that run in turn on one thread, and the most bytes of tensors."""

from __future__ import annotations

import gc
import math
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

Function = Callable[[], Any]

WARM_UP = 2


@dataclass(frozen=True)
class Timer:
    """One side of a comparison.

    Args:
        stages: What is timed, stage by stage; times are cumulative.
        before: What is done before each round, not timed.
        calls: Calls per round; None for as many as fill `Timer.SLICE` seconds. Where one takes less than `Timer.SHORT`,
            it is called once more before, so that caches are as an earlier call of its own left them.
    """

    SLICE, SHORT = 0.005, 0.02

    stages: tuple[Function, ...]
    before: Function | None = None
    calls: int | None = None

    def run(self, calls: int, warm_up: bool = False) -> tuple[float, ...]:
        """CPU seconds of one call, up to the end of each stage."""
        if self.before is not None:
            self.before()
        if warm_up:
            for stage in self.stages:
                stage()
        totals = [0.0] * len(self.stages)
        for _ in range(calls):
            start = time.process_time()
            for i, stage in enumerate(self.stages):
                stage()
                totals[i] += time.process_time() - start
        return tuple(total / calls for total in totals)


def timer(function: Function, before: Function | None = None, calls: int | None = None) -> Timer:
    """A timer of one function."""
    return Timer((function,), before, calls)


@dataclass(frozen=True)
class Rounds:
    """How often a comparison is repeated: `least` times, or as often as fits into CPU `seconds`, up to `most`."""

    least: int
    seconds: float = 0.0
    most: int = 400


def interleave(timers: Mapping[str, Timer], rounds: Rounds) -> dict[str, list[tuple[float, ...]]]:
    """Run all timers in turn, every other round in reverse order.

    Returns:
        For each timer the CPU seconds of one call in each round.
    """
    calls, short, one_round = {}, {}, 0.0
    for name, item in timers.items():
        for _ in range(WARM_UP):
            seconds = item.run(1)[-1]
        calls[name] = item.calls or max(1, round(Timer.SLICE / max(seconds, 1e-6)))
        short[name] = seconds < Timer.SHORT
        one_round += (calls[name] + short[name]) * seconds
    count = max(rounds.least, min(rounds.most, int(rounds.seconds / one_round)))
    times: dict[str, list[tuple[float, ...]]] = {name: [] for name in timers}
    order = list(timers)
    gc.collect()
    gc.disable()
    try:
        for _ in range(count):
            for name in order:
                times[name].append(timers[name].run(calls[name], short[name]))
            order.reverse()
            gc.collect(0)
    finally:
        gc.enable()
    return times


def ratios(timers: Mapping[str, Timer], base: str, rounds: Rounds, stage: int = -1) -> dict[str, list[float]]:
    """Time of every timer over that of `base`, for each round."""
    times = interleave(timers, rounds)
    return {name: divided(times, name, base, stage) for name in timers if name != base}


def divided(times: Mapping[str, Sequence[tuple[float, ...]]], over: str, under: str, stage: int = -1) -> list[float]:
    """Round by round, the time of one timer over that of another."""
    return [a[stage] / b[stage] for a, b in zip(times[over], times[under])]


def milliseconds(function: Function, before: Function | None = None, repeats: int = 1) -> list[float]:
    """CPU milliseconds of each of some calls."""
    found = []
    for _ in range(repeats):
        found.append(1000 * timer(function, before).run(1)[-1])
    return found


def spread(values: Sequence[float]) -> tuple[float, float]:
    """Bounds of the median with about 95 % confidence, from the order of the values."""
    ordered, n = sorted(values), len(values)
    if n < 6:
        return ordered[0], ordered[-1]
    low = max(0, math.floor((n - 1.96 * math.sqrt(n)) / 2))
    return ordered[low], ordered[n - 1 - low]


def median(values: Sequence[float]) -> float:
    """The median."""
    return float(statistics.median(values))


def peak_bytes(function: Function) -> int:
    """The most memory that tensors made by `function` took at one time, as torch's CPU allocator reports it."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        function()
    results = profile.profiler.kineto_results
    events = [event for event in results.events() if event.name() == "[memory]"]
    total = peak = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        total += event.nbytes()
        peak = max(peak, total)
    return peak


def check_equal(what: str, found: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-4) -> None:
    """Raise RuntimeError unless both sides of a comparison compute the same."""
    if found.shape != expected.shape or not torch.allclose(found, expected, atol=tolerance, rtol=tolerance):
        far = (found - expected).abs().max().item() if found.shape == expected.shape else (found.shape, expected.shape)
        raise RuntimeError(f"{what}: the sides do not compute the same (off by {far}), so their times mean nothing.")
