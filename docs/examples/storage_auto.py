"""An experiment on one machine, as Ray Tune's storage guide configures it for a cluster without shared storage.

    python storage_auto.py ~/ray_results       # results in ~/ray_results/experiment_name

The guide's script with other imports, and an `await`. Here everything is written where it stays, so there is nothing
that `sync_period` would have to pace.
"""

from __future__ import annotations

import asyncio
import sys

from your_module import my_trainable as trainable

import asynctune as tune
from asynctune import RunConfig


async def main() -> None:
    tuner = tune.Tuner(
        trainable,
        run_config=RunConfig(
            name="experiment_name",
            local_dir=sys.argv[1],
            sync_config=tune.SyncConfig(
                syncer="auto",
                sync_on_checkpoint=False,
                sync_period=60,
            ),
        ),
    )
    await tuner.fit()


asyncio.run(main())
