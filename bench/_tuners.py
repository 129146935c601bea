"""Owns the experiments that `tuner.py` compares: N trials that do nothing but report five times.

Each is a subject for `_children`: `measure` runs one whole experiment in a new directory, from the call that starts
it to its return, and counts afterwards what is on the disk. A trial has two hyperparameters, drawn at random.

What the peers are given, and what is left out of their time:

- Ray Tune: `ray.init` with two CPUs and the first experiment, which starts its processes, are not counted. Actors
  are reused, results may come in batches of five, nothing is printed, there is no dashboard, and of its loggers only
  those run that write the same files as asynctune does (`params.json`, `result.json`, `progress.csv`). It syncs
  nothing to the disk. Its trainable is a class, the kind whose results it can batch.
- Optuna: two threads (`n_jobs=2`), random sampling, one journal file and no result files. Five `trial.report`, and
  the value that the objective returns.
"""

from __future__ import annotations

import asyncio
import os
import tempfile
import time
from pathlib import Path
from typing import Any, Final

from asynctune import (
    InlineRunner,
    ProcessRunner,
    RunConfig,
    TuneConfig,
    Tuner,
    session,
    uniform,
)

__all__ = ["REPORTS", "WORKERS", "Inline", "OptunaThreads", "Processes", "RayTune", "files_of"]

REPORTS: Final = 5
WORKERS: Final = 2
_WARM_UP: Final = 20  # trials


# -- asynctune -----------------------------------------------------------------------------------------------


async def _coroutine(config: dict[str, Any]) -> None:
    for iteration in range(REPORTS):
        await session.areport({"loss": config["x"] / (iteration + 1)})


def _function(config: dict[str, Any]) -> None:
    for iteration in range(REPORTS):
        session.report({"loss": config["x"] / (iteration + 1)})


class _Asynctune:
    """A Tuner; everything it starts is counted, its workers too."""

    def _tuner(self, place: Path, trials: int) -> Tuner:
        raise NotImplementedError

    def _made(self, trainable: Any, runner: Any, place: Path, trials: int) -> Tuner:
        return Tuner(
            trainable,
            param_space={"x": uniform(0, 1), "y": uniform(0, 1)},
            tune_config=TuneConfig(metric="loss", mode="min", num_samples=trials),
            run_config=RunConfig(name=place.name, local_dir=place.parent, verbose=0),
            runner=runner,
        )

    async def prepare(self, directory: str) -> dict[str, Any]:
        await self.measure(str(Path(directory, "warm-up")), _WARM_UP)
        return {}

    async def measure(self, place: str, trials: int) -> dict[str, Any]:
        tuner = self._tuner(Path(place), trials)
        start = time.perf_counter()
        results = await tuner.fit()
        seconds = time.perf_counter() - start
        stats = tuner.stats()
        assert stats is not None
        assert results.num_terminated == trials
        written = await asyncio.to_thread(files_of, Path(place), trials)
        return written | {
            "seconds": seconds,
            "checkpoint_seconds": stats.checkpoint_seconds,
            "store_seconds": stats.elapsed_seconds,
            "commits": stats.commits,
        }

    async def close(self) -> None:
        pass


class Inline(_Asynctune):
    """Coroutines in the driver's event loop."""

    def _tuner(self, place: Path, trials: int) -> Tuner:
        return self._made(_coroutine, InlineRunner(), place, trials)


class Processes(_Asynctune):
    """A function in two worker processes."""

    def _tuner(self, place: Path, trials: int) -> Tuner:
        return self._made(_function, ProcessRunner(WORKERS), place, trials)


def files_of(place: Path, trials: int, reports: int = REPORTS) -> dict[str, Any]:
    """Count the files, and refuse to go on where something is missing."""
    names = ("params.json", "result.json", "progress.csv")
    found = {name: sorted(place.rglob(name)) for name in names}
    for name, paths in found.items():
        if len(paths) != trials:
            raise RuntimeError(f"{len(paths)} files {name} instead of {trials}")
    rows = sum(path.read_bytes().count(b"\n") for path in found["result.json"])
    if rows != trials * reports:
        raise RuntimeError(f"{rows} rows instead of {trials * reports}")
    return {"files": sum(map(len, found.values())), "rows": rows}


# -- peers ---------------------------------------------------------------------------------------------------


