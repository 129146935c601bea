"""A Tuner that is killed between making the experiment and recording anything in it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from asynctune import (
    ExperimentExistsError,
    ExperimentLockedError,
    ExperimentNotFoundError,
    ExperimentStore,
    RunConfig,
    Tuner,
)
from tests.killing import ROOT

PROGRAM = """
import asyncio, os, sys
from asynctune import ExperimentStore

async def main():
    async with ExperimentStore.open(sys.argv[1], mode="create") as store:
        os._exit(9)

asyncio.run(main())
"""


async def trial(config):
    pass


@pytest.fixture
def killed(tmp_path):
    path = tmp_path / "exp"
    subprocess.run([sys.executable, "-c", PROGRAM, str(path)], cwd=ROOT, check=False)
    return path


async def test_it_can_be_begun_again(killed):
    with pytest.raises(ExperimentNotFoundError, match="never begun"):
        await Tuner.restore(killed, trial)
    run = RunConfig(name="exp", local_dir=killed.parent)
    assert len(await Tuner(trial, run_config=run).fit()) == 1
    with pytest.raises(ExperimentExistsError):
        await Tuner(trial, run_config=run).fit()


async def test_one_that_somebody_has_open_is_not_taken(tmp_path):
    async with ExperimentStore.open(tmp_path / "exp"):
        with pytest.raises(ExperimentLockedError):
            await Tuner(trial, run_config=RunConfig(name="exp", local_dir=tmp_path)).fit()
