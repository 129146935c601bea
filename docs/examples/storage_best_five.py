"""An experiment that keeps the five best checkpoints of each trial; kill it, and `storage_resume.py` goes on.

    python storage_best_five.py /tmp/mypath
    python storage_resume.py /tmp/mypath/my-tune-exp

Ray Tune's script with other imports, and an `await`; there is no cluster to connect to. Checkpoints are in
`/tmp/mypath/my-tune-exp/<trial_name>/checkpoint_<step>`.
"""

from __future__ import annotations

import asyncio
import sys

from your_module import my_trainable

import asynctune as air
import asynctune as tune


async def main() -> None:
    tuner = tune.Tuner(
        my_trainable,
        run_config=air.RunConfig(
            name="my-tune-exp",
            local_dir=sys.argv[1],
            sync_config=tune.SyncConfig(),
            checkpoint_config=air.CheckpointConfig(
                checkpoint_score_attribute="max-auc",
                checkpoint_score_order="max",
                num_to_keep=5,
            ),
        ),
    )
    await tuner.fit()


asyncio.run(main())
