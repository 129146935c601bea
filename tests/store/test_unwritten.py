"""A driver is killed before its rows are in the result files: who reads gets them all the same."""

from __future__ import annotations

import asyncio
import json
import subprocess
import sys
import threading

import pytest

from asynctune.errors import CorruptStateError
from asynctune.files import LocalFiles
from asynctune.store import sources
from asynctune.store.opening import open_for_reading
from asynctune.store.store import ExperimentStore
from asynctune.store.unwritten import are_all_written
from tests.killing import ROOT

PROGRAM = """
import asyncio, os, sys
from asynctune import Checkpoint, ExperimentStore
from asynctune.results.projector import ResultFiles

async def main():
    if sys.argv[3] == "nothing":
        ResultFiles.add = lambda *_: None
    async with ExperimentStore.open(sys.argv[1], mode=sys.argv[2]) as store:
        if sys.argv[2] == "create":
            store.add_trial({"x": 1}, "t")
            store.add_trial({"x": 2}, "u")
        for trial_id in ("t", "u"):
            store.set_status(trial_id, "RUNNING")
            store.report(trial_id, {"loss": 1})
        await store.save_checkpoint("t", Checkpoint.from_dict({}))
        store.report("t", {"loss": 2})
        store.report("t", {"loss": 3})
        await store.flush()
        if sys.argv[3] == "then-cut":
            await store.history("t")  # they are in its file
            ResultFiles.add = lambda *_: None
        store.set_status("t", "PENDING")
        store.set_status("t", "RUNNING")
        store.report("t", {"loss": 4})
        store.report("t", {"loss": 5})
        await store.flush()
        os._exit(9)

asyncio.run(main())
"""


def run(location, mode, written):
    program = [sys.executable, "-c", PROGRAM, str(location), mode, written]
    done = subprocess.run(program, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 9, done.stderr


def in_file(location):
    path = location / "t" / "result.json"
    return [json.loads(line)["loss"] for line in path.read_text().splitlines()] if path.exists() else []


@pytest.fixture(params=["nothing", "then-cut"])
def killed(location, request):
    run(location, "create", request.param)
    assert in_file(location) == ([] if request.param == "nothing" else [1, 2, 3])
    return location


async def history(store, trial_id):
    return [row["loss"] for row in await store.history(trial_id)]


async def test_a_reader_has_them(killed, blockbuster):
    async with ExperimentStore.open(killed, "read") as reader:
        assert await history(reader, "t") == [1, 4, 5]
        assert await history(reader, "u") == [1]
        assert [row["config"] for row in await reader.history("u")] == [{"x": 2}]


async def test_the_next_writer_has_completed_the_files(killed):
    async with ExperimentStore.open(killed) as store:
        assert await history(store, "t") == [1, 4, 5]
    assert in_file(killed) == [1, 4, 5]
    opened = await asyncio.to_thread(open_for_reading, str(killed), LocalFiles())
    assert are_all_written(opened)


async def test_a_reader_that_was_there_before_has_them_after_a_refresh(location):
    async with ExperimentStore.open(location, "create") as store:
        for trial_id in ("t", "u"):
            store.add_trial({}, trial_id)
    async with ExperimentStore.open(location, "read") as reader:
        assert await history(reader, "t") == []
        run(location, "resume", "nothing")
        await reader.refresh()
        assert await history(reader, "t") == [1, 4, 5]
        async with ExperimentStore.open(location) as store:
            store.report("t", {"loss": 6})
            await store.flush()
            await reader.refresh()
            assert await history(reader, "t") == [1, 4, 5, 6]
        await reader.refresh()
        assert await history(reader, "t") == [1, 4, 5, 6]


async def test_damage_among_them_is_told_to_who_asks_for_rows(killed, monkeypatch):
    """What else there is can be read."""

    def damaged(*_arguments, **_settings):
        raise CorruptStateError("rows up to commit 3 are gone")

    async with ExperimentStore.open(killed, "read") as reader:
        monkeypatch.setattr("asynctune.store.sources.recover", damaged)
        assert reader.get_trial("t").num_results == 3
        with pytest.raises(CorruptStateError, match="are gone"):
            await reader.history("t")


async def test_what_is_read_while_more_is_found_is_not_kept(location, monkeypatch):
    run(location, "create", "nothing")
    go, real = threading.Event(), sources.recover  # type: ignore[attr-defined]

    def slow(*arguments, **settings):
        found = real(*arguments, **settings)
        go.wait(10)
        return found

    async with ExperimentStore.open(location, "read") as reader:
        monkeypatch.setattr(sources, "recover", slow)
        reading = asyncio.create_task(reader.history("t"))
        await asyncio.sleep(0.2)
        await asyncio.to_thread(run, location, "resume", "nothing")
        await reader.refresh()
        go.set()
        assert len(await reading) == 3
        assert len(await reader.history("t")) == reader.get_trial("t").num_results == 6
