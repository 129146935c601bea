"""One run of an experiment, from the opened store to its results."""

from __future__ import annotations

import asyncio

import pytest

from asynctune import ConfigError, InlineRunner, RunConfig, Tuner, grid_search
from tests.tuning import trainables


def tuner(tmp_path, name, runner):
    return Tuner(
        trainables.coroutine,
        param_space={"x": grid_search([0, 1])},
        run_config=RunConfig(name=name, local_dir=tmp_path, verbose=0),
        runner=runner,
    )


class Counted(InlineRunner):
    """Counts how often it was closed."""

    closed = 0

    async def aclose(self):
        self.closed += 1
        await super().aclose()


async def test_a_runner_that_another_tuner_uses_is_left_alone(tmp_path):
    runner = Counted()
    await runner.start(trainables.coroutine, {})
    with pytest.raises(ConfigError, match="is in use"):
        await tuner(tmp_path, "second", runner).fit()
    assert runner.closed == 0
    assert not await asyncio.to_thread((tmp_path / "second").exists)
    await runner.aclose()


async def test_a_runner_is_closed_once_and_may_be_used_by_the_next(tmp_path):
    runner = Counted()
    for number, name in enumerate(("first", "second"), 1):
        results = await tuner(tmp_path, name, runner).fit()
        assert results.num_terminated == 2
        assert runner.closed == number, "again, it might be another Tuner's"
