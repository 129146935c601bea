"""Owns what a location means: a path or URI becomes a value, and the storage it names. Never prints what it refuses.

========================== ================================================================================
location                   storage
========================== ================================================================================
a path, `file:///path`     a directory of this machine, or of a filesystem that it has mounted
`s3://bucket/prefix`       S3 and what speaks its protocol (extra `s3`)
`gs://bucket/prefix`       Google Cloud Storage (extra `gcs`)
`memory://name/prefix`     this process, until it ends; for tests
========================== ================================================================================
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Literal, TypeVar, cast
from urllib.parse import unquote

from asynctune.errors import ConfigError, MissingExtraError
from asynctune.storage.aside import StorageAside
from asynctune.storage.base import ObjectStorage
from asynctune.storage.keys import check_key
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.threads import Threads

__all__ = ["Scheme", "StorageURI", "open_storage", "parse_uri"]

T = TypeVar("T")

Scheme = Literal["file", "memory", "s3", "gs"]

_SCHEMES: Final = ("file", "memory", "s3", "gs")
_MAX_PREFIX_BYTES: Final = 512
_URI: Final = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
# What becomes of a URI that went through pathlib, which makes one slash of two.
_BROKEN: Final = re.compile(r"(file|memory|s3|gs):/(?!/)", re.IGNORECASE)
_BUCKET: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,220}[A-Za-z0-9]")
_MEMORY_NAME: Final = re.compile(r"[A-Za-z0-9._-]{1,200}")
_CLIENTS: Final = {"s3": ("s3", "aiobotocore"), "gs": ("gcs", "gcloud.aio.storage")}


@dataclass(frozen=True, slots=True)
class StorageURI:
    """A location, taken apart. `str()` puts it together again; it holds no credentials.

    Attributes:
        scheme: `"file"`, `"memory"`, `"s3"` or `"gs"`.
        bucket: Name of the bucket; empty for `"file"`.
        prefix: Names between single slashes, none at either end; may be empty. For `"file"` the path, which may be
            relative, or begin with `~`.
    """

    scheme: Scheme
    bucket: str
    prefix: str

    def __str__(self) -> str:
        if self.scheme == "file":
            return self.prefix
        return f"{self.scheme}://{self.bucket}/{self.prefix}".rstrip("/")

    def child(self, *names: str) -> StorageURI:
        """The location below this one, as in `uri.child("experiment", ".asynctune")`.

        Raises:
            ConfigError: A name that cannot be part of a key.
        """
        below = check_key("/".join(names))
        return replace(self, prefix=f"{self.prefix.rstrip('/')}/{below}" if self.prefix else below)


def parse_uri(location: str | os.PathLike[str]) -> StorageURI:
    """Take a location apart. Looks at no disk and no network.

    Slashes too many are dropped. In a path everything else is kept as it is; `file://` is percent-decoded, the
    others are not, because a bucket may have `%` in its keys.

    Raises:
        ConfigError: It cannot be a location: the scheme is unknown, the bucket is missing or no bucket's name, there is
            `..` in the prefix, a query or a fragment, or credentials (which belong into `storage_options` or into the
            places where the cloud's own tools look).
    """
    if not isinstance(location, str | os.PathLike):
        raise ConfigError(f"a location is a path or a URI, not {type(location).__name__}")
    text = os.fsdecode(location)
    if not text or "\0" in text:
        raise ConfigError("a location is a path or a URI; this one is empty, or has a NUL in it")
    if (broken := _BROKEN.match(text)) is not None:
        scheme = broken[1].lower()
        raise ConfigError(
            f"write {scheme}:// with two slashes, and give it as a string: pathlib drops one of them"
        )
    found = _URI.fullmatch(text)
    if found is None:
        return StorageURI("file", "", _tidy_path(text))
    scheme, rest = found[1].lower(), found[2]
    if scheme not in _SCHEMES:
        known = ", ".join(f"{each}://" for each in _SCHEMES)
        raise ConfigError(f"{scheme}:// is no storage that asynctune knows; give a path or one of {known}")
    if mark := re.search(r"[?#]", rest):
        raise ConfigError(
            f"a {scheme}:// location has no query and no fragment, so no {mark[0]!r}; options go into storage_options"
        )
    return _file(rest) if scheme == "file" else _bucket(cast("Scheme", scheme), rest)


def _file(rest: str) -> StorageURI:
    host, slash, path = rest.partition("/")
    if host not in ("", "localhost") or not slash:
        raise ConfigError(
            "a file:// location is absolute and of this machine: write file:///path, or the path alone"
        )
    path = unquote("/" + path)
    if "\0" in path:
        raise ConfigError("a file:// location has a NUL in it")
    return StorageURI("file", "", _tidy_path(path))


def _bucket(scheme: Scheme, rest: str) -> StorageURI:
    # Nothing of `rest` is shown before it is known that it holds no secret.
    bucket, _, prefix = rest.partition("/")
    if "@" in bucket or ":" in bucket:
        raise ConfigError(
            f"a {scheme}:// location is {scheme}://bucket/prefix, without credentials, port or region; "
            "give these as storage_options or in the environment"
        )
    if not bucket:
        raise ConfigError(f"a {scheme}:// location names a bucket: {scheme}://bucket/prefix")
    if not (_MEMORY_NAME if scheme == "memory" else _BUCKET).fullmatch(bucket):
        raise ConfigError(
            f"a {scheme}:// location begins with the name of a bucket: letters, digits, dots, dashes and underscores"
        )
    names = [name for name in prefix.split("/") if name not in ("", ".")]
    if ".." in names:
        raise ConfigError(f"a {scheme}:// location has no '..' in it: there are no directories to go up")
    if names:
        check_key("/".join(names), _MAX_PREFIX_BYTES)
    return StorageURI(scheme, bucket, "/".join(names))


def _tidy_path(path: str) -> str:
    names = [name for name in path.split("/") if name not in ("", ".")]
    tidy = ("/" if path.startswith("/") else "") + "/".join(names)
    return tidy or "."


async def open_storage(
    location: str | os.PathLike[str] | StorageURI, storage_options: Mapping[str, Any] | None = None
) -> ObjectStorage:
    """Open the storage at a location; close it with `aclose`. Looks at nothing that is there.

    Args:
        location: A path or a URI, or one already parsed.
        storage_options: Credentials, endpoint and the like for S3 and GCS; what is not given comes from where the
            cloud's own tools look. Never stored, never shown.

    Raises:
        ConfigError: The location cannot be one, or does not take these options.
        MissingExtraError: The client for it is not installed.
    """
    uri = location if isinstance(location, StorageURI) else parse_uri(location)
    options = dict(storage_options or {})
    if uri.scheme in ("file", "memory"):
        if options:
            raise ConfigError(f"storage_options are for s3:// and gs://; {uri} takes none")
        if uri.scheme == "memory":
            return MemoryStorage.named(uri.bucket, uri.prefix)
        return LocalStorage(await _in_thread(lambda: os.path.abspath(os.path.expanduser(uri.prefix))))
    extra, package = _CLIENTS[uri.scheme]
    module = await _in_thread(lambda: _import_client(extra, package, uri.scheme))
    return await StorageAside.open(lambda: module.open_storage(uri, options))


def _import_client(extra: str, package: str, scheme: str) -> Any:
    try:
        if importlib.util.find_spec(package) is None:
            raise ModuleNotFoundError(package)
    except ModuleNotFoundError as error:
        raise MissingExtraError(extra, package, f"a {scheme}:// location") from error
    return importlib.import_module(f"asynctune.storage.{extra}")


async def _in_thread(function: Callable[[], T]) -> T:
    threads = Threads("storage-opening", 1)
    try:
        return await threads.run(function)
    finally:
        threads.close()
