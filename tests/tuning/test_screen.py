"""Lines and a picture on a terminal, in a pipe, and where nobody reads."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from rich.cells import cell_len
from rich.text import Text

from asynctune.tuning.screen import Screen
from tests.killing import ROOT
from tests.tuning.terminals import terminal


def nothing(width, height):
    return Text("")


def test_plain_lines_in_a_pipe_whatever_they_hold(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    stream = io.StringIO()
    screen = Screen(stream, nothing)
    assert not screen.is_terminal
    screen.open()
    screen.line("[red]é[/red]" * 40)
    screen.line(lambda: "made later")
    screen.close(["bye"])
    screen.close(["again"])
    screen.wait()
    assert stream.getvalue() == "[red]é[/red]" * 40 + "\nmade later\nbye\n"


class Broken(io.StringIO):
    """A pipe without a reader."""

    def write(self, text):
        raise BrokenPipeError


class Unwritable(io.StringIO):
    """It cannot spell what it is to write."""

    def write(self, text):
        return super().write(text.encode("ascii").decode())


@pytest.mark.parametrize("make", [Broken, Unwritable], ids=["pipe", "ascii"])
def test_where_nobody_reads_nothing_breaks(make, caplog):
    caplog.set_level("INFO")
    stream = make()
    with stream:
        screen = Screen(stream, nothing)
        screen.open()
        screen.line("löst")
        screen.close(["lost too"])
        screen.wait()
    assert not caplog.records


def closed():
    stream = io.StringIO()
    stream.close()
    return stream


@pytest.mark.parametrize("make", [lambda: None, closed], ids=["none", "closed"])
def test_where_there_is_no_stream_nothing_is_shown(make):
    screen = Screen(make(), nothing)
    assert not screen.is_terminal
    screen.open()
    for _ in range(10):
        screen.line("lost")
    screen.close(["lost too"])
    screen.wait()
    assert screen._waiting.empty(), "what nobody takes is not kept"


@pytest.mark.parametrize("verbose", [0, 1, 2])
def test_a_service_without_standard_error(tmp_path, verbose):
    process = subprocess.run(
        ["sh", "-c", 'exec "$@" 2>&-', "sh", sys.executable, "-c", PROGRAM, str(tmp_path), str(verbose)],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert process.returncode == 0, process.stdout
    assert process.stdout.count("done with") == 18


def test_a_pipe_that_nobody_reads_holds_up_nobody():
    reader, writer = os.pipe()
    with os.fdopen(writer, "w") as stream:
        screen = Screen(stream, nothing)
        screen.open()
        thread = screen._thread
        for _ in range(300):
            screen.line("x" * 1000)
        seen = 0
        while seen < 300 * 1001:
            seen += len(os.read(reader, 65536))
        screen.close()
        screen.wait()
        assert thread is not None
        assert not thread.is_alive()
    os.close(reader)


def test_a_picture_that_cannot_be_drawn_is_told_of(caplog):
    follower, stop = terminal()
    with os.fdopen(follower, "w") as stream:
        screen = Screen(stream, lambda width, height: 1 / 0)  # type: ignore[arg-type, return-value]
        assert screen.is_terminal
        screen.open()
        screen.close()
        screen.wait()
    stop()
    assert "cannot be shown; the experiment goes on" in caplog.text


def shown(text):
    """The lines that were drawn, without what moves the cursor or colors them."""
    return re.split(r"\r\n|\r", re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", text))


PROGRAM = """
import asyncio, os, sys
from asynctune import *

async def train(config):
    for iteration in range(1, 4):
        await asyncio.sleep(0.05)
        await session.areport({"loss": config["x"] / iteration, "training_iteration": iteration})
    if config["x"] > 17:
        raise ValueError("[red]too much[/red] of it")
    print("done with", config["x"])

Tuner(
    train,
    param_space={"x": grid_search(list(range(20))), "a long name": "a long value of 漢字 " * 10},
    tune_config=TuneConfig(metric="loss", mode="min", max_concurrent_trials=4),
    run_config=RunConfig(name="exp", local_dir=sys.argv[1], verbose=int(sys.argv[2])),
).run()
"""


def run(tmp_path, columns, verbose=1, out=None, **environment):
    follower, stop = terminal(columns)
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(tmp_path), str(verbose)],
        cwd=ROOT,
        stdout=out or follower,
        stderr=follower,
        env={**os.environ, "TERM": "xterm-256color", **environment},
    )
    os.close(follower)
    written = stop()
    assert process.wait() == 0, written
    return written


@pytest.mark.parametrize("columns", [80, 200])
def test_on_a_terminal(tmp_path, columns):
    written = run(tmp_path, columns)
    lines = shown(written)
    table = [line for line in lines if re.search(r"_000\d\d +(running|terminated|error) ", line)]
    assert table
    assert all(cell_len(line) <= columns for line in table)
    assert sum(line.startswith("done with ") for line in lines) == 18, "what is printed meanwhile is kept"
    assert sum("failed: ValueError: [red]too much[/red] of it" in line for line in lines) == 2
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l"), "the cursor is back"
    shown_again = written.index("\x1b[?25h", written.index("\x1b[?25l"))
    assert shown_again < written.index(table[-1].split()[0]), "and was there all the time, should a kill come"
    end = next(number for number in reversed(range(len(lines))) if lines[number].startswith("exp after"))
    assert lines[end].endswith(": 18 terminated, 2 errors")
    assert lines[end + 1].startswith("best loss 0, trial ")
    assert lines[end + 2].startswith("2 failed, first ")


def test_without_color(tmp_path):
    assert "\x1b[32m" not in run(tmp_path, 80, NO_COLOR="1")


def test_a_dumb_terminal_gets_lines(tmp_path):
    assert "\x1b" not in run(tmp_path, 80, TERM="dumb")


def test_what_goes_to_a_file_is_not_shown_instead(tmp_path):
    with open(tmp_path / "out", "wb") as out:
        written = run(tmp_path, 80, out=out)
    assert "done with" not in written
    assert (tmp_path / "out").read_text().count("done with") == 18


def test_nothing_at_verbose_0(tmp_path):
    lines = [line for line in shown(run(tmp_path, 80, verbose=0)) if line]
    assert all(line.startswith("done with ") for line in lines)
