"""Owns what a node tells of a staged directory before its bytes: the manifest and permission bits. No file, no call.

An offer is decoded as something that a stranger sent: a manifest with impossible paths is none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NoReturn

from asynctune.checkpoints.manifest import MAX_MANIFEST_BYTES, Manifest, ManifestError
from asynctune.checkpoints.tree import Tree, private_mode
from asynctune.errors import ConfigError
from asynctune.files import DIR_MODE, FILE_MODE
from asynctune.packing import UnpackError, pack, unpack

__all__ = ["MAX_OFFER_BYTES", "Offer"]

MAX_OFFER_BYTES: Final = MAX_MANIFEST_BYTES
"""The largest offer, encoded."""

_MODE_BYTES: Final = 2
_FIELDS: Final = {"manifest", "modes", "directories", "mode"}


@dataclass(frozen=True, slots=True)
class Offer:
    """A tree that is offered.

    Attributes:
        manifest: Its files, sorted by path.
        modes: Permission bits of each file, in that order; never more than a staged copy may have.
        directories: Permission bits of directories below its root, by relative path; any may be missing.
        mode: Those of its root.
    """

    manifest: Manifest
    modes: Sequence[int]
    directories: Mapping[str, int]
    mode: int

    @classmethod
    def of(cls, manifest: Manifest, tree: Tree) -> Offer:
        """The offer of a directory that was looked at, whose files are those of the manifest."""
        modes = {file.path: file.mode for file in tree.files}
        return cls(
            manifest,
            [private_mode(modes[file.path], FILE_MODE) for file in manifest.files],
            {path: private_mode(mode, DIR_MODE) for path, mode in tree.directories},
            private_mode(tree.mode, DIR_MODE),
        )

    def encode(self) -> bytes:
        """As bytes; for a thread.

        Raises:
            ConfigError: It is too large.
        """
        return pack(
            {
                "manifest": self.manifest.encode(),
                "modes": b"".join(mode.to_bytes(_MODE_BYTES, "little") for mode in self.modes),
                "directories": dict(self.directories),
                "mode": self.mode,
            },
            "the list of a checkpoint's files",
            max_bytes=MAX_OFFER_BYTES,
        )

    @classmethod
    def decode(cls, data: bytes) -> Offer:
        """Take back what `encode` made, trusting nothing; for a thread.

        Raises:
            ConfigError: It is something else.
        """
        try:
            value = unpack(data)
            if not isinstance(value, dict) or value.keys() != _FIELDS:
                _refuse("it lacks fields, or has unknown ones")
            manifest, modes, directories = value["manifest"], value["modes"], value["directories"]
            if not isinstance(manifest, bytes) or not isinstance(modes, bytes):
                _refuse("its manifest or modes are no bytes")
            decoded = Manifest.decode(manifest)
        except (UnpackError, ManifestError) as error:
            raise ConfigError(f"a checkpoint that a node offers cannot be taken: {error}") from error
        if len(modes) != _MODE_BYTES * len(decoded.files):
            _refuse("it has not one mode for each file")
        if not isinstance(directories, dict) or not all(isinstance(path, str) for path in directories):
            _refuse("its directories are no map")
        return cls(
            decoded,
            [
                private_mode(int.from_bytes(modes[at : at + _MODE_BYTES], "little"), FILE_MODE)
                for at in range(0, len(modes), _MODE_BYTES)
            ],
            {path: private_mode(_bits(mode), DIR_MODE) for path, mode in directories.items()},
            private_mode(_bits(value["mode"]), DIR_MODE),
        )


def _bits(mode: Any) -> int:
    if not isinstance(mode, int):
        _refuse(f"a mode is {mode!r:.80}")
    return mode


def _refuse(what: str) -> NoReturn:
    raise ConfigError(f"a checkpoint that a node offers cannot be taken: {what}")
