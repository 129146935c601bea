"""What the tests of runners run: trials that behave badly. Importable by workers, quickly."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import ctypes
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

from asynctune import Checkpoint, Trainable, session


def note(name, text=""):
    Path(session.get_trial_dir(), name).write_text(str(text), "utf-8")


def pid(config):
    session.report({"pid": os.getpid()})


def leaves(config):
    os._exit(config["code"])


def exits(config):
    sys.exit(config["code"])


class Unprintable(Exception):  # noqa: N818
    def __str__(self):
        raise SystemExit(7)

    __repr__ = __str__


def raises(config):
    match config["what"]:
        case "interrupt":
            raise KeyboardInterrupt
        case "unprintable":
            raise Unprintable
        case "surrogate":
            raise ValueError("bad \udcff text")
        case "huge":
            raise ValueError("x" * 10_000_000 + "the end")
        case "group":
            raise ExceptionGroup("several", [ValueError("one"), KeyError("two")])
        case "recursion":
            raises(config)


async def araises(config):
    match config["what"]:
        case "exit":
            sys.exit(3)
        case "cancelled":
            inner = asyncio.create_task(asyncio.sleep(60))
            await asyncio.sleep(0)
            inner.cancel()
            await inner
        case "group":
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(reports_on())
                tasks.create_task(reports_on())


async def reports_on():
    while True:
        await session.areport({"loss": 1})


def ignores(config):
    while True:
        with contextlib.suppress(BaseException):
            session.report({"pid": os.getpid()})
        time.sleep(0.01)


async def acleans_up(config):
    try:
        while True:
            await session.areport({"loss": 1})
    finally:
        await asyncio.sleep(0)
        await asyncio.to_thread(note, "cleaned")


async def agenerates(config):
    try:
        while True:
            yield {"loss": 1}
    finally:
        await asyncio.to_thread(note, "cleaned")


def generates(config):
    try:
        while True:
            yield {"loss": 1}
    finally:
        note("cleaned")


def reports_in_a_thread(config):
    seen = []

    def run():
        try:
            session.report({"loss": 1})
            session.report({"loss": 2})
        except BaseException as error:
            seen.append(type(error).__name__)
            raise

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    note("seen", seen)


_late = threading.Event()
_said: list[str] = []


def leaves_a_thread(config):
    """The thread of the first trial reports while the second one runs."""

    def run():
        _late.wait()
        try:
            session.report({"from": "the first"})
        except BaseException as error:  # noqa: BLE001
            _said.append(str(error))
        _said.append("done")

    if config["first"]:
        threading.Thread(target=run, daemon=True).start()
        return
    _late.set()
    while "done" not in _said:
        time.sleep(0.001)
    session.report({"said": list(_said)})


def leaves_a_thread_with_its_context(config):
    """Likewise, but the thread knows whose it is."""

    def run():
        _late.wait()
        try:
            session.report({"from": "the first"})
        except BaseException as error:  # noqa: BLE001
            _said.append(str(error))
        _said.append("done")

    if config["first"]:
        threading.Thread(target=contextvars.copy_context().run, args=[run], daemon=True).start()
        return
    _late.set()
    while "done" not in _said:
        time.sleep(0.001)
    session.report({"said": list(_said)})


def forks(config):
    """A child lives on, with everything open; the parent ends as told."""
    child = os.fork()
    if child == 0:
        with contextlib.suppress(BaseException):
            session.report({"from": "the child"})
        time.sleep(60)
        os._exit(0)
    session.report({"child": child})
    if config.get("die"):
        os.kill(os.getpid(), signal.SIGKILL)


def forks_in_c(config):
    """Likewise by C, which runs none of Python's handlers."""
    child = ctypes.PyDLL(None).fork()
    if child == 0:
        ctypes.CDLL(None).pause()
    session.report({"child": child})
    os.kill(os.getpid(), signal.SIGKILL)


def _square(number):
    return number * number


def multiprocesses(config):
    with multiprocessing.get_context(config["method"]).Pool(2) as pool:
        return {"squares": pool.map(_square, [1, 2, 3])}


def prints(config):
    for _ in range(config["lines"]):
        print("x" * 99)
    os.write(1, b"raw\n")
    ctypes.CDLL(None).printf(b"from C\n")
    print("err", file=sys.stderr)
    if config.get("kill"):
        os.kill(os.getpid(), signal.SIGKILL)


