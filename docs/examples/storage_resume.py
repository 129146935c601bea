"""Goes on with an experiment of the other storage examples, whatever ended it.

    python storage_resume.py /tmp/mypath/my-tune-exp

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
