"""An experiment whose copy is in a bucket: Ray Tune's shortest script for S3 or Google Cloud Storage.

    python storage_bucket.py s3://bucket-name/sub-path/
    python storage_resume.py s3://bucket-name/sub-path/experiment_name      # after a kill, on any machine

With other imports, and an `await`. On the machine itself the experiment is in `~/asynctune_results/experiment_name`, or
below `TUNE_RESULT_DIR`.
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
            sync_config=tune.SyncConfig(
                upload_dir=sys.argv[1],
                syncer="auto",
            ),
        ),
    )
    await tuner.fit()


asyncio.run(main())
