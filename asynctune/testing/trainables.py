"""Owns the trainables that the suite for runners runs; importable by worker processes, which need no pytest."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from asynctune.session import (
    areport,
    get_checkpoint,
    get_trial_dir,
    get_trial_id,
    get_trial_name,
    report,
)
from asynctune.trainable import Trainable
from asynctune.trial import Checkpoint

__all__ = ["Counter", "coroutine", "function"]


async def coroutine(config: dict[str, Any]) -> dict[str, Any] | None:
    """Does what its config says: `reports`, `checkpoints`, `returns`, `fail`, `swallow`."""
    about = await asyncio.to_thread(_about)
    try:
        for number in range(config.get("reports", 0)):
            checkpoint = await asyncio.to_thread(_made, number, config)
            try:
                await areport({"number": number, **about}, checkpoint)
            except Exception:
                if config.get("swallow") == "Exception":
                    continue
                raise
            except BaseException:
                if config.get("swallow") == "BaseException":
                    continue
                raise
        if config.get("fail"):
            raise ValueError(config["fail"])
    finally:
        await asyncio.to_thread(_leave_a_note)
    return config.get("returns")


def function(config: dict[str, Any]) -> dict[str, Any] | None:
    """The same, blocking."""
    try:
        for number in range(config.get("reports", 0)):
            try:
                report({"number": number, **_about()}, _made(number, config))
            except Exception:
                if config.get("swallow") == "Exception":
                    continue
                raise
            except BaseException:
                if config.get("swallow") == "BaseException":
                    continue
                raise
        if config.get("fail"):
            raise ValueError(config["fail"])
    finally:
        _leave_a_note()
    return config.get("returns")


class Counter(Trainable):
    """Counts to `until`; a checkpoint is the count."""

    def setup(self, config: dict[str, Any]) -> None:
        """Begin at zero."""
        self.count = 0
        if config.get("fail"):
            raise ValueError(config["fail"])

    def step(self) -> dict[str, Any]:
        """One more."""
        self.count += 1
        return {
            "count": self.count,
            "done": self.count >= self.config["until"],
            "should_checkpoint": self.count in self.config.get("asks", ()),
        }

    def save_checkpoint(self, checkpoint_dir: str) -> None:
        """Into a file."""
        Path(checkpoint_dir, "number").write_text(str(self.count), "ascii")

    def load_checkpoint(self, checkpoint: Any) -> None:
        """From the file."""
        self.count = int(Path(checkpoint, "number").read_text("ascii"))

    def cleanup(self) -> None:
        """Leave a note that it was called."""
        Path(self.trial_dir, "ended").write_text("yes", "ascii")


def _about() -> dict[str, Any]:
    return {
        "id": get_trial_id(),
        "name": get_trial_name(),
        "dir": get_trial_dir(),
        "from": _number(get_checkpoint()),
    }


def _number(checkpoint: Checkpoint | None) -> int | None:
    return None if checkpoint is None else int(Path(checkpoint, "number").read_text("ascii"))


def _made(number: int, config: dict[str, Any]) -> Checkpoint | None:
    """A checkpoint in the same directory each time, which may be used again as soon as a report has returned."""
    if not config.get("checkpoints"):
        return None
    directory = Path(get_trial_dir(), "work")
    directory.mkdir(exist_ok=True)
    Path(directory, "number").write_text(str(number), "ascii")
    return Checkpoint.from_directory(directory)


def _leave_a_note() -> None:
    Path(get_trial_dir(), "ended").write_text("yes", "ascii")
