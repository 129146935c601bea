"""Real experiments on disk, and a driver in another process."""

from __future__ import annotations

import asyncio
import contextlib
import json
import math
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from asynctune import ExperimentStore, SyncConfig, TrialStatus
from asynctune.inspect.cli import main

REPOSITORY = Path(__file__).parents[2]
LOSSES = [0.5, 0.25, math.nan, 0.75, None]
"""Last loss of each trial of `build`; the last trial has not started."""


def build(path: Path, upload_dir: str | None = None) -> list[str]:
    """Five trials: two TERMINATED with checkpoints 1 and 2, one RUNNING, one ERROR, one PENDING; their ids."""
    return asyncio.run(build_here(path, upload_dir))


async def build_here(path: Path, upload_dir: str | None = None) -> list[str]:
    """The same, in this loop."""
    async with ExperimentStore.open(path, sync_config=SyncConfig(upload_dir=upload_dir)) as store:
        store.set_metadata("note", "first try")
        ids = [store.add_trial({"lr": 0.1 / (n + 1), "units": 64}).trial_id for n in range(len(LOSSES))]
        for trial_id, loss in zip(ids, LOSSES, strict=True):
            if loss is None:
                continue
            store.set_status(trial_id, TrialStatus.RUNNING)
            store.report(trial_id, {"loss": 1.0, "eval": {"acc": 0.5}})
            store.report(trial_id, {"loss": loss, "eval": {"acc": 1 - loss}})
        for trial_id in ids[:2]:
            for step in (1, 2):
                await store.save_checkpoint(trial_id, files(path.parent / "made", step), step=step, move=True)
            store.set_status(trial_id, TrialStatus.TERMINATED)
        store.set_status(ids[3], TrialStatus.ERROR, ValueError("no such layer"))
    return ids


def files(directory: Path, step: int) -> Path:
    (directory / "sub").mkdir(parents=True)
    (directory / "weights.bin").write_bytes(bytes([step]) * 3000)
    (directory / "sub" / "note.txt").write_text("hello")
    return directory


def tree(path: Path) -> dict[str, tuple[int, int]]:
    """Every name below a directory, with size and time of change."""
    return {str(each): (each.lstat().st_size, each.lstat().st_mtime_ns) for each in path.rglob("*")}


def flip(path: Path, position: int) -> None:
    """Change one bit."""
    data = bytearray(path.read_bytes())
    data[position] ^= 0x10
    path.write_bytes(data)


def ask(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, Any]:
    """The exit code and the document of a command with `--json`; standard output holds nothing else."""
    code = main([*map(str, args), "--json"])
    document = json.loads(capsys.readouterr().out)
    assert document["format"] == 1
    return code, document


def show(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command."""
    code = main([*map(str, args)])
    shown = capsys.readouterr()
    return code, shown.out, shown.err


DRIVER = """
import asyncio, sys, tempfile
from pathlib import Path
from asynctune import CheckpointConfig, ExperimentStore, TrialStatus

async def busy(location):
    async with ExperimentStore.open(location, checkpoint_config=CheckpointConfig(num_to_keep=1)) as store:
        trials = [store.add_trial({"lr": 0.1}).trial_id for _ in range(3)]
        step = 0
        while True:
            step += 1
            for trial_id in trials:
                with tempfile.TemporaryDirectory(dir=Path(location).parent) as made:
                    Path(made, "weights.bin").write_bytes(bytes(20000))
                    await store.save_checkpoint(trial_id, made, step=step, metrics={"blob": "x" * 20000})
            if step == 2:
                print("ready", flush=True)

async def wait(location):
    async with ExperimentStore.open(location) as store:
        trial = store.add_trial({"lr": 0.1})
        store.set_status(trial.trial_id, TrialStatus.RUNNING)
        reader = asyncio.StreamReader()
        await asyncio.get_running_loop().connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)
        await store.flush()
        print("ready", flush=True)
        while line := await reader.readline():
            store.report(trial.trial_id, {"loss": float(line)})
            await store.flush()
            print("reported", flush=True)

asyncio.run({"wait": wait, "busy": busy}[sys.argv[1]](sys.argv[2]))
"""


@contextlib.contextmanager
def driver(path: Path, kind: str) -> Iterator[subprocess.Popen[str]]:
    """A process that drives an experiment: `wait` reports each number it is sent, `busy` saves without end."""
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, kind, str(path)],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        yield process
    finally:
        process.kill()
        process.communicate()
