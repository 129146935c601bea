"""Owns the manifest of a checkpoint: which files it has, their sizes and checksums, and how that is written.

Pure: values and bytes, no I/O. A manifest is JSON text, one line for each file, so that any tool can read it:
`format`, `trial_id` (or null), `step`, `epoch`, `attempt`, `empty_directories`, `files` with `path`,
`size_bytes`, `crc32c` (8 hex digits) and `sha256` (64). It also owns which relative paths may be in a
checkpoint at all: those that mean the same file on every filesystem and in every bucket.
"""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any, Final, NoReturn

from asynctune.checkpoints.breathing import FILES_BETWEEN_BREATHS, breathe
from asynctune.trial import MANIFEST_FILE

__all__ = [
    "MANIFEST_FORMAT",
    "MAX_MANIFEST_BYTES",
    "MAX_STEP",
    "Manifest",
    "ManifestError",
    "ManifestFile",
    "check_paths",
    "digest_of",
]

MANIFEST_FORMAT: Final = 1
"""The format that is written; a newer one is refused."""

MAX_STEP: Final = 10**12
"""The largest step of a checkpoint."""

MAX_MANIFEST_BYTES: Final = 256 * 1024 * 1024
"""The largest manifest that is read."""

MAX_PATH_BYTES: Final = 4096
MAX_PATH_PARTS: Final = 256  # `shutil.rmtree` recurses, so that a tree of a thousand could not be removed
_MAX_NUMBER: Final = (1 << 63) - 1
_CRC_DIGITS: Final = 8
_SHA_DIGITS: Final = 64
_HEX: Final = frozenset("0123456789abcdef")
_KEYS: Final = frozenset(
    {"format", "trial_id", "step", "epoch", "attempt", "empty_directories", "files"},
)
_FILE_KEYS: Final = frozenset({"path", "size_bytes", "crc32c", "sha256"})


class ManifestError(ValueError):
    """Bytes that are no manifest, or a list of files that no manifest can describe; says what is wrong."""


