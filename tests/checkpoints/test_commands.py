"""A command runs to its end, and is ended when nobody wants it any more, with all that it has started."""

from __future__ import annotations

import asyncio
import os
import signal
import sys

import pytest

from asynctune.checkpoints.commands import in_daemon_thread, run_command


def python(script, *arguments):
    return [sys.executable, "-c", script, *map(str, arguments)]


async def until(met):
    """Wait for what another process does."""
    for _ in range(3000):
        if met():
            return
        await asyncio.sleep(0.01)
    raise AssertionError("it does not happen")


async def pid_in(path):
    """Wait for the number that a process writes."""
    await until(lambda: path.exists() and path.read_text().endswith("\n"))
    return int(path.read_text())


def is_alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def test_how_it_ends_and_what_it_says():
    end = await run_command(python("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)"))
    assert end.code == 3
    assert sorted(end.output.split()) == [b"err", b"out"]


async def test_it_has_nothing_to_read_and_a_session_of_its_own():
    end = await run_command(
        python("import os, sys; print(sys.stdin.read() == '', os.getsid(0) == os.getpid())")
    )
    assert end.output.split() == [b"True", b"True"]


async def test_arguments_are_not_interpreted():
    arguments = ["$HOME", "*", "a b", "'", '"', "; exit 1", "-x", ""]
    end = await run_command(python("import sys; print(sys.argv[1:])", *arguments))
    assert end.output.decode().strip() == repr(arguments)


async def test_of_much_output_the_end_is_kept():
    end = await run_command(python("print('x' * 5_000_000); print('end')"))
    assert end.output.endswith(b"xxx\nend\n")
    assert len(end.output) <= 64 << 10


async def test_one_that_closes_its_output_is_waited_for():
    end = await run_command(python("import os, time; os.close(1); os.close(2); time.sleep(0.2); os._exit(4)"))
    assert end.code == 4


async def test_what_it_leaves_running_is_not_waited_for(tmp_path):
    script = "import os, subprocess, sys; p = subprocess.Popen(['sleep', '60']); print(p.pid, flush=True)"
    end = await run_command(python(script))
    child = int(end.output)
    try:
        assert end.code == 0
        assert is_alive(child)
    finally:
        os.kill(child, signal.SIGKILL)


async def test_a_signal_is_told():
    end = await run_command(python("import os, signal; os.kill(os.getpid(), signal.SIGKILL)"))
    assert end.code == -signal.SIGKILL


async def test_one_that_is_not_there():
    with pytest.raises(FileNotFoundError):
        await run_command(["no-such-program-of-anybody"])


@pytest.mark.parametrize("deaf", ["nobody", "command", "child"])
async def test_a_cancelled_one_is_ended_with_what_it_started(tmp_path, deaf):
    script = (
        "import signal, subprocess, sys, time\n"
        "if sys.argv[2] == 'child': signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "child = subprocess.Popen(['sleep', '60'])\n"
        "deaf = sys.argv[2] == 'command'\n"
        "signal.signal(signal.SIGTERM, signal.SIG_IGN if deaf else signal.SIG_DFL)\n"
        "open(sys.argv[1], 'w').write(f'{child.pid}\\n')\n"
        "time.sleep(60)\n"
    )
    task = asyncio.create_task(run_command(python(script, tmp_path / "pid", deaf)))
    child = await pid_in(tmp_path / "pid")
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: not is_alive(child))


async def test_one_that_fails_when_it_is_cancelled_leaves_no_complaint():
    task = asyncio.create_task(run_command(["no-such-program-of-anybody"]))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_thread_of_its_own_answers_whatever_it_raises():
    assert await in_daemon_thread("test", lambda: 7) == 7
    with pytest.raises(KeyError):
        await in_daemon_thread("test", lambda: dict[str, int]()["x"])
    with pytest.raises(RuntimeError, match="StopIteration"):
        await in_daemon_thread("test", lambda: next(iter(())))
