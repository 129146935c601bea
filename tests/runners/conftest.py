"""Runners that are closed after each test."""

from __future__ import annotations

import pytest

from asynctune import ProcessRunner


@pytest.fixture
async def start(monkeypatch):
    """Starts a `ProcessRunner` for a trainable."""
    monkeypatch.delenv("PYTHONUNBUFFERED", raising=False)  # with it nothing printed is ever held back
    runners = []

    async def make(trainable, *, hung_after_s=60.0, stop_grace_s=60.0, **options):
        runner = ProcessRunner(2, hung_after_s=hung_after_s, stop_grace_s=stop_grace_s)
        runners.append(runner)
        await runner.start(trainable, options)
        return runner

    yield make
    for runner in runners:
        await runner.aclose()
