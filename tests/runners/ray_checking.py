"""Whole experiments on a test cluster: how they are made, and what must hold of each that has ended."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from asynctune import (
    CheckpointConfig,
    FailureConfig,
    RayRunner,
    Result,
    ResultGrid,
    RunConfig,
    SyncConfig,
    TuneConfig,
    Tuner,
)
from asynctune.trial import Trial
from tests.killing import ROOT
from tests.runners.cluster import HEAD, Cluster
from tests.runners.ray_trials import acknowledged, beginnings, digest

__all__ = [
    "Failures",
    "Place",
    "checked",
    "eventually",
    "experiment",
    "holds",
    "inspected",
    "left_on",
    "runner_for",
]

WITHIN_S = 30.0
ME = "me"
WORK = "work"


class Failures:
    """Collects what is told of trials that fail."""

    def __init__(self) -> None:
        self.told: list[str] = []

    def on_trial_error(self, trial: Trial) -> None:
        """Called by the Tuner."""
        assert trial.error is not None
        self.told.append(trial.error)


class Place:
    """What an experiment on a cluster is given: names of files that all share, and of those that each has its own."""

    def __init__(self, cluster: Cluster, name: str) -> None:
        self.cluster = cluster
        self.name = name
        self.local_dir = cluster.apart / "results"
        self.log = cluster.root / f"{name}.log"
        self.directory = self.local_dir / name
        for node in cluster.nodes:
            if node != HEAD:
                cluster.run_in(node, ["sh", "-c", f"echo {node} > {self.me}"])

    @property
    def me(self) -> str:
        """A file in which each node finds its name."""
        return str(self.cluster.apart / ME)

    @property
    def work(self) -> str:
        """Where trials write on nodes."""
        return str(self.cluster.apart / WORK)

    def config(self, **more: Any) -> dict[str, Any]:
        """For the trials of `ray_trials`."""
        return {"log": str(self.log), "me": self.me, **more}


def runner_for(place: Place, **options: Any) -> RayRunner:
    """On the place's cluster."""
    return RayRunner(place.cluster.address, **{"worker_dir": place.work, **options})


def experiment(
    place: Place,
    trainable: Any,
    *,
    trials: int,
    runner: Any = None,
    max_failures: int = 0,
    num_to_keep: int | None = 2,
    frequency: int = 0,
    sync: SyncConfig | None = None,
    local_dir: Path | None = None,
    scheduler: Any = None,
    callbacks: Any = (),
    **config: Any,
) -> Tuner:
    """A Tuner for trials with this config."""
    return Tuner(
        trainable,
        param_space=place.config(**config),
        tune_config=TuneConfig(metric="loss", mode="min", num_samples=trials, scheduler=scheduler),
        run_config=RunConfig(
            name=place.name,
            local_dir=place.local_dir if local_dir is None else local_dir,
            checkpoint_config=CheckpointConfig(num_to_keep=num_to_keep, checkpoint_frequency=frequency),
            failure_config=FailureConfig(max_failures=max_failures),
            sync_config=sync or SyncConfig(),
            callbacks=callbacks,
            verbose=0,
        ),
        runner=runner_for(place) if runner is None else runner,
    )


async def checked(
    results: Sequence[Result], n: int, *, fetched: Path | None = None
) -> list[list[dict[str, Any]]]:
    """Each trial has its `n` rows, each once, and its kept checkpoints byte for byte; the rows.

    Args:
        n: How many.
        fetched: Checkpoints are elsewhere, and brought here to be looked at.
    """
    rows = []
    for result in results:
        assert result.error is None, result.error
        rows.append(await rows_of(result, n))
    for number, result in enumerate(results):
        by_iteration = {row["training_iteration"]: row for row in rows[number]}
        assert result.best_checkpoints
        for checkpoint, metrics in result.best_checkpoints:
            path = checkpoint.path
            if fetched is not None:
                path = await result.fetch_checkpoint(
                    fetched / f"{result.trial_id}-{checkpoint.step}", checkpoint
                )
            assert path is not None
            assert digest(path) == metrics["sha256"] == by_iteration[metrics["training_iteration"]]["sha256"]
    return rows


async def holds(place: Place, results: ResultGrid, n: int, *, fetched: Path | None = None) -> None:
    """After deaths of whatever: what was acknowledged is there as it was, and no two processes wrote for one trial.

    Args:
        place: Where the experiment is.
        results: Of all trials.
        n: See `checked`.
        fetched: Likewise.
    """
    rows = await checked(results, n, fetched=fetched)
    sha256 = {
        result.trial_id: {row["training_iteration"]: row["sha256"] for row in each}
        for result, each in zip(results, rows, strict=True)
    }
    for trial_id, safe in acknowledged(place.log).items():
        assert safe.items() <= sha256[trial_id].items()
    beginnings(place.log)
    await inspected(place.directory, "verify")


async def rows_of(result: Result, n: int) -> list[dict[str, Any]]:
    """Of a trial, which has `n`, each once; its result.json has the same.

    Args:
        result: Of an experiment whose driver has ended in order: one that was killed may not have written all rows.
        n: How many.
    """
    rows = await result.history()
    told = [(row["training_iteration"], row["me"], row["where"]) for row in rows]
    about = (
        f"{result.trial_id}, {result.status}, last {result.metrics.get('training_iteration')}, {result.error}"
    )
    assert [iteration for iteration, *_ in told] == list(range(1, n + 1)), f"{about}: {told}"
    assert await asyncio.to_thread(_written, result) == json.loads(json.dumps(rows)), about
    return rows


def _written(result: Result) -> list[dict[str, Any]]:
    """The lines of its result.json, whatever the journal says; none of a trial that never ran."""
    path = Path(result.path, "result.json")
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()] if path.exists() else []


async def inspected(location: str | Path, *arguments: str, env: Mapping[str, str] | None = None) -> str:
    """What the command prints of an experiment that has nothing wrong."""
    done = await asyncio.to_thread(
        subprocess.run,
        [sys.executable, "-m", "asynctune.inspect", str(location), *arguments],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        env=env,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def left_on(place: Place, node: str) -> list[str]:
    """Files of trials that a node still has."""
    found = place.cluster.run_in(node, ["sh", "-c", f"find {place.work} -type f 2>/dev/null || true"])
    return found.splitlines()


def workers(cluster: Cluster, name: str, what: str = "asynctune.runners.worker") -> list[Any]:
    """Processes of a node that run trials."""
    found = []
    for process in cluster.processes(name):
        try:
            if any(what in part for part in process.cmdline()):
                found.append(process)
        except Exception:  # noqa: BLE001 - it has just ended
            continue
    return found


def actors(cluster: Cluster, name: str) -> list[Any]:
    """Processes of a node that are agents: Ray renames them."""
    return workers(cluster, name, "ray::_Agent")


async def eventually(condition: Callable[[], Any], within_s: float = WITHIN_S) -> Any:
    """Wait until it holds; its value."""
    ends = time.monotonic() + within_s
    while not (value := await asyncio.to_thread(condition)):
        assert time.monotonic() < ends, f"not within {within_s:g} s"
        await asyncio.sleep(0.05)
    return value


@asynccontextmanager
async def fitting(tuner: Tuner) -> AsyncGenerator[asyncio.Task[ResultGrid], None]:
    """One that runs meanwhile, and is not left running."""
    running = asyncio.create_task(tuner.fit())
    try:
        yield running
    finally:
        if not running.done():
            running.cancel()
            await asyncio.wait([running])
