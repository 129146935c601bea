"""Owns the one msgpack dialect of asynctune: what a value may be, how it is packed, what is accepted back.

Knows no file and no record. The dialect is msgpack plus a fixed list of extension types, so that configs and
states keep their Python shape, and nothing that is read can run code or take unbounded memory.

Accepted: None, bool, int (any size), float (NaN and infinities too), str, bytes, bytearray, list, tuple, set,
frozenset, complex, timezone-aware `datetime`, dict (keys: None, bool, int, float, str, bytes, tuples of those),
`enum.Enum` members of str, int or float (stored as their value), `os.PathLike` (stored as str), and numbers
with `.item()` of NumPy, PyTorch and JAX (stored as the Python number).

==== ===========================================
ext  meaning (payload)
==== ===========================================
-1   timestamp of the msgpack specification
1    tuple (packed array)
2    integer beyond 64 bits (decimal ASCII)
3    set (packed array, sorted by packed bytes)
4    frozenset (likewise)
5    complex (packed array of two floats)
==== ===========================================
"""

from __future__ import annotations

import enum
import os
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import msgpack

from asynctune.errors import ConfigError

__all__ = ["MAX_VALUE_BYTES", "UnpackError", "pack", "unpack"]

MAX_VALUE_BYTES: Final = 256 * 1024 * 1024
"""The largest packed value that is taken or accepted back, in bytes."""

# An array of empty maps costs 64 bytes of memory for each byte read: containers get a cap of their own, by the
# size of what is being read, and never more than this (measured: 1 MiB of nested empties is 85 MiB without it).
_MAX_CONTAINER_LEN: Final = 1 << 22
_MAX_DEPTH: Final = 128

_TUPLE: Final = 1
_BIG_INT: Final = 2
_SET: Final = 3
_FROZENSET: Final = 4
_COMPLEX: Final = 5

_MAX_BIG_INT_DIGITS: Final = 4000  # below CPython's own limit for int <-> str conversion


class UnpackError(ValueError):
    """Bytes that are not a value of this dialect; whoever reads a file turns it into `CorruptStateError`."""


def pack(value: Any, what: str = "value", *, max_bytes: int = MAX_VALUE_BYTES) -> bytes:
    """Pack `value` into bytes.

    Args:
        value: Anything the dialect accepts.
        what: How the error names the value, such as `"config"`.
        max_bytes: The largest result that is accepted.

    Raises:
        ConfigError: Not storable, or too large; the message has the path to the offending part.
    """
    try:
        packed = _pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise _explain(value, what, error) from error
    if len(packed) > max_bytes:
        msg = (
            f"{what} takes {len(packed):,} bytes when packed, and the limit is {max_bytes:,}; "
            "put large data into a checkpoint's files instead"
        )
        raise ConfigError(msg)
    return packed


def unpack(data: bytes | bytearray | memoryview) -> Any:
    """Take back what `pack` made.

    Raises:
        UnpackError: Not one whole value of the dialect, or one with duplicate keys or over a limit.
    """
    try:
        return _unpack(data)
    except (ValueError, TypeError, RecursionError, OverflowError, msgpack.UnpackException) as error:
        detail = str(error) or type(error).__name__
        msg = f"not a valid packed value: {detail}"
        raise UnpackError(msg) from error


# -- packing -----------------------------------------------------------------------------------------------


def _pack(value: Any) -> bytes:
    packing = _Packing()
    packed = packing.pack(value)
    if packing.renamed or len(packed) > _MAX_CONTAINER_LEN:
        _unpack(packed)  # what a reader would refuse is refused here, before anybody relies on it
    return packed


