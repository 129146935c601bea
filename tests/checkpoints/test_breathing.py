"""The pause of a long loop: made in a thread, never on an event loop."""

from __future__ import annotations

import asyncio

import pytest

from asynctune.checkpoints import breathing
from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.checkpoints.tree import scan_tree


@pytest.fixture
def pauses(monkeypatch):
    seen: list[float] = []

    def sleep(seconds: float) -> None:
        seen.append(seconds)

    # Of this module alone: `time.sleep` itself belongs to everybody.
    monkeypatch.setattr(breathing, "time", type("Time", (), {"sleep": staticmethod(sleep)}))
    return seen


async def test_a_thread_gives_the_interpreter_away_without_losing_time(pauses):
    await asyncio.to_thread(breathe)
    assert pauses == [0]


async def test_a_loop_is_not_made_to_wait(pauses):
    breathe()
    assert pauses == []


async def test_the_watch_that_fails_a_blocked_loop_finds_nothing():
    breathe()
    await asyncio.to_thread(breathe)


def test_a_program_without_any_loop_pauses_too(pauses):
    breathe()
    assert pauses == [0]


def test_a_long_scan_pauses_now_and_then(pauses, tmp_path):
    for number in range(2 * FILES_BETWEEN_BREATHS):
        (tmp_path / f"{number}.bin").touch()
    assert len(scan_tree(str(tmp_path)).files) == 2 * FILES_BETWEEN_BREATHS
    # Twice on the way through the directory, and again when the paths are checked.
    assert len(pauses) >= 3
    assert set(pauses) == {0}
