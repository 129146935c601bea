"""Owns the experiments that `cluster.py` compares on one Ray cluster: trials that do nothing but report.

Each is a subject for `_children`, and joins a cluster that was started before. `measure` runs one whole experiment in
a new directory, from the call that starts it to its return, and counts afterwards what is on the disk. Each trial says
how many seconds passed between its first report and its last.

- asynctune: `RayRunner`; a function, each of whose reports is answered before it goes on.
- Ray Tune: as in `tuner.py`, whose `RayTune` this is: a class whose results come in batches of five, actors that are
  used again, no output, and loggers only for the files that asynctune writes too.

For both, the process has joined the cluster before and has run a small experiment; actors start within the time.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import Any, Final

from _tuners import REPORTS, RayTune, files_of

from asynctune import RayRunner, RunConfig, TuneConfig, Tuner, session, uniform

__all__ = ["OnRay", "RayTuneThere", "join", "leave"]

_WARM_UP: Final = 8  # trials


def join(address: str) -> None:
    """Join the cluster."""
    import ray  # noqa: PLC0415 - only some of the children pay for it

    ray.init(address=address, log_to_driver=False, logging_level="ERROR")


def leave() -> None:
    """Leave it."""
    import ray  # noqa: PLC0415

    ray.shutdown()


def _train(config: dict[str, Any]) -> None:
    first = None
    for iteration in range(config["reports"]):
        now = time.perf_counter()
        first = now if first is None else first
        session.report({"loss": config["x"] / (iteration + 1), "seconds": now - first})


class OnRay:
    """`asynctune.Tuner` with a `RayRunner`."""

    async def prepare(self, directory: str, address: str, worker_dir: str) -> dict[str, Any]:
        self._worker_dir = worker_dir
        join(address)
        await self.measure(f"{directory}/warm-up", _WARM_UP, REPORTS)
        return {}

    async def measure(self, place: str, trials: int, reports: int) -> dict[str, Any]:
        path = Path(place)
        tuner = Tuner(
            _train,
            param_space={"x": uniform(0, 1), "reports": reports},
            tune_config=TuneConfig(metric="loss", mode="min", num_samples=trials),
            run_config=RunConfig(name=path.name, local_dir=path.parent, verbose=0),
            runner=RayRunner(worker_dir=self._worker_dir),
        )
        start = time.perf_counter()
        results = await tuner.fit()
        seconds = time.perf_counter() - start
        if results.num_terminated != trials:
            raise RuntimeError(
                f"{results.num_terminated} of {trials} trials ended well: {results.errors[:1]}"
            )
        found = await asyncio.to_thread(files_of, path, trials, reports)
        spent = [each.metrics["seconds"] / max(1, reports - 1) for each in results]
        return found | {"seconds": seconds, "per_report": spent}

    async def close(self) -> None:
        leave()


class RayTuneThere(RayTune):
    """`ray.tune.Tuner` on the same cluster."""

    async def prepare(self, directory: str, address: str = "") -> dict[str, Any]:
        self._address = address
        return await super().prepare(directory)

    def join(self) -> None:
        join(self._address)

    def trainable(self) -> Any:
        from ray import tune  # noqa: PLC0415

        class Step(tune.Trainable):  # type: ignore[misc]
            first: float | None

            def setup(self, config: dict[str, Any]) -> None:
                self.reset_config(config)

            def reset_config(self, new_config: dict[str, Any]) -> bool:
                self.x, self.first = new_config["x"], None
                return True

            def step(self) -> dict[str, Any]:
                now = time.perf_counter()
                self.first = now if self.first is None else self.first
                return {"loss": self.x / (self.iteration + 1), "seconds": now - self.first}

        return Step
