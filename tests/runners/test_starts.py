"""One start of a trial as its driver sees it: each report is answered, and nothing of it stays."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from asynctune import ConfigError, TrialFailedError, TrialReport
from asynctune.runners.starts import Start
from tests.runners.world import Reports, task


class Arrivals:
    def __init__(self):
        self.told = []

    def answered(self, told):
        self.told.append(told)


def start_with(tmp_path, result):
    async def report(made):
        if isinstance(result, BaseException):
            raise result
        return result

    return Start("a.1", task(tmp_path), report)


def item(checkpoint=None, told=None):
    return TrialReport(metrics={}, checkpoint=checkpoint), told, asyncio.get_running_loop().create_future()


def test_its_marker_is_there_until_it_is_removed(tmp_path):
    start = start_with(tmp_path, "CONTINUE")
    other = Start("a.2", start.task, Reports())
    start.prepare()
    other.prepare()
    assert Path(start.marker).parent == tmp_path / "t1"
    start.remove_marker()
    start.remove_marker()
    assert [path.name for path in (tmp_path / "t1").iterdir()] == [Path(other.marker).name]
    other.remove_marker()


def test_the_directory_is_known_by_its_own_name(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "t1").symlink_to(tmp_path / "real")
    start = Start("a.1", task(tmp_path), Reports())
    start.prepare()
    assert start.real_dir == str(tmp_path / "real")
    start.remove_marker()


async def test_the_first_decision_stays(tmp_path):
    start = start_with(tmp_path, "STOP")
    made = item()
    await start.answer(made, Arrivals())
    assert made[-1].result() == {"decision": "STOP"}
    start._report = start_with(tmp_path, "CONTINUE")._report
    made = item()
    await start.answer(made, Arrivals())
    assert made[-1].result() == {"decision": "CONTINUE"}
    assert start.decision == "STOP"


@pytest.mark.parametrize(
    "error", [ConfigError("not so"), TrialFailedError("gone"), RuntimeError("odd")], ids=repr
)
async def test_what_is_not_taken_is_removed(tmp_path, error):
    """A mistake of the trial is raised to it; anything else ends the start."""
    start, arrivals = start_with(tmp_path, error), Arrivals()
    staged = tmp_path / "t1" / ".staged-x"
    staged.mkdir()
    (staged / "file").touch()
    told = {"waits": 4}
    made = item({"path": str(staged)}, told)
    if isinstance(error, ConfigError):
        await start.answer(made, arrivals)
        assert made[-1].exception() is error
    else:
        with pytest.raises(type(error)):
            await start.answer(made, arrivals)
        assert made[-1].cancelled()
    assert not staged.exists()
    assert arrivals.told == [told]


async def test_reports_that_nobody_took_are_refused(tmp_path):
    start = start_with(tmp_path, "CONTINUE")
    made = [item(), item()]
    for each in made:
        start.inbox.put_nowait(each)
    start.inbox.put_nowait(None)
    start.refuse()
    assert all(each[-1].cancelled() for each in made)
    assert start.inbox.empty()
