"""Starts the scripts of Ray Tune's storage guide, and looks at what they leave."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from asynctune import Checkpoint, ExperimentStore, TrialStatus
from tests.killing import ROOT

__all__ = ["ITERATIONS", "WAIT_S", "Left", "newest_checkpoint", "run", "start", "step_of", "until"]

EXAMPLES: Final = ROOT / "docs" / "examples"
ITERATIONS: Final = 120
WAIT_S: Final = 50


@dataclass
class Left:
    """What a run left in its directory."""

    experiment: Path

    @property
    def trial(self) -> Path:
        [trial] = (path for path in self.experiment.iterdir() if not path.name.startswith("."))
        return trial

    @property
    def rows(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in (self.trial / "result.json").read_text("utf-8").splitlines()]

    @property
    def checkpoints(self) -> list[int]:
        return sorted(step_of(path) for path in self.trial.glob("checkpoint_*"))

    @property
    def aucs(self) -> list[float]:
        return [row["max-auc"] for row in self.rows]

    def best(self, count: int) -> set[int]:
        ranked = sorted((row["max-auc"], row["training_iteration"]) for row in self.rows)
        return {iteration for _, iteration in ranked[-count:]}


def step_of(path: Path) -> int:
    # After a kill `checkpoint_000016-2.1`: a directory that another driver may have begun is not used again.
    found = re.fullmatch(r"checkpoint_(\d{6,})(-\d+\.\d+)?", path.name)
    assert found is not None, path
    return int(found[1])


def start(script: str, *arguments: object, cwd: Path, **environment: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / script), *map(str, arguments)],
        cwd=cwd,
        env=os.environ | environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def run(script: str, *arguments: object, cwd: Path, **environment: str) -> str:
    with start(script, *arguments, cwd=cwd, **environment) as process:
        output, _ = process.communicate()
    assert process.returncode == 0, output
    return output


def until(left: Left, step: int) -> Iterator[None]:
    """Turns, until a checkpoint of this step or a later one is there."""
    end = time.monotonic() + WAIT_S
    while not any(
        step_of(path.parent) >= step for path in left.experiment.glob("*/checkpoint_*/.manifest.json")
    ):
        assert time.monotonic() < end, "no checkpoint comes"
        yield
        time.sleep(0.002)


async def newest_checkpoint(path: Path) -> Checkpoint:
    async with ExperimentStore.open(path, mode="read") as store:
        [trial] = store.trials
        assert trial.status is TrialStatus.RUNNING
        return trial.checkpoints[-1]
