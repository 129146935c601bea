"""Owns the suite for trial runners: what a driver relies on. Needs pytest and pytest-asyncio."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, Final

import pytest

from asynctune.checkpoints.staging import StagedCheckpoint
from asynctune.errors import ConfigError, TrialFailedError
from asynctune.protocols import CONTINUE, PAUSE, STOP, Decision, TrialReport, TrialRunner, TrialTask
from asynctune.testing import trainables
from asynctune.trainable import TrainableKind
from asynctune.trial import Checkpoint

__all__ = ["ReportLog", "TrialRunnerTests"]

MakeRunner = Callable[[int], TrialRunner]


class ReportLog:
    """A driver's end of `run_trial`: keeps what is reported, and answers as told.

    Args:
        answers: By the number of the report, from 1: a decision, or an exception to raise. Otherwise: go on.

    Attributes:
        reports: What came.
        numbers: Of each report with a checkpoint, what is in that checkpoint's file `number`; read before the answer.
    """

    def __init__(self, answers: Mapping[int, Decision | Exception] | None = None) -> None:
        self.reports: list[TrialReport] = []
        self.numbers: list[int] = []
        self._answers = dict(answers or {})

    async def __call__(self, report: TrialReport) -> Decision:
        """To be given to `run_trial`."""
        self.reports.append(report)
        answer = self._answers.get(len(self.reports), CONTINUE)
        if report.checkpoint is not None:
            self.numbers.append(await asyncio.to_thread(_number_in, report.checkpoint))
        if isinstance(answer, Exception):
            raise answer
        return answer

    def values(self, name: str) -> list[Any]:
        """One metric of all reports that have metrics."""
        return [report.metrics[name] for report in self.reports if report.metrics is not None]


class TrialRunnerTests:
    """Inherit from this class, and say how a runner is made; pytest runs its tests for it.

    Example::

        class TestMyRunner(TrialRunnerTests):
            kinds = {TrainableKind.FUNCTION}

            @pytest.fixture
            def make_runner(self):
                return lambda max_concurrent: MyRunner(max_concurrent)

    Attributes:
        kinds: Which trainables it runs; tests of others are left out, and it has to refuse them.
    """

    pytestmark: ClassVar = [pytest.mark.asyncio]
    kinds: ClassVar[frozenset[TrainableKind] | set[TrainableKind]] = frozenset(TrainableKind)

    @pytest.fixture
    def make_runner(self) -> MakeRunner:
        """Override: a function that makes a runner for so many trials at the same time."""
        raise NotImplementedError

    @pytest.fixture(params=[TrainableKind.FUNCTION, TrainableKind.COROUTINE], ids=lambda kind: kind.value)
    def trainable(self, request: pytest.FixtureRequest) -> Any:
        """One that does what its config says."""
        self._require(request.param)
        return _TRAINABLES[request.param]

    @pytest.fixture(autouse=True)
    def _directories(self, tmp_path: Path) -> None:
        for name in ("t1", "t2", "private"):
            Path(tmp_path, name).mkdir()
        Path(tmp_path, "private", "number").write_text("3", "ascii")

    # -- reports -------------------------------------------------------------------------------------------

    async def test_reports_come_in_order(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """Each is awaited before the trial goes on; what the trial returns is one too."""
        log = ReportLog()
        async with _started(make_runner(1), trainable) as runner:
            await runner.run_trial(_task(tmp_path, reports=3, returns={"number": 3}), log)
        assert log.values("number") == [0, 1, 2, 3]

    async def test_a_trial_knows_who_it_is(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """Id, name, directory, and no checkpoint where none was given."""
        log = ReportLog()
        async with _started(make_runner(1), trainable) as runner:
            await runner.run_trial(_task(tmp_path, reports=1), log)
        metrics = log.reports[0].metrics
        assert metrics is not None
        assert [metrics[name] for name in ("id", "name", "dir", "from")] == [
            "t1",
            "name-t1",
            str(tmp_path / "t1"),
            None,
        ]

    async def test_checkpoints_are_complete_when_they_are_reported(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """Also where the trial writes into one directory again and again."""
        log = ReportLog()
        async with _started(make_runner(1), trainable) as runner:
            await runner.run_trial(_task(tmp_path, reports=3, checkpoints=True), log)
        assert log.numbers == [0, 1, 2]

    async def test_a_trial_goes_on_from_the_checkpoint_of_its_task(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """`session.get_checkpoint()` has its files."""
        log = ReportLog()
        async with _started(make_runner(1), trainable) as runner:
            task = _task(tmp_path, _third(tmp_path), reports=1)
            await runner.run_trial(task, log)
        assert log.values("from") == [3]

    async def test_a_bad_report_is_raised_where_it_was_made(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """The `ConfigError` of a report is the trial's: it may catch it, and fails with it otherwise."""
        bad = {2: ConfigError("not like this")}
        async with _started(make_runner(1), trainable) as runner:
            with pytest.raises(TrialFailedError, match="not like this"):
                await runner.run_trial(_task(tmp_path, reports=3), ReportLog(bad))
            log = ReportLog(bad)
            await runner.run_trial(_task(tmp_path, reports=3, swallow="Exception"), log)
        assert log.values("number") == [0, 1, 2]

    # -- the end of a trial --------------------------------------------------------------------------------

    @pytest.mark.parametrize("decision", [STOP, PAUSE])
    async def test_a_trial_that_is_told_to_ends(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path, decision: Decision
    ) -> None:
        """It reports nothing more, fails not, and its `finally` runs before `run_trial` returns."""
        log = ReportLog({2: decision})
        async with _started(make_runner(1), trainable) as runner:
            await runner.run_trial(_task(tmp_path, reports=5), log)
            assert await asyncio.to_thread(Path(tmp_path, "t1", "ended").exists)
        assert log.values("number") == [0, 1]

    @pytest.mark.parametrize("swallowed", ["Exception", "BaseException"])
    async def test_a_trial_that_swallows_it_is_told_again(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path, swallowed: str
    ) -> None:
        """`except Exception` does not catch it; whatever does sees it again at each later report."""
        log = ReportLog({1: STOP})
        async with _started(make_runner(1), trainable) as runner:
            await runner.run_trial(_task(tmp_path, reports=5, swallow=swallowed), log)
        assert log.values("number") == [0]

    async def test_a_failure_has_the_exception_and_harms_nothing(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """Its text is for the user; the runner runs the next trial."""
        async with _started(make_runner(1), trainable) as runner:
            with pytest.raises(TrialFailedError, match="ValueError: no luck"):
                await runner.run_trial(_task(tmp_path, reports=1, fail="no luck"), ReportLog())
            assert await asyncio.to_thread(Path(tmp_path, "t1", "ended").exists)
            log = ReportLog()
            await runner.run_trial(_task(tmp_path, reports=1), log)
        assert log.values("number") == [0]

    async def test_cancelling_ends_the_trial(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """Nothing is reported any more, and the runner runs the next trial."""
        reported, calls = asyncio.Event(), 0

        async def report(_: TrialReport) -> Decision:
            nonlocal calls
            calls += 1
            reported.set()
            await asyncio.Event().wait()
            raise AssertionError

        async with _started(make_runner(1), trainable) as runner:
            running = asyncio.create_task(runner.run_trial(_task(tmp_path, reports=3), report))
            await reported.wait()
            running.cancel()
            with pytest.raises(asyncio.CancelledError):
                await running
            log = ReportLog()
            await runner.run_trial(_task(tmp_path, reports=1), log)
        assert (calls, log.values("number")) == (1, [0])

    async def test_cancelling_at_any_moment_harms_nothing(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """While it spawns, reports or ends: the runner is fit for the next trial."""
        async with _started(make_runner(1), trainable) as runner:
            for turns in range(12):
                running = asyncio.create_task(runner.run_trial(_task(tmp_path, reports=2), ReportLog()))
                for _ in range(turns):
                    await asyncio.sleep(0)
                running.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await running
            log = ReportLog()
            await runner.run_trial(_task(tmp_path, reports=1), log)
        assert log.values("number") == [0]

    # -- several trials ------------------------------------------------------------------------------------

    async def test_as_many_trials_as_it_says_run_at_the_same_time(
        self, make_runner: MakeRunner, trainable: Any, tmp_path: Path
    ) -> None:
        """None is answered before all have reported."""
        everybody = asyncio.Barrier(2)
        seen: set[str] = set()

        async def report(each: TrialReport) -> Decision:
            assert each.metrics is not None
            seen.add(each.metrics["id"])
            await everybody.wait()
            return CONTINUE

        async with _started(make_runner(2), trainable) as runner:
            assert runner.capacity == 2  # noqa: PLR2004 - as asked for
            async with asyncio.TaskGroup() as tasks:
                for trial_id in ("t1", "t2"):
                    task = _task(tmp_path, trial_id=trial_id, reports=2)
                    tasks.create_task(runner.run_trial(task, report))
        assert seen == {"t1", "t2"}

    async def test_closing_again_does_nothing(self, make_runner: MakeRunner, trainable: Any) -> None:
        """Also without a trial."""
        runner = make_runner(1)
        await runner.aclose()
        async with _started(runner, trainable):
            pass
        await runner.aclose()

    # -- what it runs --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("kind", TrainableKind, ids=lambda kind: kind.value)
    async def test_other_trainables_are_refused(self, make_runner: MakeRunner, kind: TrainableKind) -> None:
        """At the start, and not in each trial."""
        if kind in self.kinds:
            async with _started(make_runner(1), _TRAINABLES[kind]):
                return
        runner = make_runner(1)
        try:
            with pytest.raises(ConfigError):
                await runner.start(_TRAINABLES[kind], {})
        finally:
            await runner.aclose()

    # -- classes -------------------------------------------------------------------------------------------

    @pytest.mark.parametrize(
        ("options", "asks", "expected"),
        [
            ({}, [], []),
            ({"checkpoint_frequency": 2}, [], [2, 4]),
            ({"checkpoint_at_end": True}, [], [5]),
            ({"checkpoint_frequency": 5, "checkpoint_at_end": True}, [], [5]),
            ({}, [1, 3], [1, 3]),
        ],
        ids=["never", "frequency", "end", "both", "asked"],
    )
    async def test_when_a_class_saves(
        self,
        make_runner: MakeRunner,
        tmp_path: Path,
        options: dict[str, Any],
        asks: list[int],
        expected: list[int],
    ) -> None:
        """By iteration, at the end, and when a result says so; `should_checkpoint` itself is no metric."""
        self._require(TrainableKind.CLASS)
        log = ReportLog()
        async with _started(make_runner(1), trainables.Counter, options) as runner:
            await runner.run_trial(_task(tmp_path, until=5, asks=asks), log)
            assert await asyncio.to_thread(Path(tmp_path, "t1", "ended").exists), "cleanup was called"
        assert log.numbers == expected
        assert log.values("training_iteration") == [1, 2, 3, 4, 5]
        assert all("should_checkpoint" not in (each.metrics or {}) for each in log.reports)

    @pytest.mark.parametrize(
        ("decision", "options", "expected"),
        [(STOP, {}, []), (STOP, {"checkpoint_at_end": True}, [2]), (PAUSE, {}, [2])],
        ids=["stop", "stop-at-end", "pause"],
    )
    async def test_a_class_that_is_stopped_or_paused(
        self,
        make_runner: MakeRunner,
        tmp_path: Path,
        decision: Decision,
        options: dict[str, Any],
        expected: list[int],
    ) -> None:
        """A pause always saves; a stop does with `checkpoint_at_end`."""
        self._require(TrainableKind.CLASS)
        log = ReportLog({2: decision})
        async with _started(make_runner(1), trainables.Counter, options) as runner:
            await runner.run_trial(_task(tmp_path, until=5), log)
        assert (log.values("count"), log.numbers) == ([1, 2], expected)

    async def test_a_class_goes_on_from_its_checkpoint(self, make_runner: MakeRunner, tmp_path: Path) -> None:
        """With the iterations that it has behind it."""
        self._require(TrainableKind.CLASS)
        log = ReportLog()
        async with _started(make_runner(1), trainables.Counter) as runner:
            task = _task(tmp_path, _third(tmp_path), iteration=3, until=5)
            await runner.run_trial(task, log)
        assert (log.values("count"), log.values("training_iteration")) == ([4, 5], [4, 5])

    def _require(self, kind: TrainableKind) -> None:
        if kind not in self.kinds:
            pytest.skip(f"it runs no {kind.value}")


_TRAINABLES: Final[dict[TrainableKind, Any]] = {
    TrainableKind.FUNCTION: trainables.function,
    TrainableKind.COROUTINE: trainables.coroutine,
    TrainableKind.CLASS: trainables.Counter,
}


@contextlib.asynccontextmanager
async def _started(
    runner: TrialRunner, trainable: Any, options: Mapping[str, Any] | None = None
) -> AsyncIterator[TrialRunner]:
    try:
        await runner.start(trainable, options or {})
        yield runner
    finally:
        await runner.aclose()


def _task(
    tmp_path: Path,
    checkpoint: Checkpoint | None = None,
    *,
    trial_id: str = "t1",
    iteration: int = 0,
    **config: Any,
) -> TrialTask:
    return TrialTask(
        trial_id=trial_id,
        trial_name=f"name-{trial_id}",
        trial_dir=str(tmp_path / trial_id),
        config=config,
        iteration=iteration,
        checkpoint=checkpoint,
    )


def _third(tmp_path: Path) -> Checkpoint:
    return Checkpoint(path=tmp_path / "private")


def _number_in(checkpoint: Any) -> int:
    if isinstance(checkpoint, Mapping):
        checkpoint = StagedCheckpoint.from_value(checkpoint)
    return int(Path(checkpoint.path, "number").read_text("ascii"))
