"""What a Tuner tells while it runs, and at the end."""

from __future__ import annotations

import io
import itertools
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune import BasicSearcher, RunConfig, TuneConfig, Tuner
from asynctune.tuning.progress import Progress
from tests.tuning.trials import Trials, trial


class Clock:
    """Time that passes when it is told to."""

    now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    made = Clock()
    monkeypatch.setattr(time, "monotonic", made)
    return made


class Told:
    """A Progress that writes lines to memory."""

    def __init__(self, **settings):
        self.stream = io.StringIO()
        self.trials = Trials()
        settings = {"metric": "loss", "mode": "min", **settings}
        self.progress = Progress("exp", look=self.trials, stream=self.stream, **settings)
        self.progress.start()

    def put(self, *args, **kwargs):
        self.trials.put(self.progress, *args, **kwargs)

    def stop(self):
        """Every line that was told."""
        self.progress.stop()
        self.progress._screen.wait()
        return self.stream.getvalue().splitlines()

    async def aclose(self):
        """The same on a loop."""
        await self.progress.aclose()
        return self.stream.getvalue().splitlines()


def row(iteration, **metrics):
    return {"training_iteration": iteration, **metrics}


def test_the_end_is_summed_up(clock):
    told = Told(location="/data/exp")
    told.put("a", "TERMINATED", row(3, loss=0.5), config={"lr": 1})
    told.put("b", "TERMINATED", row(3, loss=0.25), config={"lr": 2, "note": "[bold]x"})
    clock.now += 4000
    assert told.stop() == [
        "exp after 1 h 06 min: 2 terminated",
        "best loss 0.25, trial b: lr=2, note=[bold]x",
        "results: /data/exp",
    ]
    assert told.stop() == told.stop(), "again does nothing"


async def test_how_far_the_copy_is_is_told_now_and_then_at_the_end_and_after_the_close(clock):
    told = Told(copy=lambda moment: f"copy: {moment}")
    told.put("a", "RUNNING")
    clock.now += 6
    told.put("a", "RUNNING", row(1, loss=0.5), config={})
    told.put("a", "TERMINATED", row(1, loss=0.5), config={})
    lines = [
        "exp after 6 s: 1 running; best loss 0.5, trial a; copy: running",
        "exp after 6 s: 1 terminated",
        "best loss 0.5, trial a",
        "copy: closing",
    ]
    assert await told.aclose() == lines
    await told.progress.closed()
    assert await told.aclose() == [*lines, "copy: closed"]


async def test_nothing_is_told_of_a_copy_that_is_whole_before_it_is_closed(clock):
    told = Told(copy=lambda moment: "" if moment == "closing" else "copy: complete")
    assert await told.aclose() == ["exp after 0 s: no trials yet"]
    await told.progress.closed()
    assert await told.aclose() == ["exp after 0 s: no trials yet", "copy: complete"]


@pytest.mark.parametrize("settings", [{"verbose": 0, "copy": str}, {}], ids=["verbose", "copy"])
async def test_after_the_close_nothing_is_told_that_was_not_asked_for(clock, settings):
    told = Told(**settings)
    before = await told.aclose()
    await told.progress.closed()
    assert await told.aclose() == before


FAILED = """Traceback (most recent call last):
  File "x.py", line 3, in train
    raise ValueError(...)
ValueError: [red]no[/red]\x1b[2J
  of many lines:
see the notes
"""


def test_what_failed_is_told_at_once_and_how_to_go_on_in_the_end(clock):
    told = Told(location="/data/it's")
    told.put("a", "RUNNING")
    told.put("a", "ERROR", error=FAILED)
    told.put("b", "ERROR", error="")
    call = 'Tuner.restore("/data/it\'s", resume_errored=True)'
    to_go_on = f"to go on with what failed: {call}, or restart_errored=True to start it over"
    assert told.stop() == [
        "a failed: ValueError: [red]no[/red] [2J",
        "b failed: for no reason that was told",
        "exp after 0 s: 2 errors",
        "2 failed, first a: ValueError: [red]no[/red] [2J",
        to_go_on,
        "results: /data/it's",
    ]


def test_a_trial_that_is_tried_again(clock):
    told = Told()
    told.put("a", "RUNNING")
    told.put("a", "PENDING", error="Killed: SIGKILL", failures=1)
    told.put("a", "RUNNING", error="Killed: SIGKILL", failures=1)
    told.put("a", "TERMINATED", row(1, loss=1), failures=1)
    assert told.stop() == [
        "a failed, and is tried again: Killed: SIGKILL",
        "exp after 0 s: 1 terminated",
        "best loss 1, trial a: lr=0.1",
    ]


def test_the_best_is_the_best_by_its_last_result(clock):
    told = Told(mode="max")
    told.put("a", "RUNNING", row(1, loss=0.9))
    told.put("b", "RUNNING", row(1, loss=0.5))
    told.put("c", "RUNNING", row(1, loss=math.nan))
    told.put("a", "RUNNING", row(2, loss=0.1))
    assert told.progress._summary().endswith("best loss 0.5, trial b: lr=0.1")
    told.put("b", "RUNNING", row(2, loss=0.05))
    assert told.progress._summary().endswith("best loss 0.1, trial a: lr=0.1")
    told.put("c", "RUNNING", row(2, loss=10**400))
    assert told.progress._summary().endswith("best loss huge, trial c: lr=0.1")
    for each in "abc":
        told.put(each, "RUNNING", row(3, loss=math.nan))
    assert told.progress._summary() == "exp after 0 s: 3 running"
    told.stop()


