"""Owns the directory that a checkpoint is restored to: made when it is needed, left as it was found after a failure."""

from __future__ import annotations

import os
import secrets

from asynctune.checkpoints.context import Context
from asynctune.checkpoints.stage import ensure_directory
from asynctune.errors import ConfigError

__all__ = ["Target"]


class Target:
    """The directory a checkpoint is restored to. Every method is for a thread.

    Args:
        context: What the room shares.
        to: A new or empty directory; `None`: one of asynctune's own.

    Attributes:
        path: Where it is.
    """

    def __init__(self, context: Context, to: str | None) -> None:
        self._files = context.files
        self._private = to is None
        self._made = False
        self._entered = False
        self.path = (
            os.path.join(context.scratch_dir, f"{context.nonce}-{secrets.token_hex(4)}") if to is None else to
        )

    def make(self) -> None:
        """Make it; one that was given may exist if it is empty."""
        if self._private:
            ensure_directory(self._files, os.path.dirname(self.path), private=True)
        self.path = os.path.abspath(self.path)
        if os.path.isdir(self.path):
            if os.listdir(self.path):
                raise ConfigError(f"{self.path} is not empty; restore to a new or empty directory")
        else:
            parent = os.path.dirname(self.path)
            if not self._private and not os.path.isdir(parent):
                os.makedirs(parent)
            try:
                self._files.make_dir(self.path)
            except FileExistsError as error:
                raise ConfigError(
                    f"{self.path} is not a directory; restore to a new or empty directory"
                ) from error
            except OSError:
                self._made = os.path.isdir(self.path)
                raise
            self._made = True
        self._entered = True

    def clear(self) -> None:
        """Leave it as it was found."""
        if self._made:
            if self._files.exists(self.path):
                self._files.remove_tree(self.path)
        elif self._entered:
            for name in os.listdir(self.path):
                path = os.path.join(self.path, name)
                if os.path.isdir(path) and not os.path.islink(path):
                    self._files.remove_tree(path)
                else:
                    self._files.unlink(path)
        self._made = self._entered = False
