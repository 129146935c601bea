"""Owns which keys objects may have: the same in every storage, so that what one takes, all take. No I/O."""

from __future__ import annotations

import re
from typing import Any, Final

from asynctune.errors import ConfigError

__all__ = ["MAX_KEY_BYTES", "check_key", "check_prefix"]

MAX_KEY_BYTES: Final = 1024
"""Greatest length of a key in UTF-8, the storage's own prefix included (S3 and GCS)."""

_MAX_NAME_BYTES: Final = 255
_CONTROL: Final = re.compile(r"[\x00-\x1f\x7f]")


def check_key(key: Any, max_bytes: int = MAX_KEY_BYTES) -> str:
    """A key that every storage takes: names between single slashes, as in `"trial_1/checkpoint_000005/model.pt"`.

    A name has at most 255 bytes in UTF-8, no control character, and is not `.` or `..`. Beyond that any
    character is allowed. A key that continues another one (`"a"` beside `"a/b"`) may be refused when it is put.

    Raises:
        ConfigError: It is no such key.
    """
    if not isinstance(key, str):
        raise ConfigError(f"the key of an object must be a string, not {type(key).__name__}")
    _check_text(key, max_bytes)
    for name in key.split("/"):
        if name in ("", ".", ".."):
            raise ConfigError(
                f"{key!r} cannot be the key of an object: it has an empty name, '.' or '..' in it"
            )
        if len(name) > _MAX_NAME_BYTES // 4 and len(name.encode()) > _MAX_NAME_BYTES:
            raise ConfigError(
                f"{key[:80]!r}... cannot be the key of an object: a name has more than {_MAX_NAME_BYTES} bytes"
            )
    return key


def check_prefix(prefix: Any) -> str:
    """A beginning of keys, for listings; may be empty.

    Raises:
        ConfigError: No key can begin so.
    """
    if not isinstance(prefix, str):
        raise ConfigError(f"a prefix must be a string, not {type(prefix).__name__}")
    _check_text(prefix, MAX_KEY_BYTES)
    *names, _ = prefix.split("/")
    if any(name in ("", ".", "..") for name in names):
        raise ConfigError(f"no key begins with {prefix!r}: it has an empty name, '.' or '..' in it")
    return prefix


def _check_text(text: str, max_bytes: int) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise ConfigError(f"{text[:80]!r} is not Unicode text that can be encoded in UTF-8") from None
    if size > max_bytes:
        raise ConfigError(
            f"{text[:80]!r}... is too long: {size} bytes in UTF-8, and {max_bytes} are the most here"
        )
    if _CONTROL.search(text):
        raise ConfigError(f"{text[:80]!r} has a control character in it")
