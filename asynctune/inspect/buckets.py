"""Owns which experiments are below a location, a bucket or a directory, and opening one to read."""

from __future__ import annotations

import asyncio
from contextlib import aclosing

from asynctune.errors import ConfigError, ExperimentNotFoundError
from asynctune.inspect.places import STATE_DIR, experiments_in
from asynctune.state.mirror.objects import together
from asynctune.storage.base import ObjectStorage
from asynctune.storage.uri import open_storage, parse_uri
from asynctune.storage.values import Directory
from asynctune.store.finding import local_path
from asynctune.store.place import is_uri
from asynctune.store.store import ExperimentStore

__all__ = ["experiments_at", "full_location", "location_below", "open_to_read"]


def full_location(location: str) -> str:
    """A URI in its plain form, or an absolute path.

    Raises:
        ConfigError: It cannot be a location.
    """
    return str(parse_uri(location)) if is_uri(location) else local_path(location)


def location_below(location: str, name: str) -> str:
    """Where the experiment of this name is, directly below a full location."""
    return f"{location.rstrip('/')}/{name}"


async def open_to_read(location: str) -> ExperimentStore:
    """Open an experiment, or its copy.

    Raises:
        ExperimentNotFoundError: There is none; a bucket itself never is one.
        AsynctuneError: It cannot be read.
    """
    if is_uri(location) and not parse_uri(location).prefix:
        raise ExperimentNotFoundError(f"there is no experiment in {parse_uri(location)}; check the location")
    return await ExperimentStore.open(location, mode="read")


async def experiments_at(location: str) -> list[str]:
    """Names of the experiments directly below a bucket's prefix or a directory, sorted.

    Raises:
        StorageError, OSError: It cannot be listed.
    """
    if not is_uri(location):
        return await asyncio.to_thread(experiments_in, local_path(location))
    storage = await open_storage(location)
    try:
        async with aclosing(storage.list_objects(delimiter="/")) as listing:
            names = [item.name.rstrip("/") async for item in listing if isinstance(item, Directory)]
        names = [name for name in names if not name.startswith(".")]
        begun = await together(*(_has_state(storage, name) for name in names))
        return [name for name, there in zip(names, begun, strict=True) if there]
    finally:
        await storage.aclose()


async def _has_state(storage: ObjectStorage, name: str) -> bool:
    try:
        listing = storage.list_objects(f"{name}/{STATE_DIR}/")
    except ConfigError:
        return False  # no key that asynctune makes begins so
    async with aclosing(listing):
        async for _ in listing:
            return True
    return False
