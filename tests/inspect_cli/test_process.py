"""The command as a process of its own: beside a driver, into pipes, on a terminal, under signals."""

from __future__ import annotations

import json
import os
import pty
import re
import signal
import subprocess
import sys
import termios

import pytest

from tests.inspect_cli.stores import REPOSITORY, build, driver

COMMAND = [sys.executable, "-m", "asynctune.inspect"]


def run(*args: object, **options) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*COMMAND, *map(str, args)], cwd=REPOSITORY, capture_output=True, text=True, check=False, **options
    )


def test_a_live_driver_is_named_and_a_dead_one_is_told(tmp_path):
    path = tmp_path / "digits"
    with driver(path, "wait") as process:
        shown = run(path)
        assert (shown.returncode, shown.stderr) == (0, "")
        assert f"live: pid {process.pid} on " in shown.stdout
        assert "1 RUNNING" in shown.stdout
        process.kill()
        process.wait()
        shown = run(path)
    assert shown.returncode == 0
    assert f"the last, pid {process.pid} on " in shown.stdout
    assert "ended without closing; 1 RUNNING trial has no live driver" in " ".join(shown.stdout.split())


def test_json_alone_is_on_standard_output(tmp_path):
    build(tmp_path / "digits")
    for args in (["verify"], ["trial", "nobody"]):
        assert json.loads(run(tmp_path / "digits", *args, "--json").stdout)["format"] == 1


def test_a_reader_that_closes_the_pipe_ends_it_quietly(tmp_path):
    build(tmp_path / "digits")
    for option in ("--wide", "--json"):
        read, write = os.pipe()
        os.close(read)
        ended = subprocess.run(
            [*COMMAND, tmp_path / "digits", option],
            cwd=REPOSITORY,
            stdout=write,
            stderr=subprocess.PIPE,
            check=False,
        )
        os.close(write)
        assert (ended.returncode, ended.stderr) == (141, b"")


def test_output_that_cannot_be_written_is_an_error(tmp_path):
    build(tmp_path / "digits")
    for option in ("--wide", "--json"):
        with open("/dev/full", "wb") as full:
            ended = subprocess.run(
                [*COMMAND, tmp_path / "digits", option],
                cwd=REPOSITORY,
                stdout=full,
                stderr=subprocess.PIPE,
                check=False,
            )
        assert ended.returncode == 1
        assert ended.stderr == b"error: cannot write to standard output: No space left on device\n"


def test_without_any_standard_output_it_still_answers_by_its_exit_code(tmp_path):
    build(tmp_path / "digits")
    for option in ("--wide", "--json"):
        command = 'exec "$@" >&-'
        ended = subprocess.run(
            ["sh", "-c", command, "sh", *COMMAND, tmp_path / "digits", option],
            cwd=REPOSITORY,
            stderr=subprocess.PIPE,
            check=False,
        )
        assert (ended.returncode, ended.stderr) == (0, b"")


def test_a_terminal_that_is_not_utf8_gets_escapes(tmp_path):
    path = tmp_path / "größe"
    build(path)
    shown = run(path, env=os.environ | {"PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0"})
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "gr\\xf6\\xdfe" in shown.stdout


class Terminal:
    """A pseudo-terminal with the command on it."""

    def __init__(self, *args: object, columns: int = 80, lines: int = 30) -> None:
        self._fd, child = pty.openpty()
        termios.tcsetwinsize(child, (lines, columns))
        environ = {name: value for name, value in os.environ.items() if name not in {"COLUMNS", "LINES"}}
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, args)],
            cwd=REPOSITORY,
            stdin=child,
            stdout=child,
            stderr=child,
            env=environ | {"TERM": "xterm"},
            start_new_session=True,
        )
        os.close(child)
        self.text = ""

    def wait_for(self, pattern: str) -> None:
        """Read until the text since the last match has it."""
        while not (found := re.search(pattern, self.text)):
            assert self._more(), f"ended before {pattern!r}: {self.text}"
        self.text = self.text[found.end() :]

    def _more(self) -> bool:
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # how Linux tells that the other side is closed
            return False
        self.text += data.decode()
        return bool(data)

    def end(self) -> int:
        while self._more():
            pass
        return self.process.wait()

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._fd)


@pytest.fixture
def terminal():
    opened: list[Terminal] = []

    def open_one(*args: object, **options) -> Terminal:
        opened.append(Terminal(*args, **options))
        return opened[-1]

    yield open_one
    for each in opened:
        each.close()


def test_following_shows_what_a_driver_reports_until_control_c(tmp_path, terminal):
    path = tmp_path / "digits"
    with driver(path, "wait") as process:
        shown = terminal(path, "--follow", "--interval", "0.1")
        shown.wait_for(f"live.*pid {process.pid}")
        shown.wait_for("RUNNING")
        for loss in ("0.1234", "0.0567"):
            assert process.stdin is not None
            process.stdin.write(f"{loss}\n")
            process.stdin.flush()
            shown.wait_for(re.escape(loss))
        process.kill()
        process.wait()
        shown.wait_for("ended without closing")
        shown.process.send_signal(signal.SIGINT)
        assert shown.end() == 0
        assert "Traceback" not in shown.text


def test_a_terminal_gets_colors_unless_they_are_unwanted(tmp_path, terminal):
    build(tmp_path / "digits")
    colored = terminal(tmp_path / "digits")
    colored.wait_for("\x1b\\[32mTERMINATED")
    assert colored.end() == 0
    plain = terminal(tmp_path / "digits", "--no-color")
    assert plain.end() == 0
    assert "TERMINATED" in plain.text
    assert "\x1b" not in plain.text


@pytest.mark.parametrize("columns", [80, 200])
def test_a_terminal_is_never_overrun(tmp_path, terminal, columns):
    build(tmp_path / "digits")
    for args in ([], ["checkpoints"]):
        shown = terminal(tmp_path / "digits", *args, "--no-color", columns=columns)
        assert shown.end() == 0
        assert max(map(len, shown.text.splitlines())) <= columns
