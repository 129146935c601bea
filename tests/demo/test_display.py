"""What the demo prints: lines that stay whole, a picture on a terminal only, nobody waiting for a slow one."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from rich.console import Console

from asynctune.demo.display import Display, Progress, Row, draw, first_line, plural, trial_table
from asynctune.trial import Trial, TrialStatus

ROOT = Path(__file__).parent.parent.parent
CONFIG = {
    "hidden": [64, 32],
    "activation": "relu",
    "learning_rate": 0.0012345,
    "alpha": 1e-5,
    "batch_size": 128,
}
PROGRESS = Progress(
    finished=1,
    trials=3,
    epochs=7,
    epochs_in_all=30,
    running=[Row("3f9ac_00001", 2, 10, 0.91234), Row("3f9ac_00002", 0, 10, None)],
    best=("3f9ac_00000", 0.95),
    commits=1234,
    checkpoint_fraction=0.0123,
)


def console(*, terminal: bool = False, width: int = 80) -> Console:
    return Console(
        file=io.StringIO(), force_terminal=terminal, width=width, height=25, color_system=None, _environ={}
    )


def text_of(made: Console) -> str:
    assert isinstance(made.file, io.StringIO)
    return made.file.getvalue()


def rendered(what) -> str:
    made = console()
    made.print(what)
    return text_of(made)


def trial(number: int, status: TrialStatus = TrialStatus.RUNNING, **result) -> Trial:
    name = f"3f9ac_{number:05}"
    return Trial(
        trial_id=name,
        trial_name=name,
        status=status,
        config=CONFIG,
        metadata={},
        last_result=result,
        num_results=len(result),
        error=None,
        num_failures=0,
        created_at=0.0,
        started_at=None,
        ended_at=None,
    )


# -- lines -------------------------------------------------------------------------------------------------


def test_everything_is_printed_in_order_before_the_context_is_left():
    made = console()
    with Display(made) as display:
        for number in range(200):
            display.line(f"line {number}")
    assert text_of(made).splitlines() == [f"line {number}" for number in range(200)]


def test_a_long_line_stays_one_line_where_it_is_read_by_a_program():
    made = console(width=20)
    with Display(made) as display:
        display.line("word " * 30 + "end")
        display.line("two\nlines")
    assert text_of(made).splitlines() == ["word " * 30 + "end", "two", "lines"]


def test_text_is_no_markup():
    made = console()
    with Display(made) as display:
        display.line("[bold]trial[/bold] [/nonsense]", "red")
    assert text_of(made) == "[bold]trial[/bold] [/nonsense]\n"


def test_what_was_said_is_printed_when_the_context_ends_with_an_error():
    made = console()

    def train() -> None:
        with Display(made) as display:
            display.line("before")
            raise RuntimeError("training")

    with pytest.raises(RuntimeError, match="training"):
        train()
    assert text_of(made) == "before\n"


def test_a_terminal_that_is_held_holds_nobody_up():
    held, printing = threading.Event(), threading.Event()

    class Held(io.StringIO):
        def write(self, text: str) -> int:
            printing.set()
            held.wait()
            return super().write(text)

    made = Console(file=Held(), width=80, color_system=None)
    with Display(made) as display:
        display.line("first")
        printing.wait()
        for number in range(1000):  # would hang here
            display.line(f"line {number}")
            display.update(PROGRESS)
        assert text_of(made) == ""
        held.set()
    assert len(text_of(made).splitlines()) == 1001


def test_output_that_nobody_reads_any_more_stops_the_demo_as_a_sigterm_does():
    script = (
        "import signal\n"
        "from asynctune.demo.display import Display\n"
        "with Display() as display:\n"
        "    display.line('one')\n"
        "    signal.pause()\n"
    )
    reading, writing = os.pipe()
    os.close(reading)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            stdout=writing,
            stderr=subprocess.PIPE,
            timeout=50,
            check=False,
        )
    finally:
        os.close(writing)
    assert ended.returncode == -signal.SIGTERM, ended.stderr


# -- the live picture --------------------------------------------------------------------------------------


def test_without_a_terminal_there_is_no_picture():
    made = console()
    unread = Display(made)
    unread.update(PROGRESS)
    assert unread._queue.empty()
    with Display(made) as display:
        assert not display.live
        display.update(PROGRESS)
        display.line("only this")
    assert text_of(made) == "only this\n"


def test_on_a_terminal_the_picture_is_drawn_and_lines_go_above_it():
    made = console(terminal=True)
    with Display(made) as display:
        assert display.live
        display.update(PROGRESS)
        display.line("a line")
        display.update(PROGRESS)
    text = text_of(made)
    assert text.index("epoch 2 of 10") < text.index("a line") < text.rindex("epoch 2 of 10")
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")  # the cursor is there again


def test_the_cursor_is_there_while_the_picture_is():
    drawn = threading.Event()

    class Watching(io.StringIO):
        def write(self, text: str) -> int:
            count = super().write(text)
            if "commits" in text:
                drawn.set()
            return count

    made = Console(file=Watching(), force_terminal=True, width=80, height=25, color_system=None, _environ={})
    with Display(made) as display:
        display.update(PROGRESS)
        assert drawn.wait(50)
        text = text_of(made)
    assert text.rfind("\x1b[?25h") > text.rfind("\x1b[?25l")


def test_the_picture_says_where_everything_is():
    text = rendered(draw(PROGRESS))
    for part in (
        "3f9ac_00001",
        "epoch 2 of 10",
        "accuracy 0.9123",
        "epoch 0 of 10",
        "1 of 3 trials",
        "7 of 30 epochs",
        "best so far: 3f9ac_00000, accuracy 0.9500",
        "1,234 commits, which took 1.2% of the time",
    ):
        assert part in text
    assert text.count("accuracy") == 2  # one trial has none yet
    assert len(text.splitlines()) == 6


def test_a_picture_of_nothing_yet():
    text = rendered(draw(Progress(finished=0, trials=0, epochs=0, epochs_in_all=0)))
    assert "0 of 0 trials" in text
    assert "best" not in text
    assert "0 commits, which took 0.0% of the time" in text


# -- the table ---------------------------------------------------------------------------------------------


def test_the_table_has_every_trial_whole_in_80_columns():
    trials = [
        trial(0, TrialStatus.TERMINATED, training_iteration=10, accuracy=0.98765),
        trial(1, TrialStatus.ERROR),
        trial(2, TrialStatus.TERMINATED, training_iteration=3, accuracy=0.0),
    ]
    lines = rendered(trial_table(trials, "3f9ac_00000")).splitlines()
    assert [line.split() for line in lines[1:]] == [
        ["3f9ac_00000", "*", "terminated", "10", "0.9877", "64-32", "relu", "0.0012", "1e-05", "128"],
        ["3f9ac_00001", "error", "0", "64-32", "relu", "0.0012", "1e-05", "128"],
        ["3f9ac_00002", "terminated", "3", "0.0000", "64-32", "relu", "0.0012", "1e-05", "128"],
    ]


def test_the_best_is_green_and_an_error_red_unless_it_is_the_best():
    trials = [trial(0), trial(1, TrialStatus.ERROR), trial(2)]
    assert [row.style for row in trial_table(trials, "3f9ac_00000").rows] == ["bold green", "red", ""]
    assert [row.style for row in trial_table(trials, "3f9ac_00001").rows] == ["", "bold green", ""]
    assert "*" not in rendered(trial_table(trials, None))


# -- words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "words"), [(0, "0 trials"), (1, "1 trial"), (2, "2 trials"), (1234, "1,234 trials")]
)
def test_counting(count, words):
    assert plural(count, "trial") == words


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("", ""),
        (" \n ", ""),
        ("\n one \ntwo", "one "),
        (ValueError("bad\nworse"), "bad"),
        (None, "None"),
        ("x" * 300, "x" * 200),
    ],
    ids=["empty", "blank", "lines", "error", "none", "long"],
)
def test_the_first_line_of_an_error(text, line):
    assert first_line(text) == line
