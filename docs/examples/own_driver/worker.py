"""The process that trains: one line of JSON in for each task, lines of JSON out for what came of it.

It ends by itself when its driver is gone, however that died: the end of its standard input is the sign. Nothing has
to be cleaned up then; an epoch that no driver hears of is trained again.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from pathlib import Path
from typing import Any

from model import DigitsModel


def read(put: Any) -> None:
    try:
        for line in sys.stdin.buffer:
            put(json.loads(line))
    finally:
        os._exit(0)


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to answer
    tasks: queue.SimpleQueue[dict[str, Any]] = queue.SimpleQueue()
    threading.Thread(target=read, args=(tasks.put,), daemon=True).start()
    while True:
        task = tasks.get()
        try:
            model = DigitsModel(task["config"])
            if task["checkpoint"] is not None:
                model.load(Path(task["checkpoint"]))
            while model.epoch < task["until"]:
                result = model.train_epoch()
                directory = Path(task["directory"], str(model.epoch))
                model.save(directory)
                say({"result": result, "checkpoint": str(directory)})
            say({"done": True})
        except Exception as error:  # noqa: BLE001 - the end of the trial, not the worker: the driver records it
            say({"error": f"{type(error).__name__}: {error}"})


def say(message: dict[str, Any]) -> None:
    try:
        print(json.dumps(message), flush=True)
    except OSError:  # the driver is gone
        os._exit(0)


if __name__ == "__main__":
    main()
