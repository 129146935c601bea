"""How a Tuner comes to its store, and a signal in the middle of that."""

from __future__ import annotations

import asyncio
import os
import signal

import pytest

from asynctune.config import RunConfig, TuneConfig
from asynctune.tuning.endings import Interrupted
from asynctune.tuning.opening import Opening
from asynctune.tuning.tuner import Tuner


async def one(config):
    return {"loss": 1.0}


@pytest.fixture
def hanging(monkeypatch):
    """Set when a store is being opened, which does not end by itself."""
    began = asyncio.Event()

    async def never(self):
        began.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(Opening, "_open", never)
    return began


async def kill_when(began: asyncio.Event, number: signal.Signals) -> None:
    await began.wait()
    os.kill(os.getpid(), number)


async def test_a_signal_ends_an_opening(tmp_path, hanging, capsys):
    tuner = Tuner(one, run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0))
    killing = asyncio.create_task(kill_when(hanging, signal.SIGTERM))
    with pytest.raises(SystemExit) as ended:
        await tuner.fit()
    await killing
    assert ended.value.code == 128 + signal.SIGTERM
    assert capsys.readouterr().err.endswith("stopped, nothing was begun\n")


async def test_it_says_from_what_a_restored_one_goes_on(tmp_path, monkeypatch, capsys, request):
    path = tmp_path / "exp"
    await Tuner(one, run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0)).fit()
    tuner = await Tuner.restore(str(path), one, tune_config=TuneConfig(num_samples=2))
    began = request.getfixturevalue("hanging")
    killing = asyncio.create_task(kill_when(began, signal.SIGTERM))
    with pytest.raises(SystemExit):
        await tuner.fit()
    await killing
    assert capsys.readouterr().err.endswith(f"stopped; to go on: Tuner.restore({str(path)!r})\n")


async def test_a_caller_that_is_cancelled_is_not_interrupted(tmp_path, hanging):
    tuner = Tuner(one, run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0))
    fitting = asyncio.create_task(tuner.fit())
    await hanging.wait()
    fitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await fitting


async def test_given_up_before_it_began_nothing_is_opened(tmp_path):
    tuner = Tuner(one, run_config=RunConfig(name="exp", local_dir=tmp_path, verbose=0))
    opening = Opening(tuner._plan, tmp_path / "exp", None)
    opening.give_up()
    with pytest.raises(Interrupted):
        await opening.open()
    assert not (tmp_path / "exp").exists()
