"""Owns the child processes that the benchmarks measure in: one subject each, asked for its turn over a pipe.

A subject (the store with N trials, Ray Tune with N trials, a bare file) is prepared once and then waits; the
parent asks one after the other, round after round, so that all of them see the same weather on the disk.
Run as a script, this module is the child: `python bench/_children.py MODULE:CLASS`.
"""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import sys
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import IO, Any, Protocol

__all__ = ["Child", "Subject", "child"]

_LINE_LIMIT = 64 * 1024 * 1024


class Subject(Protocol):
    """What a child runs; each method answers with JSON values."""

    async def prepare(self, **settings: Any) -> dict[str, Any]:
        """Get ready; called once, first."""
        ...

    async def measure(self, **settings: Any) -> dict[str, Any]:
        """One turn."""
        ...

    async def close(self) -> None:
        """Called once, last."""
        ...


class Child:
    """The parent's end of one child."""

    def __init__(self, process: asyncio.subprocess.Process, name: str, errors: IO[bytes]) -> None:
        self._process = process
        self._name = name
        self._errors = errors

    async def prepare(self, **settings: Any) -> dict[str, Any]:
        """Have the subject get ready."""
        return await self._ask("prepare", settings)

    async def measure(self, **settings: Any) -> dict[str, Any]:
        """Give the subject its turn."""
        return await self._ask("measure", settings)

    async def kill(self) -> None:
        """End the child with SIGKILL, in the middle of whatever it does."""
        self._process.kill()
        await self._process.wait()

    async def _ask(self, method: str, settings: dict[str, Any]) -> dict[str, Any]:
        reader, writer = self._process.stdout, self._process.stdin
        if reader is None or writer is None:
            raise RuntimeError("the child was started without pipes")
        writer.write(json.dumps([method, settings]).encode() + b"\n")
        await writer.drain()
        line = await reader.readline()
        if not line:
            await self._process.wait()
            self._errors.seek(0)
            tail = self._errors.read()[-4000:].decode(errors="replace")
            msg = f"{self._name} ended with status {self._process.returncode} in {method}:\n{tail}"
            raise RuntimeError(msg)
        answer: dict[str, Any] = json.loads(line)
        return answer


@asynccontextmanager
async def child(subject: str, **environment: str) -> AsyncIterator[Child]:
    """Start `MODULE:CLASS` in a process of its own, and end it afterwards."""
    with tempfile.TemporaryFile() as errors:
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            __file__,
            subject,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=errors,
            env=os.environ | environment,
            limit=_LINE_LIMIT,
        )
        try:
            yield Child(process, subject, errors)
            if process.stdin is not None and process.returncode is None:
                process.stdin.close()  # end of input: the child closes its subject
            await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()


async def _serve(subject: Subject, answers: IO[str]) -> None:
    loop = asyncio.get_running_loop()
    try:
        # A thread waits for the line, so that the subject's own tasks run between turns.
        while line := await loop.run_in_executor(None, sys.stdin.readline):
            method, settings = json.loads(line)
            result = await getattr(subject, method)(**settings)
            answers.write(json.dumps(result) + "\n")
            answers.flush()
    finally:
        await subject.close()


def _main() -> None:
    # Whatever a peer prints goes to standard error; the pipe carries answers alone.
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    module, _, name = sys.argv[1].partition(":")
    subject: Subject = getattr(importlib.import_module(module), name)()
    asyncio.run(_serve(subject, answers))


if __name__ == "__main__":
    _main()
