"""An experiment whose copy is in a bucket, with the five best checkpoints of each trial; any machine can go on with it.

    python storage_cloud.py s3://my-checkpoints-bucket/path/ /tmp/mypath
    python storage_resume.py s3://my-checkpoints-bucket/path/my-tune-exp

Ray Tune's script with other imports, and an `await`; there is no cluster to connect to. Credentials are found where the
cloud's own tools look for them: `AWS_*` variables and profiles, `GOOGLE_APPLICATION_CREDENTIALS`. Checkpoints are
in `/tmp/mypath/my-tune-exp/<trial_name>/checkpoint_<step>`, and in the bucket in `path/my-tune-exp/` likewise.
"""

from __future__ import annotations

import asyncio
import sys

from your_module import my_trainable

import asynctune as air
import asynctune as tune


async def main() -> None:
    # We recommend cloud storage checkpointing as it survives the machine
    sync_config = tune.SyncConfig(
        upload_dir=sys.argv[1],  # requires credentials
    )

    tuner = tune.Tuner(
        my_trainable,
        run_config=air.RunConfig(
            name="my-tune-exp",
            local_dir=sys.argv[2],
            sync_config=sync_config,
            checkpoint_config=air.CheckpointConfig(
                checkpoint_score_attribute="max-auc",
                checkpoint_score_order="max",
                num_to_keep=5,
            ),
        ),
    )
    await tuner.fit()


asyncio.run(main())