class _Packing:
    """One value on its way to bytes.

    Attributes:
        renamed: A part became a plain value that is another key than it was, so that two keys may be one now.
    """

    __slots__ = ("_depth", "renamed")

    def __init__(self) -> None:
        self.renamed = False
        self._depth = 0

    def pack(self, value: Any) -> bytes:
        # strict_types sends subclasses (tuple, IntEnum, numpy.float64) to `_default` instead of guessing.
        return msgpack.packb(value, default=self._default, strict_types=True, use_bin_type=True)  # type: ignore[no-any-return]

    def _default(self, value: Any) -> Any:
        kind = type(value)
        if kind is tuple:
            return msgpack.ExtType(_TUPLE, self._inner(list(value)))
        if kind is int:
            return msgpack.ExtType(_BIG_INT, _big_int(value))
        if kind in {set, frozenset}:
            items = sorted(self._inner(item) for item in value)
            body = msgpack.Packer().pack_array_header(len(items)) + b"".join(items)
            return msgpack.ExtType(_SET if kind is set else _FROZENSET, body)
        if kind is complex:
            return msgpack.ExtType(_COMPLEX, self._inner([value.real, value.imag]))
        if isinstance(value, datetime):
            if value.tzinfo is None:
                msg = "a datetime without a timezone"
                raise TypeError(msg)
            return msgpack.Timestamp.from_datetime(value.astimezone(UTC))
        made = _as_plain(value)
        if not self.renamed:
            self.renamed = _is_another_key(value, made)
        return made

    def _inner(self, value: Any) -> bytes:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            msg = "recursion: nested too deeply"
            raise ValueError(msg)
        packed = self.pack(value)
        self._depth -= 1
        return packed


def _is_another_key(value: Any, made: Any) -> bool:
    try:
        return hash(value) != hash(made)
    except TypeError:
        return False  # it cannot be a key at all


def _as_plain(value: Any) -> Any:
    """A subclass or a foreign number as the plain Python value it stands for."""
    if isinstance(value, enum.Enum):
        return value.value
    base: Any
    for base in (bool, int, float, str, bytes, dict, list, tuple, set, frozenset):
        if isinstance(value, base):
            if hasattr(value, "_fields"):  # a named tuple would come back without its names
                break
            return base(value)
    if isinstance(value, bytearray | memoryview):
        return bytes(value)
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if getattr(value, "shape", None) == () and callable(getattr(value, "item", None)):
        item = value.item()
        if isinstance(item, bool | int | float | complex | str | bytes):
            return item
    raise TypeError(_kind_name(value))


def _kind_name(value: Any) -> str:
    kind = type(value)
    return kind.__qualname__ if kind.__module__ == "builtins" else f"{kind.__module__}.{kind.__qualname__}"


def _big_int(value: int) -> bytes:
    # bit_length avoids the quadratic conversion of an enormous number just to refuse it
    if value.bit_length() > _MAX_BIG_INT_DIGITS * 3:
        msg = "an integer of more than 3,600 digits"
        raise ValueError(msg)
    return str(value).encode("ascii")


def _explain(value: Any, what: str, error: BaseException) -> ConfigError:
    """Find the innermost part that cannot be packed, so that the message can point at it."""
    path, part, seen = what, value, 0
    while seen < _MAX_DEPTH:
        seen += 1
        if (step := _first_bad_child(part)) is None:
            break
        path, part = path + step[0], step[1]
    if seen >= _MAX_DEPTH or isinstance(error, RecursionError) or "recursion" in str(error):
        return ConfigError(
            f"{what} is nested too deeply (or contains itself) and cannot be stored; flatten it"
        )
    hint = "use plain numbers, strings, lists and dicts"
    if isinstance(part, str):
        reason, hint = "is text that is not valid Unicode", "encode it as bytes"
    elif isinstance(part, datetime) and part.tzinfo is not None:
        reason, hint = "is outside of the years 1 to 9999 in UTC", "use another time"
    elif isinstance(part, datetime):
        reason, hint = "is a datetime without a timezone", "add one, e.g. tzinfo=datetime.UTC"
    elif hasattr(part, "shape") and hasattr(part, "tolist"):
        reason, hint = f"is an array ({_kind_name(part)})", "use .tolist(), or save it in a checkpoint"
    elif isinstance(part, int):
        reason = "is an integer of more than 3,600 digits"
    elif _is_too_long(part):
        limit = _MAX_CONTAINER_LEN // (2 if isinstance(part, Mapping) else 1)
        reason = f"holds {len(part):,} items, and the limit is {limit:,}"
        hint = "put large data into a checkpoint's files instead"
    elif isinstance(part, Mapping) and "duplicate" in str(error):
        reason, hint = "has two keys that are the same when stored", "use text keys"
    elif callable(part):
        reason, hint = f"is code ({_kind_name(part)}), and state never holds code", "store its name instead"
    else:
        reason = f"is of type {_kind_name(part)}"
    return ConfigError(f"{path} {reason} and cannot be stored; {hint}")


