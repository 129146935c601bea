"""What progress looks like: it fits, whatever the trials are called and report."""

from __future__ import annotations

import dataclasses
import io
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.cells import cell_len
from rich.console import Console

from asynctune import StoreStats, TrialStatus
from asynctune.tuning.picture import (
    View,
    best_line,
    config_text,
    copy_text,
    count_line,
    duration,
    metrics_text,
    number,
    picture,
    plain,
)
from tests.tuning.trials import trial


def view(running=(), others=(), *, metric="loss", best=None, counts=None, total=None, name="exp"):
    return View(
        name=name,
        metric=metric,
        seconds=75,
        counts={TrialStatus.RUNNING: len(running)} if counts is None else counts,
        total=total,
        best=best,
        running=running,
        others=others,
    )


def drawn(view, width=80, height=24):
    stream = io.StringIO()
    Console(file=stream, width=width, height=height, force_terminal=False, highlight=False).print(
        picture(view, width, height)
    )
    return stream.getvalue().splitlines()


def row(iteration, **metrics):
    return {"training_iteration": iteration, "time_total_s": iteration * 1.5, **metrics}


CONFIG = {"lr": 0.000123456, "layers": 3, "optimizer": "adam", "schedule": {"warmup": 100}}


def test_at_80_columns():
    running = [trial("ab1_00002", row=row(12, loss=0.0123456789), config=CONFIG), trial("ab1_00003")]
    others = [
        trial("ab1_00000", "ERROR", row(2, loss=math.nan), config=CONFIG),
        trial("ab1_00001", "TERMINATED", row(2000, loss=1), config={"lr": 3}),
    ]
    counts = {TrialStatus.RUNNING: 2, TrialStatus.ERROR: 1, TrialStatus.TERMINATED: 1}
    assert drawn(view(running, others, best=running[0], counts=counts, total=20)) == [
        "exp after 1 min 15 s: 2 running, 1 terminated, 1 error, 16 to come",
        "best loss 0.0123457, trial ab1_00002: lr=0.000123456, layers=3, optimizer=adam,…",
        "trial      status      iter         time       loss  config",
        "ab1_00002  running       12         18 s  0.0123457  lr=0.000123456, layers=3, …",
        "ab1_00003  running                                   lr=0.1",
        "ab1_00001  terminated  2000  50 min 00 s          1  lr=3",
        "ab1_00000  error          2          3 s        nan  lr=0.000123456, layers=3, …",
    ]


def test_at_200_columns_everything_is_there():
    lines = drawn(view([trial("ab1_00002", row=row(12, loss=0.5), config=CONFIG)]), 200)
    assert lines[-1].endswith("lr=0.000123456, layers=3, optimizer=adam, schedule={warmup=100}")


def test_without_a_metric_the_last_result_is_shown():
    lines = drawn(view([trial("a", row=row(1, acc=0.5, note="x"))], metric=None))
    assert lines[1:] == [
        "trial  status   iter  time  last result      config",
        "a      running     1   1 s  acc=0.5, note=x  lr=0.1",
    ]


def test_before_the_first_trial():
    assert drawn(view()) == ["exp after 1 min 15 s: no trials yet"]


@pytest.mark.parametrize(("height", "rows"), [(24, 18), (60, 54), (3, 1)])
def test_running_ones_come_first_and_those_that_do_not_fit_are_counted(height, rows):
    running = [trial(f"r{each}") for each in range(100)]
    lines = drawn(view(running, [trial("o", "TERMINATED")]), 80, height)
    assert len(lines) == rows + 3
    assert lines[-1] == f"and {100 - rows} more that run"
    assert all(line.split()[1] == "running" for line in lines[2:-1])


def test_others_fill_up_the_newest_first():
    others = [trial(f"o{each}", "TERMINATED") for each in range(12)]
    lines = drawn(view([trial("r")], others))
    assert [line.split()[0] for line in lines[2:]] == ["r", *(f"o{each}" for each in range(11, 0, -1))]


def test_a_long_metric_leaves_room():
    lines = drawn(
        view([trial("a", row=row(1, **{"validation/top5/accuracy": 0.5}))], metric="validation/top5/accuracy")
    )
    assert lines[1] == "trial  status   iter  time  …p5/accuracy  config"
    assert lines[2] == "a      running     1   1 s           0.5  lr=0.1"


@pytest.mark.parametrize(
    ("width", "lines"),
    [
        (
            50,
            [
                "trial         status   iter         time      loss",
                "fa27ba_00012  running   120  20 min 05 s  0.123457",
            ],
        ),
        (
            49,
            [
                "trial         status   iter      loss  config",
                "fa27ba_00012  running   120  0.123457  lr=0.1",
            ],
        ),
        (40, ["trial         status   iter      loss", "fa27ba_00012  running   120  0.123457"]),
        (32, ["trial         status       loss", "fa27ba_00012  running  0.123457"]),
    ],
    ids=str,
)
def test_the_metric_is_the_last_to_go(width, lines):
    shown = trial("fa27ba_00012", row={"training_iteration": 120, "time_total_s": 1205, "loss": 0.1234567})
    assert drawn(view([shown]), width)[1:] == lines


