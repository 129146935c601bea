from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Final

import psutil
import pytest
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from asynctune.demo.training import Digits, DigitsModel
from asynctune.demo.workers import Worker, WorkerDiedError

ROOT: Final = Path(__file__).parent.parent.parent
CONFIG: Final = {
    "hidden": [16],
    "activation": "tanh",
    "learning_rate": 1e-3,
    "alpha": 1e-4,
    "batch_size": 64,
    "seed": 5,
}

# Starts workers, gives each a task without end, says their pids and then waits to be killed.
DRIVER: Final = """
import asyncio, json, sys
from asynctune.demo.workers import Worker

async def main():
    async with asyncio.TaskGroup() as group:
        workers = [Worker.start() for _ in range(2)]
        if sys.argv[2] == "starting":
            for each in workers:
                group.create_task(each)
            await asyncio.sleep(0.1)
            print("started", flush=True)
        else:
            for each in [await each for each in workers]:
                task = {"checkpoint": None, "until": 10**9, "directory": f"{sys.argv[1]}/{each.pid}"}
                messages = each.perform(task | {"config": json.loads(sys.argv[3])})
                await anext(messages)
                print(each.pid, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.fixture
def expected():
    """The metrics of a model's first three epochs."""
    model = DigitsModel(CONFIG, Digits.load())
    with threadpool_limits(1):  # as in the worker: more threads sum in another order
        return [model.train_epoch() for _ in range(3)]


async def test_a_worker_gives_what_the_model_gives(tmp_path, expected):
    worker = await Worker.start()
    try:
        task = {"config": CONFIG, "checkpoint": None, "until": 2, "directory": str(tmp_path / "a")}
        first = [message async for message in worker.perform(task)]
        task |= {"checkpoint": first[1]["checkpoint"], "until": 3, "directory": str(tmp_path / "b")}
        second = [message async for message in worker.perform(task)]
        test = [message async for message in worker.perform(task | {"test": True})]
    finally:
        await worker.aclose()
    messages = [message for message in first + second if "done" not in message]
    assert [message["metrics"] for message in messages] == expected
    assert [message["epoch"] for message in messages] == [1, 2, 3]
    assert messages[0]["ended_at"] <= messages[1]["ended_at"] <= messages[2]["ended_at"]
    assert test[0]["done"]
    assert 0.5 < test[0]["test_accuracy"] <= 1


async def test_a_failed_trial_is_told_and_the_worker_goes_on(tmp_path):
    worker = await Worker.start()
    try:
        task = {"config": CONFIG, "checkpoint": str(tmp_path), "until": 1, "directory": str(tmp_path / "a")}
        messages = [message async for message in worker.perform(task)]
        assert len(messages) == 1
        assert messages[0]["storage"] is False
        assert "is no checkpoint of this model" in messages[0]["error"]
        messages = [message async for message in worker.perform(task | {"checkpoint": None})]
        assert messages[-1] == {"done": True}
    finally:
        await worker.aclose()


async def test_a_killed_worker_is_noticed(tmp_path):
    worker = await Worker.start()
    task = {"config": CONFIG, "checkpoint": None, "until": 10**9, "directory": str(tmp_path / "a")}
    messages = worker.perform(task)
    await anext(messages)
    os.kill(worker.pid, signal.SIGKILL)
    with pytest.raises(WorkerDiedError, match=r"ended with exit code -9"):
        async for _ in messages:
            pass
    await worker.aclose()


async def test_closing_ends_a_worker_in_the_middle_of_its_task(tmp_path):
    worker = await Worker.start()
    task = {"config": CONFIG, "checkpoint": None, "until": 10**9, "directory": str(tmp_path / "a")}
    messages = worker.perform(task)
    await anext(messages)
    await worker.aclose()
    assert not psutil.pid_exists(worker.pid)
    await messages.aclose()


@pytest.mark.parametrize("when", ["starting", "training"])
def test_workers_end_by_themselves_when_the_driver_is_killed(tmp_path, when):
    command = [sys.executable, "-c", DRIVER, str(tmp_path), when, json.dumps(CONFIG)]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as driver:
        assert driver.stdout is not None
        driver.stdout.readline()
        if when == "training":
            driver.stdout.readline()
        children = psutil.Process(driver.pid).children(recursive=True)
        assert len(children) == 2
        driver.kill()
    _, alive = psutil.wait_procs(children, timeout=30)
    assert not alive
