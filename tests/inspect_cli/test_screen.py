"""What a person at a terminal is told while nothing can be shown yet."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from asynctune.inspect.exits import Exit
from asynctune.inspect.screen import Screen
from tests.inspect_cli.reports import REPORTS


class Stderr:
    def __init__(self, *, terminal: bool) -> None:
        self.isatty = lambda: terminal


@pytest.mark.parametrize("terminal", [True, False], ids=["terminal", "pipe"])
def test_who_waits_for_a_bucket_is_told(monkeypatch, capsys, terminal):
    told: list[str] = []
    monkeypatch.setattr("asynctune.inspect.screen._PATIENCE_S", 0.0)
    monkeypatch.setattr("asynctune.inspect.screen.sys.stderr", Stderr(terminal=terminal))
    monkeypatch.setattr("asynctune.inspect.screen.click.echo", lambda text, err: told.append(text))
    report, view = REPORTS["checkpoints_of_a_copy"]

    async def question() -> tuple[str, Any, Any]:
        for _ in range(5):
            await asyncio.sleep(0)
        return "checkpoints", report, view

    assert Screen(waits_for="s3://bucket/digits").answer(question()) is Exit.FINE
    assert told == (["waiting for s3://bucket/digits; Ctrl-C ends it"] if terminal else [])
    assert "in the bucket" in capsys.readouterr().out


def test_a_quick_answer_is_not_waited_for(monkeypatch, capsys):
    told: list[str] = []
    monkeypatch.setattr("asynctune.inspect.screen.sys.stderr", Stderr(terminal=True))
    monkeypatch.setattr("asynctune.inspect.screen.click.echo", lambda text, err: told.append(text))
    report, view = REPORTS["gc"]

    async def question() -> tuple[str, Any, Any]:
        return "gc", report, view

    assert Screen(waits_for="s3://bucket/digits").answer(question()) is Exit.FINE
    assert told == []
    assert "left behind" in capsys.readouterr().out
