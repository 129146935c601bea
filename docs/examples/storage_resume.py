"""Goes on with an experiment of the other storage examples, whatever ended it.

    python storage_resume.py /tmp/mypath/my-tune-exp
    python storage_resume.py s3://my-checkpoints-bucket/path/my-tune-exp

From a bucket it is brought to `~/asynctune_results`, or below `TUNE_RESULT_DIR`; only the checkpoints that trials go on
from are downloaded.

Ray Tune's script with other imports, and an `await`, also for `restore`, which reads the experiment.
"""

from __future__ import annotations

import asyncio
import sys

import asynctune as tune


async def main() -> None:
    tuner = await tune.Tuner.restore(
        sys.argv[1],
        resume_errored=True,
    )
    await tuner.fit()


asyncio.run(main())