class RayTune:
    """`ray.tune.Tuner` on a cluster of two CPUs that was started before."""

    _temporary: tempfile.TemporaryDirectory[str] | None = None

    async def prepare(self, directory: str) -> dict[str, Any]:
        os.environ |= {
            "RAY_AIR_NEW_OUTPUT": "0",
            "RAY_DEDUP_LOGS": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
            "TUNE_RESULT_BUFFER_LENGTH": str(REPORTS),
        }
        self.join()
        self._trainable = self.trainable()
        await self.measure(str(Path(directory, "warm-up")), _WARM_UP)
        return {}

    def join(self) -> None:
        """Have a cluster."""
        os.environ["RAY_AUTH_MODE"] = "disabled"
        import ray  # noqa: PLC0415 - only this child pays for it

        # Not in the scratch directory: the names of its sockets have to be short.
        self._temporary = tempfile.TemporaryDirectory(prefix="ray-")
        ray.init(
            num_cpus=WORKERS,
            include_dashboard=False,
            log_to_driver=False,
            logging_level="ERROR",
            object_store_memory=200 * 2**20,
            _temp_dir=self._temporary.name,
        )

    def trainable(self) -> Any:
        """What is run."""
        from ray import tune  # noqa: PLC0415

        class Step(tune.Trainable):  # type: ignore[misc]
            def setup(self, config: dict[str, Any]) -> None:
                self.x = config["x"]

            def reset_config(self, new_config: dict[str, Any]) -> bool:
                self.x = new_config["x"]
                return True

            def step(self) -> dict[str, Any]:
                return {"loss": self.x / (self.iteration + 1)}

        return Step

    async def measure(self, place: str, trials: int, reports: int = REPORTS) -> dict[str, Any]:
        from ray import tune  # noqa: PLC0415
        from ray.tune.logger import CSVLoggerCallback, JsonLoggerCallback  # noqa: PLC0415

        tuner = tune.Tuner(
            self._trainable,
            param_space={"x": tune.uniform(0, 1), "y": tune.uniform(0, 1)},
            tune_config=tune.TuneConfig(metric="loss", mode="min", num_samples=trials, reuse_actors=True),
            run_config=tune.RunConfig(
                name=Path(place).name,
                storage_path=str(Path(place).parent),
                stop={"training_iteration": reports},
                callbacks=[JsonLoggerCallback(), CSVLoggerCallback()],
                checkpoint_config=tune.CheckpointConfig(checkpoint_frequency=0, checkpoint_at_end=False),
                verbose=0,
            ),
        )
        start = time.perf_counter()
        results = tuner.fit()
        seconds = time.perf_counter() - start
        if len(results) != trials or results.errors:
            raise RuntimeError(f"Ray Tune ran {len(results)} trials, {len(results.errors)} of them failed")
        spent = [result.metrics.get("seconds", 0.0) / max(1, reports - 1) for result in results]
        return files_of(Path(place), trials, reports) | {"seconds": seconds, "per_report": spent}

    async def close(self) -> None:
        import ray  # noqa: PLC0415

        ray.shutdown()
        if self._temporary is not None:
            self._temporary.cleanup()


class OptunaThreads:
    """`study.optimize(n_jobs=2)` on a journal file."""

    async def prepare(self, directory: str) -> dict[str, Any]:
        import optuna  # noqa: PLC0415 - only this child pays for it

        optuna.logging.set_verbosity(optuna.logging.WARNING)
        await self.measure(str(Path(directory, "warm-up")), _WARM_UP)
        return {}

    async def measure(self, place: str, trials: int) -> dict[str, Any]:
        return await asyncio.to_thread(self._run, place, trials)

    def _run(self, place: str, trials: int) -> dict[str, Any]:
        import optuna  # noqa: PLC0415
        from optuna.storages import JournalStorage  # noqa: PLC0415
        from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415

        def objective(trial: optuna.Trial) -> float:
            x, _ = trial.suggest_float("x", 0, 1), trial.suggest_float("y", 0, 1)
            for iteration in range(REPORTS):
                trial.report(x / (iteration + 1), iteration + 1)
            return x / REPORTS

        os.makedirs(place)
        start = time.perf_counter()
        study = optuna.create_study(
            storage=JournalStorage(JournalFileBackend(os.path.join(place, "journal.log"))),
            sampler=optuna.samplers.RandomSampler(seed=7),
        )
        study.optimize(objective, n_trials=trials, n_jobs=WORKERS)
        seconds = time.perf_counter() - start
        done = study.get_trials(deepcopy=False)
        rows = sum(len(trial.intermediate_values) for trial in done)
        if len(done) != trials or rows != trials * REPORTS:
            raise RuntimeError(f"Optuna ran {len(done)} trials with {rows} reports")
        return {"seconds": seconds, "rows": rows, "files": 1}

    async def close(self) -> None:
        pass
