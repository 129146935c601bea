from __future__ import annotations

import asyncio
import io

import pytest
from rich.console import Console

from asynctune import ExperimentStore, TrialStatus
from asynctune.demo.display import Display
from asynctune.demo.driver import TEST_KEY
from asynctune.demo.experiment import run
from asynctune.demo.scheduler import METRIC
from asynctune.errors import ConfigError, StorageError

PLAN = {"trials": 3, "epochs": 2}


@pytest.fixture
def display():
    with Display(Console(file=io.StringIO())) as display:
        yield display


async def test_the_whole_run_never_blocks_the_loop(tmp_path, display):
    # In this process, where a blocking call of the driver fails the test.
    directory = str(tmp_path / "demo")
    await run(directory, PLAN, 2, display)
    async with ExperimentStore.open(directory, mode="read") as store:
        assert [trial.status for trial in store.trials] == [TrialStatus.TERMINATED] * 3
        best = store.best_trial(METRIC, "max")
        assert best is not None
        assert best.last_result["training_iteration"] == 2
        assert 0 < store.metadata[TEST_KEY] <= 1
    with pytest.raises(ConfigError, match="begun with --trials 3, not 4"):
        await run(directory, {"trials": 4}, 2, display)
    await run(directory, {}, 2, display)


class Listening(Display):
    def __init__(self, text: str) -> None:
        super().__init__(Console(file=io.StringIO()))
        self._text = text
        self.heard = asyncio.Event()

    def line(self, text: str, style: str = "") -> None:
        if self._text in text:
            self.heard.set()


async def test_a_cancelled_run_leaves_nothing_running(tmp_path):
    directory = str(tmp_path / "demo")
    display = Listening("at epoch 1")
    task = asyncio.ensure_future(run(directory, PLAN, 2, display))
    await display.heard.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    async with ExperimentStore.open(directory, mode="read") as store:
        assert TrialStatus.RUNNING not in {trial.status for trial in store.trials}
        assert store.writer_info is None  # it was closed, not dropped


async def test_a_disk_that_refuses_is_not_the_trials_fault(tmp_path, display):
    directory = tmp_path / "demo"
    directory.mkdir()
    (directory / ".demo").write_text("where the workers want to write")
    with pytest.raises(StorageError, match=r"\.demo"):
        await run(str(directory), PLAN, 1, display)
    (directory / ".demo").unlink()
    await run(str(directory), PLAN, 1, display)
    async with ExperimentStore.open(directory, mode="read") as store:
        assert {trial.status for trial in store.trials} == {TrialStatus.TERMINATED}
