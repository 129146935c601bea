"""Lets several processes open one experiment in the same moment: one gets it, and the others are told who has."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

from asynctune.store.store import ExperimentStore
from tests.killing import ROOT

__all__ = ["race"]


async def race(directory: Path, rounds: int, count: int = 3) -> dict[str, int]:
    """`count` processes, `rounds` times; every fourth experiment is a new one. How often each answer came."""
    outcomes: dict[str, int] = {}
    processes = [
        await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.crash.opener"),
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        for _ in range(count)
    ]
    try:
        await asyncio.gather(*(_answer(process) for process in processes))
        for number in range(rounds):
            location = directory / f"exp{number // 4}"
            _tell_all(processes, str(location))
            answers = await asyncio.gather(*(_answer(process) for process in processes))
            assert answers.count("open") == 1, answers
            for answer in answers:
                assert answer == "open" or answer.startswith(("ExperimentLockedError", "FencedError")), answer
                name = answer.partition(" ")[0]
                outcomes[name] = outcomes.get(name, 0) + 1
            _tell_all(processes, "")
            await asyncio.gather(*(_answer(process) for process in processes))
            async with ExperimentStore.open(location, "read") as reader:
                assert sum(reader.metadata.values()) > 0
                assert len(set(reader.metadata.values())) == len(reader.metadata)
    finally:
        for process in processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in processes:
            await process.wait()
    return outcomes


def _tell_all(processes: list[asyncio.subprocess.Process], line: str) -> None:
    for process in processes:
        assert process.stdin is not None
        process.stdin.write(line.encode() + b"\n")


async def _answer(process: asyncio.subprocess.Process) -> str:
    assert process.stdout is not None
    return (await process.stdout.readline()).decode().strip()
