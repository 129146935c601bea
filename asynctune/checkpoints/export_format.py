"""Owns how a generation of an exported state says what it has: its CURRENT, as bytes. Pure.

A magic, the crc32c of what follows, and a msgpack map: `v`, `number`, `files` (by name: generation, size in bytes,
crc32c) and `current`, which is the CURRENT of the state itself.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Final

import google_crc32c

from asynctune.errors import UnsupportedFormatError
from asynctune.packing import UnpackError, pack, unpack

__all__ = ["FILE_NAME", "GENERATION", "MAX_CURRENT_BYTES", "ExportEntry", "decode_current", "encode_current"]

MAX_CURRENT_BYTES: Final = 64 << 20
"""Greatest size of a CURRENT; nothing larger is read."""

GENERATION: Final = re.compile(r"\d{10}-[0-9a-f]{12}")
"""Names of generations: a number, and the nonce of an opening."""

FILE_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,200}")
"""Names of files of the state."""

_MAGIC: Final = b"asynctune export\n"
_FORM: Final = 1
_CRC_BYTES: Final = 4


@dataclass(frozen=True, slots=True)
class ExportEntry:
    """Where one file of the state is.

    Attributes:
        generation: Name of the generation whose directory has it.
        size_bytes: Its size.
        crc32c: Its checksum.
    """

    generation: str
    size_bytes: int
    crc32c: int


def encode_current(number: int, named: dict[str, ExportEntry], current: bytes) -> bytes:
    """The CURRENT of a generation.

    Args:
        number: Of the generation.
        named: Every file of the state, and where it is.
        current: The CURRENT of the state.
    """
    value = {
        "v": _FORM,
        "number": number,
        "files": {name: [each.generation, each.size_bytes, each.crc32c] for name, each in named.items()},
        "current": current,
    }
    payload = pack(value, "the state's CURRENT", max_bytes=MAX_CURRENT_BYTES - 64)
    crc32c: int = google_crc32c.value(payload)
    return _MAGIC + crc32c.to_bytes(_CRC_BYTES, "little") + payload


def decode_current(data: bytes) -> tuple[int, dict[str, ExportEntry], bytes]:
    """What `encode_current` was given.

    Raises:
        UnpackError: It is damaged, or cut short.
        UnsupportedFormatError: It was written by a newer asynctune.
    """
    head = len(_MAGIC) + _CRC_BYTES
    payload = data[head:]
    crc32c = int.from_bytes(data[len(_MAGIC) : head], "little")
    if not data.startswith(_MAGIC) or len(data) < head or google_crc32c.value(payload) != crc32c:
        raise UnpackError("no CURRENT of an export, or a damaged one")
    value: Any = unpack(payload)
    if not isinstance(value, dict) or not isinstance(value.get("v"), int):
        raise UnpackError("no CURRENT of an export")
    if value["v"] > _FORM:
        raise UnsupportedFormatError(
            f"the state in the mirror has form {value['v']}, and this asynctune knows {_FORM}; upgrade asynctune"
        )
    try:
        named = {
            str(name): ExportEntry(str(generation), int(size_bytes), int(crc32c))
            for name, (generation, size_bytes, crc32c) in value["files"].items()
        }
        number, current = int(value["number"]), value["current"]
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise UnpackError(f"no CURRENT of an export: {error!r}") from None
    if not isinstance(current, bytes) or not all(
        FILE_NAME.fullmatch(name) and GENERATION.fullmatch(each.generation) for name, each in named.items()
    ):
        raise UnpackError("no CURRENT of an export: its names cannot be")
    return number, named, current