def test_the_end_of_a_search_is_no_beginning():
    def end(**settings):
        return count_line(dataclasses.replace(view(total=3, **settings), is_finished=True)).partition(": ")[2]

    assert end() == "no trials: nothing was proposed"
    assert end(counts={TrialStatus.TERMINATED: 2}) == "2 terminated"


texts = st.text(max_size=60)
anything = st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just(10**400))
trials = st.lists(
    st.builds(
        trial,
        texts,
        st.sampled_from(["RUNNING", "ERROR", "PAUSED"]),
        st.one_of(
            st.none(),
            st.dictionaries(st.sampled_from(["loss", "training_iteration", "time_total_s", "x"]), anything),
        ),
        config=st.dictionaries(
            texts, st.one_of(anything, st.lists(anything), st.dictionaries(texts, anything))
        ),
    ),
    max_size=5,
)


@given(
    trials,
    trials,
    st.sampled_from([20, 40, 80, 200]),
    st.integers(1, 50),
    st.sampled_from([None, "loss"]),
    texts,
)
def test_no_line_is_wider_than_the_terminal_or_obeyed_by_it(running, others, width, height, metric, name):
    best = next(iter(running), None)
    lines = drawn(view(running, others, metric=metric, best=best, name=name), width, height)
    assert len(lines) <= max(height, 6), "nothing was wrapped"
    for line in lines:
        assert cell_len(line) <= width
        assert line.isprintable()


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (-1, "0 s"),
        (59.9, "59 s"),
        (60, "1 min 00 s"),
        (3599, "59 min 59 s"),
        (3600, "1 h 00 min"),
        (86400 + 3600 * 5, "1 d 05 h"),
        (math.inf, "very long"),
        (-math.inf, "0 s"),
        (10**400, "very long"),
    ],
)
def test_durations(seconds, text):
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, ""),
        (3, "3"),
        (12345678, "12345678"),
        (True, "True"),
        (0.1 + 0.2, "0.3"),
        (1e-9, "1e-09"),
        (math.nan, "nan"),
        (-math.inf, "-inf"),
        (10**20, "1e+20"),
        (10**400, "huge"),
        (-(10**400), "-huge"),
    ],
)
def test_numbers(value, text):
    assert number(value) == text


def test_words():
    assert plain("a\nb\x1b[31mc\u202e") == "a b [31mc "
    assert config_text({"a": [1, "x"], "b": {"c": "[red]"}, "d": None}) == "a=[1, 'x'], b={c=[red]}, d=None"
    assert metrics_text({**row(3, loss=1), "config": {}, "pid": 3}) == "loss=1"
    assert count_line(view(counts={TrialStatus.ERROR: 2, TrialStatus.PENDING: 0})).endswith(": 2 errors")
    assert best_line(view()) == ""
    assert best_line(view(best=trial("a", row={"loss": 1}, config={}))) == "best loss 1, trial a"


COPIES = {
    "complete": ((7, 7, 0, 0), "complete, in", "", "complete, in"),
    "one commit": ((8, 7, 0, 0), "1 commit behind, in", "1 commit to go, in", "1 commit behind, in"),
    "both": (
        (10, 7, 2, 0),
        "3 commits and 2 checkpoints behind, in",
        "3 commits and 2 checkpoints to go, in",
        "3 commits and 2 checkpoints behind, in",
    ),
    "failed": (
        (7, 7, 1, 1),
        "1 checkpoint behind, 1 failed and tried again, in",
        "1 checkpoint to go, in",
        "1 checkpoint behind, 1 failed, in",
    ),
    "not reached": (
        (7, 0, 4, 0),
        "nothing has come there yet, in",
        "7 commits and 4 checkpoints to go, in",
        "nothing has come there, in",
    ),
    "ahead for a moment": ((7, 8, 0, 0), "complete, in", "", "complete, in"),
}


@pytest.mark.parametrize("case", COPIES)
def test_how_far_a_copy_is(case):
    (committed, mirrored, pending, failed), running, closing, closed = COPIES[case]
    stats = StoreStats.of_reader(
        committed, 0, 0, mirrored_seq=mirrored, uploads_pending=pending, uploads_failed=failed,
        uploads_done=0, upload_bytes=0, trials=1,
    )  # fmt: skip
    text = f"copy: {running} s3://b/e"
    assert copy_text("s3://b/e", stats) == text
    assert copy_text("s3://b/e", stats, "closing") == (
        f"copy: being completed, {closing} s3://b/e" if closing else ""
    )
    assert copy_text("s3://b/e", stats, "closed") == f"copy: {closed} s3://b/e"
    lines = drawn(dataclasses.replace(view(), copy=text), 30)
    assert lines[1] == (text[:29] + "…" if len(text) > 30 else text)
