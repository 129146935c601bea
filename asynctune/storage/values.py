"""Owns the values that go in and out of a storage: conditions, outcomes, what is known of an object, uploads. No I/O.

An upload in parts is cut into parts of one size, the last one excepted; so a part is known by its number alone,
counted from 1, and an upload can be written down and taken up again by another process.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from asynctune.errors import ConfigError

__all__ = [
    "Always",
    "Condition",
    "Conflict",
    "Directory",
    "FileRange",
    "IfVersion",
    "ObjectContent",
    "ObjectInfo",
    "OnlyCreate",
    "Outcome",
    "PendingUpload",
    "Source",
    "Stored",
    "Upload",
    "UploadRules",
    "UploadedPart",
]


@dataclass(frozen=True, slots=True)
class Always:
    """Store, whatever is there."""


@dataclass(frozen=True, slots=True)
class OnlyCreate:
    """Store only where no object is."""


@dataclass(frozen=True, slots=True)
class IfVersion:
    """Store only in place of the object of exactly this version."""

    version: str


Condition = Always | OnlyCreate | IfVersion
"""When a write is to happen."""


@dataclass(frozen=True, slots=True)
class Stored:
    """The object is there, as this version."""

    version: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """The condition did not hold, for this write or for an earlier copy of it: read back who it was.

    Attributes:
        version: The version that is there, where the storage told it at once; `None`: none is, or it did not tell.
    """

    version: str | None = None


Outcome = Stored | Conflict
"""How a write ended."""


@dataclass(frozen=True, slots=True)
class ObjectInfo:
    """What is known of an object without reading it.

    Attributes:
        key: Its key.
        size_bytes: Its size.
        version: Opaque. Another content always has another version; the very same bytes, stored again, may have the
            same one (S3, whose versions are ETags).
        crc32c: CRC-32C of all its bytes, where the storage keeps that; a listing may leave it out.
        modified_at: When it was stored, seconds since the Unix epoch by the storage's clock.
    """

    key: str
    size_bytes: int
    version: str
    crc32c: int | None
    modified_at: float


@dataclass(frozen=True, slots=True)
class ObjectContent:
    """A small object read whole; `info` is of the very version that was read."""

    info: ObjectInfo
    data: bytes


@dataclass(frozen=True, slots=True)
class Directory:
    """All keys of a listing with a delimiter that go on after this name, which ends in `/`."""

    name: str


@dataclass(frozen=True, slots=True)
class FileRange:
    """Bytes of a local file to be sent, read as they are needed; the file must not change meanwhile.

    Attributes:
        path: Absolute path.
        offset: Where they begin.
        size_bytes: How many; a file that ends before is an error.
    """

    path: str
    offset: int
    size_bytes: int


Source = bytes | FileRange
"""What is stored. It can be read again, so that a write can be repeated."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadRules:
    """Which parts a storage takes.

    Attributes:
        min_part_bytes: Least size of a part; the last may be smaller.
        max_part_bytes: Greatest size of a part.
        max_parts: Greatest number of parts.
        part_multiple: The size of each part but the last is a multiple of this many bytes.
        in_order: A part may be put only when all before it are acknowledged (GCS resumable sessions). Otherwise
            parts go in any order, several at once (S3).
        listed: Whether `list_uploads` tells of uploads that were neither completed nor aborted. Where not, the
            storage removes them by itself after some days.
        max_put_bytes: Greatest object that one `put` takes.
    """

    min_part_bytes: int
    max_part_bytes: int
    max_parts: int
    max_put_bytes: int
    part_multiple: int = 1
    in_order: bool = False
    listed: bool = True

    def part_bytes(self, size_bytes: int, wanted_bytes: int) -> int:
        """The part size nearest above `wanted_bytes` by which an object of `size_bytes` can be uploaded.

        Raises:
            ConfigError: The object is too large for this storage.
        """
        least = max(wanted_bytes, self.min_part_bytes, -(-size_bytes // self.max_parts))
        rounded = -(-least // self.part_multiple) * self.part_multiple
        if rounded > self.max_part_bytes:
            rounded = self.max_part_bytes // self.part_multiple * self.part_multiple
        self.check(size_bytes, rounded)
        return rounded

    def check(self, size_bytes: int, part_bytes: int) -> None:
        """Refuse an upload that this storage would not take.

        Raises:
            ConfigError: It is empty, or its parts are too small, too large, too many or of an odd size.
        """
        if size_bytes < 1:
            raise ConfigError("an upload in parts has at least one byte; put an empty object")
        if not self.min_part_bytes <= part_bytes <= self.max_part_bytes or part_bytes % self.part_multiple:
            raise ConfigError(
                f"parts of {part_bytes} bytes are not possible: they have {self.min_part_bytes} to "
                f"{self.max_part_bytes} bytes here, in multiples of {self.part_multiple}"
            )
        if (count := -(-size_bytes // part_bytes)) > self.max_parts:
            raise ConfigError(
                f"{size_bytes} bytes in parts of {part_bytes} are {count} parts, "
                f"and {self.max_parts} are the most here; choose larger parts"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """An upload in parts that was begun. A plain value: any storage object of the same place can go on with it.

    Attributes:
        key: The object it will be.
        upload_id: The storage's own name for it. Secret: on GCS who has it may write; so it is in no repr.
        size_bytes: Size of the whole object.
        part_bytes: Size of each part but the last.
        condition: When completing it may store the object.
        crc32c: Of the whole object, checked when it is completed; `None`: not known.
    """

    key: str
    upload_id: str = field(repr=False)
    size_bytes: int
    part_bytes: int
    condition: Condition = Always()
    crc32c: int | None = None

    @property
    def num_parts(self) -> int:
        """How many parts there are; they are numbered from 1."""
        return -(-self.size_bytes // self.part_bytes)

    def part_range(self, number: int) -> tuple[int, int]:
        """Offset and size in bytes of a part.

        Raises:
            ConfigError: There is no such part.
        """
        if not 1 <= number <= self.num_parts:
            raise ConfigError(f"upload of {self.key!r}: no part {number}, parts are 1 to {self.num_parts}")
        offset = (number - 1) * self.part_bytes
        return offset, min(self.part_bytes, self.size_bytes - offset)

    def to_record(self) -> dict[str, Any]:
        """A msgpack value to write down. It holds `upload_id`: only for a file that nobody else may read."""
        condition: Any = {Always: "always", OnlyCreate: "create"}.get(type(self.condition))
        if isinstance(self.condition, IfVersion):
            condition = {"version": self.condition.version}
        return {
            "key": self.key,
            "upload_id": self.upload_id,
            "size_bytes": self.size_bytes,
            "part_bytes": self.part_bytes,
            "condition": condition,
            "crc32c": self.crc32c,
        }

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> Upload:
        """What `to_record` wrote down.

        Raises:
            ConfigError: It is no such record; its content is not shown.
        """
        try:
            stored = record["condition"]
            condition: Condition
            if stored == "always":
                condition = Always()
            elif stored == "create":
                condition = OnlyCreate()
            else:
                condition = IfVersion(_typed(stored["version"], str))
            crc32c = record["crc32c"]
            size_bytes, part_bytes = _typed(record["size_bytes"], int), _typed(record["part_bytes"], int)
            if size_bytes < 1 or part_bytes < 1:
                raise ValueError
            return cls(
                key=_typed(record["key"], str),
                upload_id=_typed(record["upload_id"], str),
                size_bytes=size_bytes,
                part_bytes=part_bytes,
                condition=condition,
                crc32c=None if crc32c is None else _typed(crc32c, int),
            )
        except (KeyError, TypeError, ValueError):
            raise ConfigError("this is no record of an upload; begin it anew") from None


def _typed(value: Any, kind: type) -> Any:
    if type(value) is not kind:
        raise TypeError
    return value


@dataclass(frozen=True, slots=True)
class UploadedPart:
    """A part that the storage holds.

    Attributes:
        number: Counted from 1.
        size_bytes: Its size.
        tag: What the storage wants to be given back at the completion (the ETag on S3); may be empty.
        crc32c: Its checksum, where the storage tells; `None`: it is covered by that of the whole object alone.
        md5: What may be the MD5 of its bytes, in hexadecimal, where `list_parts` tells that and no crc32c.
    """

    number: int
    size_bytes: int
    tag: str = ""
    crc32c: int | None = None
    md5: str | None = None


@dataclass(frozen=True, slots=True)
class PendingUpload:
    """An upload that was neither completed nor aborted, as `ObjectStorage.list_uploads` finds it.

    Attributes:
        key: The object it would be.
        upload_id: As in `Upload`; in no repr.
        begun_at: When it was begun, seconds since the Unix epoch by the storage's clock.
    """

    key: str
    upload_id: str = field(repr=False)
    begun_at: float
