"""A driver on a test cluster that others kill: `python -m tests.runners.ray_driver SETTINGS`, which is `Driver.text()`.

Prints a line of JSON for each trial that fails, and one at the end.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from asynctune import (
    CheckpointConfig,
    FailureConfig,
    RayRunner,
    RunConfig,
    SyncConfig,
    TuneConfig,
    Tuner,
)
from tests.runners import ray_trials

__all__ = ["DriverSettings"]


@dataclass(frozen=True, kw_only=True)
class DriverSettings:
    """What it runs.

    Attributes:
        address: Of the cluster.
        local_dir: Where the experiment is.
        name: Its name.
        restore: Go on with it.
        config: For each trial, see `ray_trials`.
        trials: How many.
        max_failures: For each.
        tells: Whether failed trials are told; then a restore has to do so, too.
        runner: Options of the `RayRunner`.
        sync: Settings of the `SyncConfig`, which a restore reads from the experiment, but for the `storage_options`.
    """

    address: str | None
    local_dir: str
    name: str
    restore: bool = False
    config: dict[str, Any] = field(default_factory=dict)
    trials: int = 4
    max_failures: int = 0
    num_to_keep: int | None = None
    tells: bool = False
    runner: dict[str, Any] = field(default_factory=dict)
    sync: dict[str, Any] = field(default_factory=dict)

    def command(self) -> list[str]:
        """Runs it."""
        return [sys.executable, "-m", "tests.runners.ray_driver", json.dumps(asdict(self))]


class _Tells:
    def on_trial_error(self, trial: Any) -> None:
        print(json.dumps({"error": trial.error, "at": time.monotonic()}), flush=True)


async def main(settings: DriverSettings) -> None:
    told = [_Tells()] if settings.tells else []
    runner = RayRunner(settings.address, **settings.runner)
    if settings.restore:
        tuner = await Tuner.restore(
            f"{settings.local_dir}/{settings.name}",
            ray_trials.train,
            runner=runner,
            run_config=RunConfig(callbacks=told, verbose=0),
            storage_options=settings.sync.get("storage_options"),
        )
    else:
        tuner = Tuner(
            ray_trials.train,
            param_space=settings.config,
            tune_config=TuneConfig(metric="loss", mode="min", num_samples=settings.trials),
            run_config=RunConfig(
                name=settings.name,
                local_dir=settings.local_dir,
                checkpoint_config=CheckpointConfig(num_to_keep=settings.num_to_keep),
                failure_config=FailureConfig(max_failures=settings.max_failures),
                sync_config=SyncConfig(**settings.sync),
                callbacks=told,
                verbose=0,
            ),
            runner=runner,
        )
    results = await tuner.fit()
    print(json.dumps({"ended": len(results), "errors": results.num_errors}), flush=True)


if __name__ == "__main__":
    asyncio.run(main(DriverSettings(**json.loads(sys.argv[1]))))
