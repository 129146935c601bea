"""Owns how a client for S3 is made: which options there are, and what of it has to happen off the event loop.

Making a client reads botocore's models, the files in `~/.aws`, and perhaps the credentials of the machine. All of that
blocks; so it happens in a thread, on a loop of its own. What is made there is bound to no loop until it sends.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import Mapping
from datetime import datetime
from functools import lru_cache
from typing import Any, Final
from urllib.parse import urlsplit

import botocore
import botocore.exceptions
import botocore.loaders
from aiobotocore.config import AioConfig
from aiobotocore.session import AioSession
from botocore.utils import parse_timestamp

from asynctune.errors import ConfigError
from asynctune.storage.threads import Threads

__all__ = ["S3Options", "make_client", "read_options"]

_CONNECT_S: Final = 10
_SILENT_S: Final = 60
_CONNECTIONS: Final = 128

# What each is called by s3fs, by boto3 and by asynctune: one meaning, several names.
_NAMES: Final[dict[str, tuple[str, type]]] = {
    "key": ("key", str),
    "aws_access_key_id": ("key", str),
    "secret": ("secret", str),
    "aws_secret_access_key": ("secret", str),
    "token": ("token", str),
    "aws_session_token": ("token", str),
    "anon": ("anon", bool),
    "profile": ("profile", str),
    "profile_name": ("profile", str),
    "endpoint_url": ("endpoint_url", str),
    "region": ("region", str),
    "region_name": ("region", str),
    "use_ssl": ("use_ssl", bool),
    "verify": ("verify", object),
    "addressing_style": ("addressing_style", str),
    "conditional_writes": ("conditional_writes", bool),
}
_STYLES: Final = ("auto", "path", "virtual")


class S3Options:
    """`storage_options`, understood. Has no repr of its own, because it holds secrets."""

    __slots__ = ("_values",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        self._values = dict(values)

    def __getitem__(self, name: str) -> Any:
        return self._values.get(name)

    @property
    def conditional_writes(self) -> bool:
        """Whether the server keeps `If-Match` and `If-None-Match`; S3 itself does."""
        return self._values.get("conditional_writes", True) is True


def read_options(options: Mapping[str, Any]) -> S3Options:
    """Understand the options for a bucket. What is not given comes from where boto3 looks too.

    Args:
        options: `key`, `secret` and `token`, or `anon=True`, or `profile`; `endpoint_url`, `region`, `use_ssl`,
            `verify` (`False`, or the path of a bundle of certificates), `addressing_style` (`"auto"`, `"path"`,
            `"virtual"`), `conditional_writes` (`False` for a server that ignores conditions). The names of boto3's
            session and client are taken too. `None` is as good as not given.

    Raises:
        ConfigError: An option is unknown, of another type, given twice, or contradicts another. Its value is not shown.
    """
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in _NAMES:
            known = ", ".join(sorted(_NAMES))
            raise ConfigError(f"storage_options for s3://: {name!r} is no option; there are {known}")
        if value is None:
            continue
        meaning, kind = _NAMES[name]
        if not isinstance(value, kind) or value == "":
            raise ConfigError(f"storage_options for s3://: {name} must be a {kind.__name__}, and not empty")
        if meaning in values:
            raise ConfigError(f"storage_options for s3://: {name} is given under two names")
        values[meaning] = value
    _check_together(values)
    return S3Options(values)


def _check_together(values: Mapping[str, Any]) -> None:
    given = values.keys()
    if ("key" in given) != ("secret" in given) or ("token" in given and "key" not in given):
        raise ConfigError("storage_options for s3://: key and secret go together, and token with both")
    if values.get("anon") and given & {"key", "profile"}:
        raise ConfigError("storage_options for s3://: anon=True goes without key and profile")
    if not isinstance(values.get("verify", True), bool | str):
        raise ConfigError("storage_options for s3://: verify is True, False or the path of a bundle")
    if values.get("addressing_style", "auto") not in _STYLES:
        raise ConfigError(f"storage_options for s3://: addressing_style is one of {', '.join(_STYLES)}")
    if "endpoint_url" in given:
        _check_endpoint(values["endpoint_url"])


def _check_endpoint(url: str) -> None:
    try:
        parts = urlsplit(url)
        right = parts.scheme in ("http", "https") and parts.hostname and "@" not in parts.netloc
        right = bool(right) and not parts.query and not parts.fragment and parts.port != 0
    except ValueError:
        right = False
    if not right:
        raise ConfigError(
            "storage_options for s3://: endpoint_url is http://host:port or https://host:port, without credentials"
        )


async def make_client(options: S3Options, threads: Threads) -> Any:
    """A client, warm. To be closed with `__aexit__`.

    Raises:
        ConfigError: There is no such profile, region or endpoint, or a file of settings cannot be read.
    """
    return await threads.run(lambda: asyncio.run(_make(options)))


async def _make(options: S3Options) -> Any:
    signature = {"signature_version": botocore.UNSIGNED} if options["anon"] else {}
    config = AioConfig(
        connect_timeout=_CONNECT_S,
        read_timeout=_SILENT_S,
        max_pool_connections=_CONNECTIONS,
        # One policy of repetitions: that of asynctune.storage.retry.
        retries={"total_max_attempts": 1, "mode": "standard"},
        # Checksums are sent and verified by asynctune, which streams what botocore would have to read twice.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        # The checksum covers the body; hashing it once more to sign it costs more than sending it.
        s3={"payload_signing_enabled": False, "addressing_style": options["addressing_style"] or "auto"},
        **signature,
    )
    try:
        session = AioSession(profile=options["profile"])
        session.register_component("data_loader", _loader(session.get_config_variable("data_path")))
        session.get_component("response_parser_factory").set_parser_defaults(timestamp_parser=_time_of)
        client = await session.create_client(
            "s3",
            region_name=options["region"],
            use_ssl=True if options["use_ssl"] is None else options["use_ssl"],
            verify=options["verify"],
            endpoint_url=options["endpoint_url"],
            aws_access_key_id=options["key"],
            aws_secret_access_key=options["secret"],
            aws_session_token=options["token"],
            config=config,
        ).__aenter__()
    except (botocore.exceptions.BotoCoreError, ValueError) as error:
        raise _cannot_open(error) from None  # its text may show what it could not read
    client.meta.events.register("before-send.s3", _without_expect)
    client.meta.events.register("before-sign.s3.DeleteObjects", _with_md5)
    return client


@lru_cache(maxsize=4)
def _loader(data_path: str | None) -> Any:
    """What reads the models, and keeps them: the first client of a process takes ten times as long as the next."""
    return botocore.loaders.create_loader(data_path)


def _time_of(value: Any) -> Any:
    """The times of listings; botocore's own reading of one takes as long as the rest of an entry."""
    try:
        found = datetime.fromisoformat(value)
    except (TypeError, ValueError):
        return parse_timestamp(value)
    return found if found.tzinfo is not None else parse_timestamp(value)


def _cannot_open(error: Exception) -> ConfigError:
    kind = type(error).__name__
    if isinstance(error, botocore.exceptions.ProfileNotFound):
        return ConfigError(
            "s3://: the profile is not in the files of the AWS tools; check AWS_PROFILE or profile"
        )
    return ConfigError(
        f"s3://: no client can be made ({kind}); check storage_options, the AWS_ variables and ~/.aws/config"
    )


def _without_expect(request: Any, **_: Any) -> None:
    # Servers that do not know "Expect: 100-continue" never answer it, and the others cost a round trip.
    request.headers.pop("Expect", None)


def _with_md5(request: Any, **_: Any) -> None:
    # S3 itself takes the newer checksum that botocore sends; many servers of its kind insist on this one.
    digest = hashlib.md5(request.body, usedforsecurity=False).digest()
    request.headers["Content-MD5"] = base64.b64encode(digest).decode()
