"""What is left after a crash: asynctune, Ray Tune, Optuna's journal, killed while they save, and cut short.

- `kills`: a driver that knows 2 000 trials saves in a loop and gets SIGKILL at a random moment. `unreadable`:
  the state cannot be read afterwards. `missing`: saves that had returned before the kill and are not there.
- `cuts`: the file of the journal whose last write is cut short, at lengths spread over that write, as a power
  loss leaves it. `refused`: it does not open. `refused later`: it opens, and the next save or the next
  opening fails.

Ray replaces its one file in place: each kill is a cut, and a cut file is unreadable. Counts, not times.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import shutil
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any, Protocol

from _children import child
from _common import (
    NOT_INSTALLED,
    Cell,
    Column,
    Options,
    Report,
    Target,
    installed,
    options,
    progress,
    run,
    scratch,
)
from _load import StoreCommits, trial_id
from _peers import OptunaJournal, RayTune

from asynctune import ExperimentStore
from asynctune.errors import AsynctuneError

_CUT_TRIALS = 5
_ACKNOWLEDGED = "acknowledged"


class _Saver:
    """Saves in a loop until it is killed, and notes each save that returned as one byte in a file."""

    kind: type[Any]

    async def prepare(self, directory: str, trials: int) -> dict[str, Any]:
        self._subject = self.kind()
        self._fd = os.open(f"{directory}/{_ACKNOWLEDGED}", os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        result: dict[str, Any] = await self._subject.prepare(directory=directory, trials=trials)
        return result

    async def measure(self, count: int = 1_000_000_000) -> dict[str, Any]:
        for _ in range(count):
            await self._subject.measure(count=1)
            os.write(self._fd, b".")
        return {}

    async def close(self) -> None:
        await self._subject.close()


class StoreSaver(_Saver):
    kind = StoreCommits


class RaySaver(_Saver):
    kind = RayTune


class OptunaSaver(_Saver):
    kind = OptunaJournal


# -- reading back: how many saves are there, or None if the state cannot be read --------------------


async def _read_store(directory: Path, *, save: bool = False) -> int | None:
    try:
        async with ExperimentStore.open(directory / "experiment", mode="resume") as store:
            saves: int = sum(trial.num_results for trial in store.trials)
            if save:
                store.report(trial_id(0), {"loss": 0.0})
                await store.flush()
            return saves
    except AsynctuneError:
        return None


async def _read_ray(directory: Path, *, save: bool = False) -> int | None:
    del save  # its file is always written whole
    [path] = [path for path in _files(directory) if path.name.startswith("experiment_state")]
    try:
        state = json.loads(await asyncio.to_thread(path.read_bytes))
    except ValueError:
        return None
    return len(state["trial_data"])


async def _read_optuna(directory: Path, *, save: bool = False) -> int | None:
    return await asyncio.to_thread(_read_optuna_journal, directory, save=save)


def _read_optuna_journal(directory: Path, *, save: bool) -> int | None:
    import optuna  # noqa: PLC0415 - a peer
    from optuna.storages import JournalStorage  # noqa: PLC0415
    from optuna.storages.journal import JournalFileBackend  # noqa: PLC0415

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    # The killed process may have left its lock, which waiting for 30 s removes as well.
    (directory / "journal.log.lock").unlink(missing_ok=True)
    try:
        storage = JournalStorage(JournalFileBackend(str(directory / "journal.log")))
        study = optuna.load_study(study_name="bench", storage=storage)
        saves: int = sum(trial.state.is_finished() for trial in study.get_trials(deepcopy=False))
        if save:
            study.tell(study.ask(), 0.0)
    except Exception:  # noqa: BLE001 - whatever it is, it does not open
        return None
    return saves


def _files(directory: Path) -> Iterator[Path]:
    return (path for path in directory.rglob("*") if path.is_file())


class _Read(Protocol):
    def __call__(self, directory: Path, *, save: bool = False) -> Awaitable[int | None]: ...


_READERS: dict[str, tuple[str, str, _Read]] = {
    "asynctune": ("asynctune", "crash:StoreSaver", _read_store),
    "Ray Tune": ("ray", "crash:RaySaver", _read_ray),
    "Optuna journal": ("optuna", "crash:OptunaSaver", _read_optuna),
}


# -- the two experiments ------------------------------------------------------------------------------------


async def _kill_once(name: str, directory: Path, trials: int, rng: random.Random) -> tuple[bool, int]:
    """Whether the state was unreadable after a kill, and how many acknowledged saves are missing."""
    _, saver, read = _READERS[name]
    await asyncio.to_thread(directory.mkdir)
    async with child(saver) as driver:
        prepared = await driver.prepare(directory=str(directory), trials=trials)
        task = asyncio.ensure_future(driver.measure())
        await asyncio.sleep(rng.uniform(0.2, 1.0))
        await driver.kill()
        await asyncio.wait([task])
        task.exception()  # that it was killed
    acknowledged = prepared.get("saves", trials) + (directory / _ACKNOWLEDGED).stat().st_size
    saves = await read(directory)
    await asyncio.to_thread(shutil.rmtree, directory)
    if name == "Ray Tune":
        acknowledged = trials  # one file with all trials: what is readable is complete
    return saves is None, 0 if saves is None else max(0, acknowledged - saves)


async def _cut(name: str, directory: Path, cuts: int) -> tuple[int, int]:
    """How many cut files did not open, and how many did not open a second time."""
    _, saver, read = _READERS[name]
    original, copy = directory / f"{name}-original", directory / f"{name}-copy"
    await asyncio.to_thread(original.mkdir)
    async with child(saver) as driver:
        await driver.prepare(directory=str(original), trials=_CUT_TRIALS)
        before = _journal(original).stat().st_size
        await driver.measure(count=1)
        await driver.kill()
    journal = _journal(original)
    after = journal.stat().st_size
    if name == "Optuna journal":  # three writes a save: the last one is the last line
        before = after - len(journal.read_bytes().splitlines(keepends=True)[-1])
    refused = refused_later = 0
    for index in range(cuts):
        await asyncio.to_thread(shutil.copytree, original, copy)
        length = before + 1 + (after - before - 2) * index // (cuts - 1)
        os.truncate(copy / journal.relative_to(original), length)
        if await read(copy) is None:
            refused += 1
        elif await read(copy, save=True) is None or await read(copy) is None:
            refused_later += 1
        await asyncio.to_thread(shutil.rmtree, copy)
    return refused, refused_later


def _journal(directory: Path) -> Path:
    """The file that the last save was appended to."""
    return max(
        (path for path in _files(directory) if path.name.startswith(("wal-", "journal.log"))),
        key=lambda path: path.stat().st_mtime_ns,
    )


async def measure(settings: Options) -> Report:
    trials, kills = settings.trials[0], settings.rounds
    cuts = 20 if settings.quick else 100
    rng = random.Random(7)
    logging.getLogger("asynctune").setLevel(logging.ERROR)  # each tear is reported, and there are many here
    names = [name for name, (module, _, _) in _READERS.items() if installed(module)]
    unreadable = dict.fromkeys(names, 0)
    missing = dict.fromkeys(names, 0)
    found_cuts: dict[str, tuple[int, int]] = {}
    async with scratch(settings) as directory:
        for turn in range(kills):
            progress(f"kill {turn + 1} of {kills}")
            for name in names:
                failed, lost = await _kill_once(name, directory / f"{name}-{turn}", trials, rng)
                unreadable[name] += failed
                missing[name] += lost
        for name in names:
            if name != "Ray Tune":
                progress(f"{cuts} cuts of {name}")
                found_cuts[name] = await _cut(name, directory, cuts)
    rows: list[dict[str, Cell]] = []
    for name in _READERS:
        if name not in names:
            rows.append({"name": name, "kills": NOT_INSTALLED})
            continue
        row: dict[str, Cell] = {
            "name": name,
            "kills": kills,
            "unreadable": unreadable[name],
            "missing": None if name == "Ray Tune" else missing[name],
        }
        if name in found_cuts:
            row |= {"cuts": cuts, "refused": found_cuts[name][0], "later": found_cuts[name][1]}
        rows.append(row)
    refused, later = found_cuts["asynctune"]
    return Report(
        name="crash",
        title=f"After a crash, {trials:,} trials",
        columns=(
            Column(key="name", title=""),
            Column(key="kills", title="kills"),
            Column(key="unreadable", title="unreadable"),
            Column(key="missing", title="acknowledged saves missing"),
            Column(key="cuts", title="cuts"),
            Column(key="refused", title="refused"),
            Column(key="later", title="refused later"),
        ),
        rows=rows,
        targets=(
            Target(
                what="asynctune: states unreadable, saves missing, cut journals refused",
                measured=unreadable["asynctune"] + missing["asynctune"] + refused + later,
                limit=0,
            ),
        ),
        notes=("The machine stays up and only the process dies: a missing fsync does not show here.",),
        settings={"rounds": kills, "trials": trials, "cuts": cuts, "cut_trials": _CUT_TRIALS},
    )


if __name__ == "__main__":
    run(measure, options(__doc__, trials=(2_000,), quick_trials=(2_000,), rounds=12, quick_rounds=3))
