"""An experiment on a network filesystem, which any machine that mounts it can look at, and go on with.

    python storage_shared.py /path/to/shared/storage

Ray Tune's script with other imports, and an `await`.
"""

from __future__ import annotations

import asyncio
import sys

from your_module import my_trainable as trainable

import asynctune as air
import asynctune as tune


async def main() -> None:
    tuner = tune.Tuner(
        trainable,
        run_config=air.RunConfig(
            name="experiment_name",
            local_dir=sys.argv[1],
            sync_config=tune.SyncConfig(syncer=None),
        ),
    )
    await tuner.fit()


asyncio.run(main())
