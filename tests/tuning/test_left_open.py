"""A driver that is killed after its last trial has ended, before it has closed the experiment."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys

from asynctune import Checkpoint, ExperimentStore, ResultGrid, StorageError, Tuner
from asynctune.tuning.origins import Origin
from tests.killing import ROOT

PROGRAM = """
import asyncio, os, sys
from asynctune import RunConfig, SyncConfig, Tuner, grid_search
from asynctune.results.projector import ResultFiles
from asynctune.store.engine import Engine
from tests.tuning import trainables

async def killed(self, timeout_s):
    await self.flush()
    os._exit(9)

async def main():
    Engine.close = killed
    ResultFiles.add = lambda *_: None
    sync = SyncConfig(upload_dir=sys.argv[2] or None, sync_timeout=20)
    run = RunConfig(name="exp", local_dir=sys.argv[1], verbose=0, sync_config=sync)
    await Tuner(trainables.coroutine, param_space={"x": grid_search([1, 2])}, run_config=run).fit()

asyncio.run(main())
"""


def killed(local_dir, upload_dir=""):
    program = [sys.executable, "-c", PROGRAM, str(local_dir), str(upload_dir)]
    done = subprocess.run(program, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr
    return local_dir / "exp"


async def histories(results):
    return [[row["training_iteration"] for row in await result.history()] for result in results]


def in_files(path):
    return [
        [json.loads(line)["training_iteration"] for line in file.read_text().splitlines()]
        for file in sorted(path.glob("*/result.json"))
    ]


ALL = [list(range(1, 11))] * 2


async def test_its_results_have_all_rows(tmp_path, monkeypatch):
    path = killed(tmp_path)
    results = await ResultGrid.load(path)
    assert results.num_terminated == 2
    opened: list[Origin] = []
    monkeypatch.setattr(Origin, "open", opened.append)
    assert await histories(results) == ALL
    assert not opened, "the state is read once, however many trials there are"
    assert not in_files(path)


async def test_results_from_before_somebody_went_on_are_no_older_than_the_files(tmp_path):
    path = killed(tmp_path)
    results = await ResultGrid.load(path)
    async with ExperimentStore.open(path):
        pass
    assert in_files(path) == ALL
    assert await histories(results) == ALL


async def test_a_restore_closes_it(tmp_path):
    path = killed(tmp_path)
    restored = await Tuner.restore(path)
    assert await histories(restored.get_results()) == ALL
    assert await histories(await restored.fit()) == ALL
    assert in_files(path) == ALL
    async with ExperimentStore.open(path, "read") as reader:
        assert reader.writer_info is None
    before = await ExperimentStore.open(path, "read")
    await before.aclose()
    await (await Tuner.restore(path)).fit()
    async with ExperimentStore.open(path, "read") as reader:
        assert reader.opening.epoch == before.opening.epoch, "nothing is left to be done"


async def test_fit_may_be_called_again(tmp_path):
    restored = await Tuner.restore(killed(tmp_path))
    first = await restored.fit()
    assert await restored.fit() is first
    assert restored.get_results() is first


async def test_one_that_cannot_be_closed_has_its_results_all_the_same(tmp_path, caplog):
    """Somebody else is about to."""
    path = killed(tmp_path)
    restored = await Tuner.restore(path)
    async with ExperimentStore.open(path):
        assert await histories(await restored.fit()) == ALL
    assert "was not closed by its last driver, and is left so" in caplog.text


async def test_one_where_nobody_can_write_has_its_results_all_the_same(tmp_path, caplog, monkeypatch):
    restored = await Tuner.restore(killed(tmp_path))

    def refuse(*_arguments, **_settings):
        raise StorageError("Read-only file system", operation="open")

    with monkeypatch.context() as patched:
        patched.setattr("asynctune.store.opening.lock_experiment", refuse)
        assert await histories(await restored.fit()) == ALL
    assert "is left so: Read-only" in caplog.text
    caplog.clear()
    assert await histories(await restored.fit()) == ALL
    assert not caplog.text
    assert in_files(tmp_path / "exp") == ALL


async def test_a_restore_brings_to_the_copy_what_was_not_there(tmp_path):
    copies = tmp_path / "copies"
    copies.mkdir()
    path = killed(tmp_path, copies)
    assert await histories(await (await Tuner.restore(path)).fit()) == ALL
    assert in_files(copies / "exp") == ALL
    copied = await ResultGrid.load(copies / "exp")
    assert await histories(copied) == ALL
    for result in copied:
        fetched = await result.fetch_checkpoint(tmp_path / result.trial_id)
        checkpoint = await asyncio.to_thread(Checkpoint.from_directory, fetched)
        assert await asyncio.to_thread(checkpoint.to_dict) == {"iteration": 10}


async def test_rows_that_somebody_has_cut_off_are_missed(tmp_path, caplog):
    path = killed(tmp_path)
    async with ExperimentStore.open(path):
        pass
    results = await ResultGrid.load(path)
    file = next(path.glob(f"*{results[0].trial_id}/result.json"))
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:4]))
    assert await histories(results[1:]) == ALL[1:]
    assert not caplog.text
    assert await histories(results[:1]) == [ALL[0][:4]], "gone for good"
    assert "has had 10 rows, and 4 are left" in caplog.text


RUNS = """
import asyncio, sys
from asynctune import RunConfig, Tuner, session
from asynctune.results.projector import ResultFiles

async def train(config):
    for _ in range(2):
        await session.areport({"loss": 1.0})
    print("reported", flush=True)
    await asyncio.sleep(60)

ResultFiles.add = lambda *_: None
asyncio.run(Tuner(train, run_config=RunConfig(name="exp", local_dir=sys.argv[1], verbose=0)).fit())
"""


async def test_results_of_a_driver_that_is_killed_after_they_were_loaded(tmp_path):
    """While it lives, its files are trusted to come."""
    program = [sys.executable, "-c", RUNS, str(tmp_path)]
    with subprocess.Popen(program, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        try:
            assert driver.stdout is not None
            await asyncio.to_thread(driver.stdout.readline)
            results = await ResultGrid.load(tmp_path / "exp")
            while not any(each.metrics.get("training_iteration") == 2 for each in results):
                await asyncio.sleep(0.05)  # it is committed soon
                results = await ResultGrid.load(tmp_path / "exp")
        finally:
            driver.kill()
    assert await histories(results) == [[1, 2]]
