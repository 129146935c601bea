"""The command line's words; what the commands answer is tested with real stores, in test_commands.py."""

from __future__ import annotations

import pytest

from asynctune.inspect.cli import command_first, main

COMMANDS = ["summary", "trials", "trial", "checkpoints", "best", "verify"]


@pytest.mark.parametrize(
    ("args", "parsed"),
    [
        ([], []),
        (["exp"], ["summary", "exp"]),
        (["exp", "--json"], ["summary", "exp", "--json"]),
        (["--json", "exp"], ["summary", "--json", "exp"]),
        (["exp", "trials", "--json"], ["trials", "exp", "--json"]),
        (["trials", "exp", "--json"], ["trials", "exp", "--json"]),
        (["exp", "trial", "3f9ac_00001"], ["trial", "exp", "3f9ac_00001"]),
        (["trial", "exp", "3f9ac_00001"], ["trial", "exp", "3f9ac_00001"]),
        (["./trials"], ["summary", "./trials"]),
        (["./trials", "trials"], ["trials", "./trials"]),
        (["--", "-strange"], ["summary", "--", "-strange"]),
        (["--help"], ["--help"]),
        (["exp", "--help"], ["summary", "exp", "--help"]),
    ],
)
def test_the_command_may_stand_before_or_after_the_location(args, parsed):
    assert command_first(args, COMMANDS) == parsed


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["trials"], "Missing argument 'LOCATION'"),
        (["trial", "exp"], "Missing argument 'TRIAL_ID'"),
        (["exp", "nonsense"], "unexpected extra argument"),
        (["exp", "--status", "RUNING"], "'RUNING' is not one of PENDING, RUNNING"),
        (["exp", "--limit", "-1"], "-1 is not in the range"),
        (["exp", "--sort", "-"], "name a field"),
        (["exp", "best", "--metric", "loss", "--mode", "most"], "'most' is not one of"),
        (["exp", "--follow"], "--follow redraws a terminal"),
        (["exp", "--nonsense"], "No such option"),
    ],
)
def test_wrong_usage_is_exit_code_2_and_says_what_is_wrong(args, message, capsys):
    assert main(args) == 2
    shown = capsys.readouterr()
    assert message in " ".join(shown.err.split())
    assert "Usage: python -m asynctune.inspect" in shown.err
    assert shown.out == ""


@pytest.mark.parametrize("args", [["--help"], *([command, "--help"] for command in COMMANDS), ["exp", "-h"]])
def test_help_is_an_answer(args, capsys):
    assert main(args) == 0
    assert "Usage: python -m asynctune.inspect" in capsys.readouterr().out


def test_nothing_at_all_shows_the_help(capsys):
    assert main([]) == 2
    assert "Exit codes" in capsys.readouterr().err
