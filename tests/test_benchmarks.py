"""Do the benchmarks run as a full run starts them: each in a new process, which imports what it needs?"""

from __future__ import annotations

import pytest

from benchmarks.processes import in_own_process
from benchmarks.results import Run


@pytest.mark.slow
def test_an_experiment_runs_in_a_process_that_knows_nothing() -> None:
    results, error = in_own_process("files", "ours", Run(quick=False, peer=False))
    assert error is None
    assert results and all(result.experiment == "files" and result.value > 0 for result in results)


@pytest.mark.slow
def test_what_goes_wrong_there_is_told() -> None:
    results, error = in_own_process("no_such_experiment", "ours", Run(quick=False, peer=False))
    assert not results and error is not None and "no_such_experiment" in error
