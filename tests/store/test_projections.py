from __future__ import annotations

import asyncio
import json
import logging
import threading

import pytest

from asynctune import ExperimentStore, StorageError
from asynctune.results import rows
from asynctune.testing import FaultyFiles


async def test_a_fault_in_a_projection_is_told_and_ends_nothing_else(tmp_path, monkeypatch, caplog):
    location = tmp_path / "exp"

    def broken(*_args, **_kwargs):
        raise RuntimeError("a bug")

    with monkeypatch.context() as patched, caplog.at_level(logging.ERROR):
        patched.setattr("asynctune.results.lines.expand", broken)
        async with ExperimentStore.open(location) as store:
            events = store.events()
            store.add_trial({}, trial_id="t")
            store.set_status("t", "RUNNING")
            store.report("t", {"loss": 1.0})
            await store.flush()
            while (event := await anext(events)).kind != "write_failed":
                pass
            assert "the journal keeps all rows" in event.message
            store.report("t", {"loss": 0.5})
            await store.flush()
    assert "the journal keeps all rows" in caplog.text
    async with ExperimentStore.open(location) as store:
        assert store.get_trial("t").num_results == 2
    lines = (location / "t" / "result.json").read_text().splitlines()
    assert [json.loads(line)["loss"] for line in lines] == [1.0, 0.5]
    assert rows.expand is not broken


async def test_a_close_out_of_time_waits_for_the_save_before_it_lets_go(tmp_path, monkeypatch):
    """Nobody else may open the experiment while this one still copies files into it."""
    files = FaultyFiles()
    store = await ExperimentStore.open(tmp_path / "exp", files=files)
    store.add_trial({}, trial_id="t")
    source = tmp_path / "source"
    source.mkdir()
    (source / "model").write_bytes(b"x" * 10_000)
    loop, entered, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()
    real = files.write

    def write(fd, data):
        if len(data) == 10_000:
            loop.call_soon_threadsafe(entered.set)
            go_on.wait(20)
        return real(fd, data)

    monkeypatch.setattr(files, "write", write)
    saving = asyncio.create_task(store.save_checkpoint("t", source))
    await entered.wait()
    closing = asyncio.create_task(store.aclose(drain_timeout_s=0.01))
    await asyncio.sleep(0.1)
    assert not closing.done()
    go_on.set()
    with pytest.raises(StorageError, match="was still waited for"):
        await closing
    with pytest.raises(StorageError):
        await saving
    async with ExperimentStore.open(tmp_path / "exp") as store:
        assert store.checkpoints("t") == ()