def _is_too_long(part: Any) -> bool:
    if isinstance(part, Mapping):
        return len(part) > _MAX_CONTAINER_LEN // 2
    return isinstance(part, list | tuple | set | frozenset) and len(part) > _MAX_CONTAINER_LEN


def _first_bad_child(part: Any) -> tuple[str, Any] | None:
    if _is_too_long(part):
        return None  # that is what is wrong; looking at each item would take minutes
    if isinstance(part, Mapping):
        for key, item in part.items():
            if not _packs(key):
                return " (a key)" if isinstance(key, int) else f" (key {key!r})", key
            if not _packs(item):
                return f"[{key!r}]", item
    elif isinstance(part, list | tuple | set | frozenset):
        for index, item in enumerate(part):
            if not _packs(item):
                return f"[{index}]", item
    return None


def _packs(value: Any) -> bool:
    try:
        _pack(value)
    except (TypeError, ValueError, OverflowError, RecursionError):
        return False
    return True


# -- unpacking ---------------------------------------------------------------------------------------------


def _unpack(data: bytes | bytearray | memoryview, depth: int = 0) -> Any:
    if depth > _MAX_DEPTH:
        msg = "nested too deeply"
        raise ValueError(msg)
    size = len(data)
    if size > MAX_VALUE_BYTES:
        msg = f"{size:,} bytes, and the limit is {MAX_VALUE_BYTES:,}"
        raise ValueError(msg)
    containers = min(size, _MAX_CONTAINER_LEN)
    return msgpack.unpackb(
        data,
        raw=False,
        timestamp=3,
        strict_map_key=False,
        object_pairs_hook=_pairs,
        ext_hook=_ext_hook(depth),
        max_str_len=size,
        max_bin_len=size,
        max_ext_len=size,
        max_array_len=containers,
        max_map_len=containers // 2,
    )


def _pairs(pairs: list[tuple[Any, Any]]) -> dict[Any, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        msg = "duplicate keys in a map"
        raise ValueError(msg)
    return made


def _ext_hook(depth: int) -> Callable[[int, bytes], Any]:
    def hook(code: int, data: bytes) -> Any:
        if code == _BIG_INT:
            if len(data) > _MAX_BIG_INT_DIGITS:
                msg = "an integer of too many digits"
                raise ValueError(msg)
            return int(data.decode("ascii"))
        if code not in _CONTAINERS:
            msg = f"unknown extension type {code}"
            raise ValueError(msg)
        items = _unpack(data, depth + 1)
        if not isinstance(items, list):
            msg = f"extension type {code} holds no array"
            raise TypeError(msg)
        return _CONTAINERS[code](items)

    return hook


def _complex(items: list[Any]) -> complex:
    real, imag = items
    if not (isinstance(real, float) and isinstance(imag, float)):
        msg = "a complex number of something else than floats"
        raise TypeError(msg)
    return complex(real, imag)


_CONTAINERS: Final[dict[int, Callable[[list[Any]], Any]]] = {
    _TUPLE: tuple,
    _SET: set,
    _FROZENSET: frozenset,
    _COMPLEX: _complex,
}
