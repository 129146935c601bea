from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys

import pytest

from asynctune.store.store import ExperimentStore
from tests.crash.racing import race
from tests.killing import ROOT


@pytest.mark.timeout(90)
async def test_of_processes_that_open_in_one_moment_one_gets_it(tmp_path):
    outcomes = await race(tmp_path, 12)
    assert outcomes["open"] == 12


PARENT = """
import asyncio, json, os, sys, time
from asynctune import ExperimentStore, AsynctuneError
async def main():
    store = await ExperimentStore.open(sys.argv[1])
    store.add_trial({}, "t")
    await store.flush()
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        told = []
        try:
            store.add_trial({}, "from the child")
        except AsynctuneError as error:
            told.append(type(error).__name__)
        os.write(done, json.dumps([os.getpid(), told]).encode() + b"\\n")
        sys.stdin.readline()  # outlives the parent, until it is told
        try:
            store.add_trial({}, "from the orphan")
        except AsynctuneError as error:
            print(type(error).__name__, flush=True)
        os._exit(0)
    print(os.read(ready, 1000).decode().strip(), flush=True)
    await asyncio.Event().wait()
asyncio.run(main())
"""


@pytest.mark.timeout(60)
async def test_a_forked_child_that_outlives_a_killed_driver_holds_nothing(tmp_path):
    location = tmp_path / "exp"
    process = await asyncio.to_thread(
        subprocess.Popen,
        [sys.executable, "-c", PARENT, str(location)],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    with process.stdin as orders, process.stdout as answers:
        child, told = json.loads(await asyncio.to_thread(answers.readline))
        assert told == ["StoreClosedError"]
        process.kill()
        assert await asyncio.to_thread(process.wait) == -signal.SIGKILL
        os.kill(child, 0)  # it lives
        async with ExperimentStore.open(location) as store:  # ... and keeps nobody out
            assert [trial.trial_id for trial in store.trials] == ["t"]
            orders.write(b"\n")
            orders.flush()
            assert await asyncio.to_thread(answers.readline) == b"StoreClosedError\n"
            store.set_metadata("k", 1)
            await store.flush()
    async with ExperimentStore.open(location, "read") as reader:
        assert [trial.trial_id for trial in reader.trials] == ["t"]