@given(
    st.lists(
        st.tuples(
            st.sampled_from("abcdefgh"),
            st.one_of(st.none(), st.integers(-3, 3), st.sampled_from([math.nan, math.inf])),
        ),
        max_size=300,
    ),
    st.sampled_from(["min", "max"]),
)
def test_the_best_is_that_of_all_values_at_any_time(reports, mode):
    told = Told(mode=mode, verbose=1)
    last: dict[str, float] = {}
    for number, (trial_id, value) in enumerate(reports):
        last[trial_id] = math.nan if value is None else value
        told.put(trial_id, "RUNNING", row(number, **({} if value is None else {"loss": value})))
        known = sorted((trial_id, value) for trial_id, value in last.items() if not math.isnan(value))
        best = told.progress._view().best
        if not known:
            assert best is None
            continue
        expected = (min if mode == "min" else max)(known, key=lambda each: each[1])
        assert best is not None
        assert (best.trial_id, best.last_result["loss"]) == expected
    assert len(told.progress._ranked) <= 4 * 8 + 64
    told.stop()


def test_the_best_one_may_report_without_looking_at_all_others():
    class Watched(dict):
        """Notices who goes through all of it."""

        walks = 0

        def __iter__(self):
            self.walks += 1
            return super().__iter__()

        def items(self):
            self.walks += 1
            return super().items()

    told = Told()
    values = told.progress._values = Watched()
    for number in range(500):
        told.put(f"{number:03}", "RUNNING", row(1, loss=number + 1000))
    for iteration in range(2, 500):
        told.put("000", "RUNNING", row(iteration, loss=1000 - iteration))
    assert values.walks <= 1
    told.stop()


def test_a_finished_search_says_what_it_has_and_expects_nothing(clock):
    told = Told(total=3)
    told.progress.finished()
    assert told.stop() == ["exp after 0 s: no trials: nothing was proposed"]
    told = Told(total=3)
    told.put("a", "TERMINATED")
    assert told.progress._summary() == "exp after 0 s: 1 terminated, 2 to come"
    told.progress.finished()
    assert told.stop() == ["exp after 0 s: 1 terminated"]


class ProposesNothing(BasicSearcher):
    """It has come to its end before it begins."""

    def suggest(self, trial_id):
        return None


async def test_a_tuner_whose_searcher_proposes_nothing_says_so(tmp_path, capsys):
    async def never(config): ...

    await Tuner(
        never,
        tune_config=TuneConfig(search_alg=ProposesNothing({}), num_samples=3),
        run_config=RunConfig(name="exp", local_dir=tmp_path),
    ).fit()
    assert capsys.readouterr().err.splitlines()[-2].endswith(": no trials: nothing was proposed")


def test_trials_of_before_are_counted_and_not_told_of(clock):
    told = Told(total=4)
    told.progress.known(trial("a", "ERROR", row(3, loss=0.5), error="no"))
    told.progress.known(trial("b", "PENDING", row(2, loss=0.1)))
    told.put("b", "RUNNING", row(2, loss=0.1))
    assert told.stop() == [
        "exp after 0 s: 1 running, 1 error, 2 to come",
        "best loss 0.1, trial b: lr=0.1",
        "1 failed, first a: no",
    ]


def test_lines_come_now_and_then(clock):
    told = Told()
    moments = []
    for second in range(2000):
        clock.now += 1
        before = told.progress._said_at
        told.put("a", "RUNNING", row(second, loss=1))
        if told.progress._said_at != before:
            moments.append(second + 1)
    lines = told.stop()
    assert moments[:5] == [5, 10, 15, 20, 25]
    gaps = [later - earlier for earlier, later in itertools.pairwise(moments)]
    assert gaps == sorted(gaps)
    assert gaps[-1] == 60
    assert lines[0] == "exp after 5 s: 1 running; best loss 1, trial a: lr=0.1"


def test_each_result_at_verbose_2(clock):
    told = Told(verbose=2, metric=None, mode=None)
    told.put("a", "RUNNING")
    told.put("a", "RUNNING", row(1, loss=0.123456789, eval={"acc": 1}))
    told.put("a", "TERMINATED", row(1, loss=0.123456789))
    assert told.stop() == ["a iteration 1: loss=0.123457, eval={acc=1}", "exp after 0 s: 1 terminated"]


def test_nothing_at_verbose_0():
    told = Told(verbose=0)
    told.put("a", "ERROR", error="no")
    told.progress.line("a callback failed")
    assert told.stop() == []


def test_a_line_stays_one_line(clock):
    told = Told()
    told.progress.line("the callback X failed: [red]oh\nno" + "x" * 300)
    assert told.stop()[0] == "the callback X failed: [red]oh no" + "x" * 300


def test_it_shows_a_running_trial_once_and_few_others():
    told = Told()
    for number in range(50):
        told.put(f"t{number}", "RUNNING")
        told.put(f"t{number}", "RUNNING", row(1, loss=1))
        if number % 2:
            told.put(f"t{number}", "PAUSED", row(1, loss=1))
    view = told.progress._view()
    assert [each.trial_id for each in view.running] == [f"t{number}" for number in range(0, 50, 2)]
    assert [each.trial_id for each in view.others] == [f"t{number}" for number in range(27, 50, 2)]
    told.put("t49", "PENDING", row(1, loss=1))
    assert len(told.progress._view().others) == 11
    told.stop()


async def test_it_waits_until_the_end_is_written():
    told = Told()
    told.put("a", "TERMINATED")
    await told.progress.aclose()
    assert told.stream.getvalue().splitlines()[-1].endswith(": 1 terminated")
    await told.progress.aclose()
