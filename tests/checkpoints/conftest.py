"""What several tests of this room start from."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.homecoming import TreeReceiver
from tests.checkpoints.fakes import CountingFiles


@pytest.fixture
def threads() -> Iterator[DiskThreads]:
    made = DiskThreads()
    yield made
    made.close()


@pytest.fixture
async def head(tmp_path: Path, threads: DiskThreads) -> AsyncIterator[TreeReceiver]:
    """Takes checkpoints that come home to the trial `head`."""
    receiver = TreeReceiver(tmp_path / "head", files=CountingFiles(), threads=threads)
    yield receiver
    await receiver.aclose()
