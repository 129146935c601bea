"""A bucket in this process's memory."""

from __future__ import annotations

import os

import pytest

from asynctune.storage.memory import MemoryStorage


@pytest.fixture
def bucket():
    """Its URI, with a prefix."""
    name = f"bucket-{os.urandom(6).hex()}"
    yield f"memory://{name}/some/where"
    MemoryStorage.forget(name)