def disturbs(config):
    """Everything that a trial may leave behind in its process."""
    if not config["disturb"]:
        return {
            "pid": os.getpid(),
            "directory": os.getcwd(),
            "term": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
            "interrupt": signal.getsignal(signal.SIGINT) == signal.SIG_IGN,
            "timer": signal.getitimer(signal.ITIMER_REAL)[0],
            "stdout": os.fstat(1).st_ino,
            "prints": print("still here") is None,
        }
    before = {"pid": os.getpid(), "directory": os.getcwd(), "stdout": os.fstat(1).st_ino}
    os.chdir("/")
    signal.signal(signal.SIGTERM, lambda *_: None)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.setitimer(signal.ITIMER_REAL, 60)
    sys.stdout.close()
    sys.stdout = None
    return before


def closes_everything(config):
    session.report({"loss": 1})
    os.closerange(3, 1000)
    session.report({"loss": 2})


def reports_badly(config):
    match config["what"]:
        case "huge":
            session.report({"x": b"x" * (65 << 20)})
        case "object":
            session.report({"x": object()})
        case "deep":
            value: list = []
            for _ in range(2000):
                value = [value]
            session.report({"x": value})
        case "number":
            session.report(3)  # type: ignore[arg-type]
        case "checkpoint":
            session.report({}, "a path")  # type: ignore[arg-type]


def numbers(config):
    import numpy as np  # noqa: PLC0415

    session.report(
        {
            "float32": np.float32(0.5),
            "float64": np.float64(0.25),
            "int": np.int64(3),
            "bool": np.bool_(True),
            "zero": np.array(1.5),
            "nan": float("nan"),
            "inf": float("-inf"),
            "set": {1, 2},
        }
    )


def blocks(config):
    session.report({"pid": os.getpid()})
    if config["how"] == "sleep":
        time.sleep(60)
    else:
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter


def starts_children(config):
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    session.report({"pid": os.getpid(), "child": child.pid})
    time.sleep(60)


def arguments(config):
    return {
        "argv": sys.argv,
        "path": sys.path,
        "main": sys.modules["__main__"].__name__,
        "package": sys.modules["asynctune"].__file__,
    }


def same_directory(config):
    """Writes each checkpoint into one directory, and says what it saw of the earlier ones."""
    path = Path(session.get_trial_dir(), "mine")
    path.mkdir()
    for iteration in range(3):
        Path(path, "file").write_text(str(iteration), "ascii")
        session.report({"iteration": iteration}, Checkpoint.from_directory(path))


class Watched(Trainable):
    """Writes down what is called."""

    def setup(self, config):
        self._say("setup")
        if config.get("fail") == "setup":
            raise ValueError("setup")

    def step(self):
        if self.config.get("fail") == "step":
            raise ValueError("step")
        return {"done": self.iteration + 1 >= self.config.get("until", 1), "object": id(self)}

    def save_checkpoint(self, checkpoint_dir):
        if self.config.get("fail") == "save":
            raise ValueError("save")
        Path(checkpoint_dir, "model").write_text("x", "ascii")
        returned = {
            "file": str(Path(checkpoint_dir, "model")),
            "directory": checkpoint_dir,
            "elsewhere": "/tmp",
            "nothing there": Path(checkpoint_dir, "no such file"),
            "number": 3,
            "list": ["model"],
            "bytes": os.fsencode(checkpoint_dir),
            "checkpoint": Checkpoint.from_directory(checkpoint_dir),
        }
        return returned.get(self.config.get("returns", ""))

    def load_checkpoint(self, checkpoint):
        self._say(f"load {Path(checkpoint).name} {Path(checkpoint).is_file()}")

    def cleanup(self):
        self._say("cleanup")
        if self.config.get("fail") == "cleanup":
            raise ValueError("cleanup")

    def _say(self, text):
        with Path(self.trial_dir, "said").open("a", encoding="ascii") as file:
            file.write(text + "\n")


class Reused(Watched):
    """One object for several trials."""

    def reset_config(self, new_config):
        self._say("reset")
        if new_config.get("fail") == "reset":
            raise ValueError("reset")
        return not new_config.get("refuse")


class HangsAtItsEnd(Watched):
    """Saves when it is told to stop, and never ends then."""

    def step(self):
        return {"pid": os.getpid()}

    def cleanup(self):
        threading.Event().wait()
