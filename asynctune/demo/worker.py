"""Owns the process that trains: one line of JSON in for each task, lines of JSON out for what came of it.

`python -m asynctune.demo.worker`, started by `asynctune.demo.workers` with a socket. It ends by itself when
its driver is gone, however that died: the end of its standard input is the sign, seen within a moment by a
thread of its own. Nothing has to be cleaned up then; an epoch that no driver hears of is trained again.

==================================================== ======================================================
in                                                   out
==================================================== ======================================================
`{"config", "checkpoint", "until", "directory"}`     `{"epoch", "metrics", "checkpoint", "ended_at"}` after
                                                     each epoch, then `{"done": true}`
`{"config", "checkpoint", "test": true}`             `{"test_accuracy", "done": true}`
anything that fails                                  `{"error", "storage"}`: the reason, and whether it is the
                                                     disk's and not the trial's
==================================================== ======================================================
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from asynctune.clock import SystemClock
from asynctune.demo.training import Digits, DigitsModel

__all__ = ["main", "perform"]

Task = Mapping[str, Any]


def perform(task: Task, digits: Digits) -> Iterator[dict[str, Any]]:
    """Do one task; the messages that come of it."""
    model = DigitsModel(task["config"], digits)
    if task["checkpoint"] is not None:
        model.load(task["checkpoint"])
    if task.get("test"):
        yield {"test_accuracy": model.accuracy("test"), "done": True}
        return
    clock = SystemClock()
    while model.epoch < task["until"]:
        metrics = model.train_epoch()
        directory = Path(task["directory"]) / f"epoch_{model.epoch}"
        model.save(directory)
        yield {
            "epoch": model.epoch,
            "metrics": metrics,
            "checkpoint": str(directory),
            "ended_at": clock.time(),
        }
    yield {"done": True}


def main() -> None:
    """Work off standard input until it ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    # What a library prints must not end up between the messages.
    out = os.fdopen(os.dup(sys.stdout.fileno()), "wb", buffering=0)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin.buffer, tasks.put), daemon=True).start()
    digits = Digits.load()
    _send(out, {"ready": os.getpid()})
    while True:
        task = tasks.get()
        try:
            for message in perform(task, digits):
                _send(out, message)
        except Exception as error:  # noqa: BLE001 - the end of the trial, not the worker: the driver records it
            reason = f"{type(error).__name__}: {error}"
            _send(out, {"error": reason, "storage": isinstance(error, OSError)})


def _read(lines: BinaryIO, put: Callable[[Task], None]) -> None:
    try:
        for line in lines:
            put(json.loads(line))
    finally:
        os._exit(0)


def _send(out: Any, message: Mapping[str, Any]) -> None:
    try:
        out.write(json.dumps(message).encode("ascii") + b"\n")
    except OSError:  # the driver is gone
        os._exit(0)


if __name__ == "__main__":
    main()