@dataclass(frozen=True, slots=True)
class ManifestFile:
    """One file of a checkpoint.

    Attributes:
        path: Relative POSIX path below the checkpoint directory.
        size_bytes: Its length.
        crc32c: CRC-32C (Castagnoli) of the content, the checksum that buckets verify.
        sha256: SHA-256 of the content, 64 lowercase hex digits.
    """

    path: str
    size_bytes: int
    crc32c: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What a checkpoint directory holds.

    Attributes:
        step: Number of the checkpoint within its trial; 0 until it is adopted.
        epoch: Number of the opening that committed it; 0 until it is adopted.
        attempt: Which start of the trial wrote it.
        files: Every file, sorted by path, without the manifest itself.
        trial_id: Whose it is; `None` until it is adopted.
        empty_directories: Relative paths of directories that hold nothing, sorted.
    """

    step: int
    epoch: int
    attempt: int
    files: tuple[ManifestFile, ...]
    trial_id: str | None = None
    empty_directories: tuple[str, ...] = ()

    @property
    def size_bytes(self) -> int:
        """Sum of the sizes of all files."""
        return sum(file.size_bytes for file in self.files)

    @property
    def sizes(self) -> dict[str, int]:
        """Path of each file with its size in bytes."""
        return {file.path: file.size_bytes for file in self.files}

    @property
    def digest(self) -> str:
        """SHA-256 of the encoded manifest, 64 hex digits: what the journal records."""
        return digest_of(self.encode())

    def named(self, *, trial_id: str, step: int, epoch: int, attempt: int) -> Manifest:
        """The same files as the given checkpoint of the given trial."""
        return replace(self, trial_id=trial_id, step=step, epoch=epoch, attempt=attempt)

    def encode(self) -> bytes:
        """The one canonical text of this manifest, UTF-8.

        Raises:
            ManifestError: A path or number that no manifest may hold.
        """
        _check(self)
        head = {
            "format": MANIFEST_FORMAT,
            "trial_id": self.trial_id,
            "step": self.step,
            "epoch": self.epoch,
            "attempt": self.attempt,
            "empty_directories": sorted(self.empty_directories),
        }
        lines = []
        for number, file in enumerate(sorted(self.files, key=lambda file: file.path)):
            if number % FILES_BETWEEN_BREATHS == 0:
                breathe()
            lines.append(
                _dump(
                    {
                        "path": file.path,
                        "size_bytes": file.size_bytes,
                        "crc32c": f"{file.crc32c:08x}",
                        "sha256": file.sha256,
                    }
                )
            )
        body = ",\n".join(lines)
        return f'{_dump(head)[:-1]},"files":[\n{body}\n]}}\n'.encode()

    @classmethod
    def decode(cls, data: bytes) -> Manifest:
        """Take back what `encode` made, trusting nothing.

        Raises:
            ManifestError: Not a manifest, one of a newer format, or one that describes impossible files.
        """
        return _decode(data)


def digest_of(encoded: bytes) -> str:
    """SHA-256 of an encoded manifest, 64 hex digits."""
    return hashlib.sha256(encoded).hexdigest()


def check_paths(files: Iterable[str], empty_directories: Iterable[str] = ()) -> None:
    """Refuse relative paths that are unsafe, or that would be one file elsewhere.

    Refused are absolute paths, empty parts, `.` and `..`, NUL, text that is not valid Unicode, a part called
    `.manifest.json`, and two names that differ only in case or in Unicode normalization, because a filesystem
    that folds them would hold one file instead of two.

    Raises:
        ManifestError: Names the path and what is wrong with it.
    """
    seen: dict[str, tuple[str, bool]] = {}  # folded path: as it is spelled, and whether it has entries below
    for number, path in enumerate([*files, *empty_directories]):
        if number % FILES_BETWEEN_BREATHS == 0:
            breathe()
        _check_one(path)
        _check_collisions(path, seen)


def _check_one(path: Any) -> None:
    if not isinstance(path, str) or not path:
        _refuse(f"a path must be text, not {path!r}")
    try:
        size = len(path.encode())
    except UnicodeEncodeError:
        _refuse(f"the path {path!r} is not valid Unicode text; rename the file")
    if size > MAX_PATH_BYTES:
        _refuse(f"a path of {size:,} bytes; the limit is {MAX_PATH_BYTES:,}")
    if "\0" in path:
        _refuse(f"the path {path!r} has a NUL character")
    if path.startswith("/"):
        _refuse(f"the path {path!r} is absolute")
    parts = path.split("/")
    if len(parts) > MAX_PATH_PARTS:
        _refuse(f"the path {path!r:.80} has {len(parts):,} parts; the limit is {MAX_PATH_PARTS}")
    for part in parts:
        if part in {"", ".", ".."}:
            _refuse(f"the path {path!r} has the part {part!r}")
        if _folded(part) == MANIFEST_FILE:
            _refuse(f"the path {path!r} uses the reserved name {MANIFEST_FILE}; rename the file")


def _check_collisions(path: str, seen: dict[str, tuple[str, bool]]) -> None:
    """Every directory on the way counts too: `A/x` and `a/y` lie in one directory where case is folded."""
    folded = _folded(path)
    if folded in seen:
        _collide(seen[folded][0], path)
    seen[folded] = (path, False)
    end = path.rfind("/")
    while end > 0:
        parent = path[:end]
        folded = _folded(parent)
        known = seen.get(folded)
        if known is None:
            seen[folded] = (parent, True)
        elif known == (parent, True):
            return  # what is above was checked with the first path through here
        else:
            _collide(known[0], parent)
        end = path.rfind("/", 0, end)


def _collide(first: str, second: str) -> NoReturn:
    why = "are one name" if first == second else "differ only in case or Unicode form"
    _refuse(f"the paths {first!r} and {second!r} {why}; rename one of them")


def _folded(text: str) -> str:
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).casefold())


def _refuse(message: str) -> NoReturn:
    raise ManifestError(message)


def _dump(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _check(manifest: Manifest) -> None:
    _number(manifest.step, "step", MAX_STEP)
    _number(manifest.epoch, "epoch")
    _number(manifest.attempt, "attempt")
    if manifest.trial_id is not None:
        _text(manifest.trial_id, "trial_id")
    for file in manifest.files:
        _number(file.size_bytes, f"size_bytes of {file.path!r}")
        _number(file.crc32c, f"crc32c of {file.path!r}", 0xFFFFFFFF)
        if (
            not isinstance(file.sha256, str)
            or len(file.sha256) != _SHA_DIGITS
            or not _HEX.issuperset(file.sha256)
        ):
            _refuse(f"sha256 of {file.path!r} must be 64 hex digits, not {file.sha256!r}")
    check_paths((file.path for file in manifest.files), manifest.empty_directories)


def _number(value: Any, what: str, limit: int = _MAX_NUMBER) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= limit:
        _refuse(f"{what} must be a whole number from 0 to {limit:,}, not {value!r:.80}")
    return value


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str) or not value or "\0" in value:
        _refuse(f"{what} must be text, not {value!r:.80}")
    try:
        value.encode()
    except UnicodeEncodeError:
        _refuse(f"{what} is not valid Unicode text: {value!r:.80}")
    return value


def _decode(data: bytes) -> Manifest:
    if len(data) > MAX_MANIFEST_BYTES:
        _refuse(f"{len(data):,} bytes, and the limit is {MAX_MANIFEST_BYTES:,}")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_pairs, parse_constant=_no_constant)
    except ManifestError:
        raise
    except (ValueError, RecursionError) as error:
        message = f"not a manifest: {str(error) or type(error).__name__}"
        raise ManifestError(message) from error
    if not isinstance(value, dict) or "format" not in value:
        _refuse("not a manifest: no format is named")
    version = _number(value["format"], "format")
    if version > MANIFEST_FORMAT:
        _refuse(f"format {version} is newer than this asynctune reads ({MANIFEST_FORMAT}); upgrade asynctune")
    if version != MANIFEST_FORMAT:
        _refuse(f"format {version} does not exist")
    _exactly(value, _KEYS, "the manifest")
    trial_id, listed, empty = value["trial_id"], value["files"], value["empty_directories"]
    if not isinstance(listed, list) or not isinstance(empty, list):
        _refuse("files and empty_directories must be lists")
    manifest = Manifest(
        step=value["step"],
        epoch=value["epoch"],
        attempt=value["attempt"],
        files=tuple(_decode_file(each) for each in listed),
        trial_id=trial_id,
        empty_directories=tuple(empty),
    )
    _check(manifest)
    return manifest


def _decode_file(value: Any) -> ManifestFile:
    if not isinstance(value, dict):
        _refuse(f"an entry of files must be an object, not {value!r:.80}")
    _exactly(value, _FILE_KEYS, "an entry of files")
    crc = value["crc32c"]
    if not isinstance(crc, str) or len(crc) != _CRC_DIGITS or not _HEX.issuperset(crc):
        _refuse(f"crc32c must be 8 hex digits, not {crc!r:.80}")
    return ManifestFile(value["path"], value["size_bytes"], int(crc, 16), value["sha256"])


def _exactly(value: dict[str, Any], keys: frozenset[str], what: str) -> None:
    if value.keys() != keys:
        missing, unknown = sorted(keys - value.keys()), sorted(value.keys() - keys)
        _refuse(f"{what} lacks {missing} and has unknown {unknown}")


def _pairs(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        _refuse("a name appears twice in one object")
    return made


def _no_constant(name: str) -> NoReturn:
    _refuse(f"{name} is no JSON number")
