"""What a terminal shows, checked for what must be readable and for its width; not letter by letter."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.cells import cell_len
from rich.console import Console

from asynctune.inspect import tables
from asynctune.inspect.report import TrialsReport, Writer
from asynctune.inspect.tables import WIDE, Layout
from asynctune.trial import TrialStatus
from tests.inspect_cli.examples import NOW, a_head, a_row
from tests.inspect_cli.reports import REPORTS, TRIALS


def shown(report: Any, view: Any, width: int = 80, **layout: Any) -> str:
    console = Console(file=io.StringIO(), width=width, color_system=None, highlight=False)
    with console.capture() as capture:
        console.print(view(report, Layout(width=width, **layout)))
    return capture.get()


def summary_of(head, *rows, running: int = 0) -> TrialsReport:
    counts = {TrialStatus.RUNNING: running} if running else {}
    return TrialsReport(head=head, counts=counts, matching=len(rows), left_out={}, rows=rows)


@pytest.mark.parametrize("width", [20, 40, 80, 200])
@pytest.mark.parametrize("kind", REPORTS)
def test_no_line_is_longer_than_the_terminal(kind, width):
    for line in shown(*REPORTS[kind], width=width).splitlines():
        assert cell_len(line) <= width


def test_a_summary_says_who_drives_and_what_is_left_out():
    text = shown(TRIALS, tables.summary_view, 120)
    assert "live: pid 4242 on node7 since" in text
    assert "6: 1 PENDING, 1 RUNNING, 3 TERMINATED, 1 ERROR" in text
    assert "2 more trials are not shown (2 TERMINATED); --limit 0 shows all" in text
    assert "best        loss = 0.5000, 3f9ac_00000" in text
    assert "tear        wal-2-31: a commit cut short" in text
    assert "problem: the files of checkpoint 2 of trial 3f9ac_00002 are not there" in text


@pytest.mark.parametrize("state", ["closed", "dead"])
def test_running_trials_without_a_live_driver_are_pointed_out(state):
    head = a_head(writer=Writer(state, pid=7, hostname="node7"))
    text = shown(summary_of(head, a_row(), running=3), tables.summary_view, 120)
    assert "3 RUNNING trials have no live driver" in text
    assert "no live driver" not in shown(summary_of(head, a_row()), tables.summary_view, 120)


def test_a_driver_on_another_host_is_not_called_dead():
    head = a_head(writer=Writer("unknown", pid=7, hostname="node8", since=NOW - 60))
    text = shown(summary_of(head, a_row(), running=1), tables.summary_view, 120)
    assert "whether it is alive cannot be told from here" in text
    assert "no live driver" not in text


def test_a_narrow_table_names_the_columns_it_leaves_out():
    text = shown(TRIALS, tables.trials_view, 44)
    assert "no room for: acc" in " ".join(text.split())
    assert "no room for" not in shown(TRIALS, tables.trials_view, 200)


def test_an_error_is_one_line_cut_at_the_terminals_edge():
    row = a_row(1, status=TrialStatus.ERROR, error="out of memory; " * 20 + "\nmore", num_failures=1)
    lines = shown(summary_of(a_head(), row), tables.trials_view, 80).splitlines()
    assert lines[1].rstrip().endswith("…")
    assert "more" not in lines[1]
    assert ("out of memory; " * 20).strip() in shown(summary_of(a_head(), row), tables.trials_view, WIDE)


def test_a_trial_is_shown_with_its_whole_error():
    text = shown(*REPORTS["trial"], width=100)
    assert 'File "t.py", line 3' in text
    assert "  lr     0.01" in text
    assert "MISSING" in text


def test_an_experiment_without_trials_has_no_table():
    assert "no trials yet" in shown(summary_of(a_head(trials_total=0)), tables.summary_view)
    assert "no trial matches" in shown(summary_of(a_head(trials_total=4)), tables.trials_view)


def test_markup_and_control_characters_in_an_experiment_are_just_text():
    row = a_row(
        1, status=TrialStatus.ERROR, error="[red]x[/] \x1b[31mred", num_failures=1, trial_id="[bold]7[/]"
    )
    text = shown(summary_of(a_head(name="[b]n"), row), tables.summary_view, 200)
    assert "[red]x[/] \\x1b[31mred" in text
    assert "[bold]7[/]" in text
    assert "[b]n" in text
    assert "\x1b" not in text


def test_verify_says_its_verdict():
    assert "NOT intact: 2 problems" in shown(*REPORTS["verify"])


def test_many_problems_do_not_fill_the_screen():
    report, view = REPORTS["checkpoints"]
    flooded = type(report)(
        **{name: getattr(report, name) for name in report.__slots__} | {"problems": TRIALS.problems * 50}
    )
    text = shown(flooded, view)
    assert text.count("problem: ") == 20
    assert "and 30 more problems" in text
