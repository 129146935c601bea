"""Owns what the arguments of `ExperimentStore.open` say of where an experiment is, and where its copy. No I/O.

A *place* is a directory of this machine, its copy in a bucket (or in another directory), or both. The copy is at
`<upload_dir>/<name of the directory>`. A location that is a URI names the copy itself; it is staged in a directory
below `local_dir` when it is opened for writing, and nowhere when it is read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from asynctune.checking import without_credentials
from asynctune.config import SyncConfig, result_dir
from asynctune.errors import ConfigError
from asynctune.storage.uri import StorageURI, parse_uri
from asynctune.store.finding import local_path

__all__ = ["Place", "Remote", "copy_of", "is_uri", "place_of"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Remote:
    """The copy of an experiment.

    Attributes:
        place: Where it is: `<upload_dir>/<name>`.
        uri: The same, taken apart; `None`: only the `Syncer` of `sync` knows what the place means.
        sync: How it is kept.
        options: Credentials and endpoint; never stored, never shown.
    """

    place: str
    uri: StorageURI | None
    sync: SyncConfig
    options: Mapping[str, Any] = field(repr=False, default_factory=dict)

    def __str__(self) -> str:
        """For messages, and for the note of where the copy is."""
        # what could be taken apart holds none, and a directory may have any name
        return str(without_credentials(self.place)) if self.uri is None else self.place

    @property
    def name(self) -> str:
        """The experiment's name."""
        return self.place.rstrip("/").rpartition("/")[2]

    @classmethod
    def at(cls, uri: StorageURI, sync: SyncConfig, options: Mapping[str, Any]) -> Remote:
        """The copy at a URI."""
        return cls(place=str(uri), uri=uri, sync=sync, options=options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an experiment is.

    Attributes:
        path: Its directory on this machine, absolute; empty for a copy that is only read.
        remote: Its copy; `None`: there is none, or (`remembers`) the experiment itself knows.
        remembers: No `sync_config` was given, or it is only read: the copy is where the experiment was made to have it.
        options: `storage_options`, for that case.
        by_uri: It was named by the URI of its copy.
        makes_parent: The directory above `path` is asynctune's own, and made if it is missing.
    """

    path: str
    remote: Remote | None = None
    remembers: bool = False
    options: Mapping[str, Any] = field(repr=False, default_factory=dict)
    by_uri: bool = False
    makes_parent: bool = False

    @property
    def name(self) -> str:
        """The experiment's name."""
        if not self.path and self.remote is not None:
            return self.remote.name
        return os.path.basename(self.path)

    @property
    def shown(self) -> str:
        """For messages and `location`."""
        return str(self.remote) if self.by_uri and self.remote is not None else self.path


def is_uri(location: object) -> bool:
    """Whether a location names a copy in a bucket, and no directory."""
    return isinstance(location, str) and "://" in location and not location.lower().startswith("file://")


def place_of(
    location: str | os.PathLike[str],
    mode: str,
    *,
    local_dir: str | os.PathLike[str] | None,
    sync_config: SyncConfig | None,
    storage_options: Mapping[str, Any] | None,
) -> Place:
    """Where the experiment is that these arguments mean.

    Raises:
        ConfigError: They contradict each other, or cannot be.
    """
    options = dict(storage_options or {})
    if sync_config is not None and sync_config.syncer not in (None, "auto"):
        return _by_syncer(location, mode, local_dir, sync_config, options)
    if is_uri(location):
        return _of_uri(parse_uri(location), mode, local_dir, sync_config, options)
    path = local_path(location)
    if local_dir is not None and mode != "read":
        if options:
            msg = f"storage_options are for buckets, and {path} is a copy in a directory; leave them out"
            raise ConfigError(msg)
        return copy_of(path, mode=mode, local_dir=local_dir, sync_config=sync_config)
    if mode == "read":
        return Place(path=path, remembers=True, options=_options(sync_config or SyncConfig(), options))
    if sync_config is None:
        return Place(path=path, remembers=True, options=options)
    if sync_config.upload_dir is None:
        if options:
            msg = f"storage_options are for buckets, and {path} has no upload_dir; leave them out"
            raise ConfigError(msg)
        return Place(path=path)
    uri = _child(parse_uri(_absolute(sync_config.upload_dir)), os.path.basename(path))
    return Place(path=path, remote=Remote.at(uri, sync_config, _options(sync_config, options)))


def copy_of(
    path: str,
    *,
    mode: str,
    local_dir: str | os.PathLike[str] | None,
    sync_config: SyncConfig | None,
) -> Place:
    """The place of a directory that turned out to be the copy of an experiment, and not the experiment itself."""
    return _of_uri(StorageURI("file", "", path), mode, local_dir, sync_config, {})


def _by_syncer(
    location: str | os.PathLike[str],
    mode: str,
    local_dir: str | os.PathLike[str] | None,
    sync: SyncConfig,
    options: dict[str, Any],
) -> Place:
    if options:
        msg = f"storage_options are for the built-in syncer; give them to the {type(sync.syncer).__name__}"
        raise ConfigError(msg)
    above = os.fspath(sync.upload_dir or "").rstrip("/")
    text = os.fsdecode(location).rstrip("/") if isinstance(location, str | os.PathLike) else ""
    parent, _, name = text.rpartition("/")
    if name and parent == above:
        remote = Remote(place=f"{above}/{name}", uri=None, sync=sync)
        if mode == "read":
            return Place(path="", remote=remote, by_uri=True)
        return Place(path=_staged(name, local_dir), remote=remote, by_uri=True, makes_parent=True)
    path = local_path(location)
    if local_dir is not None:
        msg = f"local_dir stages an experiment opened from its copy, and {path} is not in upload_dir; leave it out"
        raise ConfigError(msg)
    remote = Remote(place=f"{above}/{os.path.basename(path)}", uri=None, sync=sync)
    return Place(path=path, remote=remote)


def _staged(name: str, local_dir: str | os.PathLike[str] | None) -> str:
    return os.path.join(local_path(result_dir(None) if local_dir is None else local_dir), name)


def _of_uri(
    uri: StorageURI,
    mode: str,
    local_dir: str | os.PathLike[str] | None,
    sync_config: SyncConfig | None,
    options: dict[str, Any],
) -> Place:
    name = uri.prefix.rpartition("/")[2]
    if not name:
        msg = f"{uri} names a bucket, and an experiment is a name below it: {uri}/experiment"
        raise ConfigError(msg)
    above = replace(uri, prefix=uri.prefix.rpartition("/")[0])
    if sync_config is not None and sync_config.syncer is None and mode != "read":
        msg = f"syncer=None says that nothing is copied, and what is opened from {uri} goes on there; leave it out"
        raise ConfigError(msg)
    if sync_config is not None and sync_config.upload_dir is not None:
        if parse_uri(_absolute(sync_config.upload_dir)) != above:
            msg = (
                f"the experiment is opened from {uri}, and goes on there; leave upload_dir out, or copy the experiment "
                "to the other place first and open it from there"
            )
            raise ConfigError(msg)
        sync = sync_config
    else:
        base = sync_config or SyncConfig()
        sync = replace(base, upload_dir=str(above), syncer="auto")
    remote = Remote.at(uri, sync, _options(sync, options))
    if mode == "read":
        return Place(path="", remote=remote, by_uri=True)
    path = _staged(name, local_dir)
    if uri.scheme == "file" and path == uri.prefix:
        msg = (
            f"{path} is the copy of an experiment, kept by upload_dir; to go on with it name the directory where it is "
            "staged: local_dir=..."
        )
        raise ConfigError(msg)
    return Place(path=path, remote=remote, by_uri=True, makes_parent=True)


def _child(uri: StorageURI, name: str) -> StorageURI:
    if uri.scheme != "file" and ("?" in name or "#" in name):
        msg = f"{name!r} cannot be the end of a URI, where '?' and '#' begin something else; choose another name"
        raise ConfigError(msg)
    try:
        return uri.child(name)
    except ConfigError as error:
        msg = f"the name of the experiment's directory cannot be part of a URI: {error}"
        raise ConfigError(msg) from error


def _options(sync: SyncConfig, options: dict[str, Any]) -> dict[str, Any]:
    return {**(sync.storage_options or {}), **options}


def _absolute(upload_dir: str | os.PathLike[str]) -> str:
    return str(upload_dir) if is_uri(upload_dir) else local_path(upload_dir)
