"""Takes the power away: a real ext4 on a loop device is shut down in the middle of operations, and mounted again.

Needs root. Mounts only inside a mount namespace of its own (`unshare -m`), which ends with the process.
"""

from __future__ import annotations

import fcntl
import json
import os
import random
import shutil
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Iterable

from asynctune.files import LocalFiles
from asynctune.state.recovery import recover
from asynctune.testing import FaultyFiles, Operation
from tests.lab.registry import Lab, Row, experiment
from tests.lab.states import Session, Truth

_FS_IOC_SHUTDOWN = 0x8004587D
_WITHOUT_FLUSHING_THE_LOG = 2
_DISK_BYTES = 24 * 1024 * 1024


class Ended(BaseException):
    """The process was killed, or the power went."""


class _Disk:
    """One filesystem in a file."""

    def __init__(self, directory: str, kind: str) -> None:
        self.image, self.place = f"{directory}/disk.img", f"{directory}/disk"
        os.makedirs(self.place, exist_ok=True)
        with open(self.image, "wb") as file:
            file.truncate(_DISK_BYTES)
        _run(f"mkfs.{kind}", "-q", "-F", self.image)
        self.mount()

    def mount(self) -> None:
        _run("mount", "-o", "loop", self.image, self.place)

    def unmount(self) -> None:
        _run("umount", self.place)

    def lose_power(self) -> None:
        """Nothing that was not synced reaches the disk from here on."""
        fd = os.open(self.place, os.O_RDONLY)
        try:
            fcntl.ioctl(fd, _FS_IOC_SHUTDOWN, struct.pack("I", _WITHOUT_FLUSHING_THE_LOG))
        finally:
            os.close(fd)


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def lose_power_once(directory: str, rng: random.Random) -> str:
    """Work, be killed now and then, lose the power, and read what is left. What was acknowledged is there."""
    disk = _Disk(directory, "ext4")
    try:
        truth = Truth()
        state = f"{disk.place}/state"
        tried: dict[str, bytes] = {}
        kills = rng.randrange(3)
        for life in range(kills + 1):
            files = FaultyFiles()
            nth = rng.randint(1, 60)
            files.call(_ending(disk if life == kills else None), nth=nth, lasting=True)
            tried = _live(state, truth, files, rng, tried)
        disk.unmount()
        disk.mount()
        if not os.path.isdir(state):
            assert truth.seq == 0
            return "nothing acknowledged"
        found = recover(state, LocalFiles())
        assert found.seq >= truth.seq, f"acknowledged {truth.seq}, recovered {found.seq}"
        assert found.records == (truth.records[truth.seq] if found.seq == truth.seq else tried)
        return "tear" if found.notices else "clean end"
    finally:
        disk.unmount()


def _close_below(place: str) -> None:
    """What the end of a process does to its descriptors."""
    for name in os.listdir("/proc/self/fd"):
        try:
            target = os.readlink(f"/proc/self/fd/{name}")
        except FileNotFoundError:
            continue  # the listing's own
        if target.startswith(f"{place}/") or target == place:
            os.close(int(name))


def _ending(disk: _Disk | None):
    def end(_operation: Operation) -> None:
        if disk is not None:
            disk.lose_power()
        raise Ended

    return end


def _live(
    state: str, truth: Truth, files: FaultyFiles, rng: random.Random, tried: dict[str, bytes]
) -> dict[str, bytes]:
    """One process, until it ends; what was tried last, by it or by the one before."""
    try:
        os.makedirs(os.path.dirname(state), exist_ok=True)
        if not os.path.isdir(state):
            files.make_dir(state)
            files.sync_dir(os.path.dirname(state))
        session = Session(state, truth, files=files, rng=rng)
        # what a killed process had written counts, acknowledged or not, as soon as an opening builds on it
        truth.records[session.recovered.seq] = session.recovered.records
        while True:
            puts = {f"run/{rng.randrange(5)}": rng.randbytes(rng.choice((20, 300, 3000)))}
            tried = truth.records[truth.seq] | puts
            session.commit(puts)
            if rng.random() < 0.2:
                session.snapshot()
                snapshots = recover(state, LocalFiles()).snapshots
                if len(snapshots) > 1:
                    session.journal.prune(snapshots[-2])
    except Ended:
        pass
    finally:
        _close_below(os.path.dirname(state))
    return tried


@experiment("power-loss", "a filesystem shut down at drawn operations, without its log (root only)")
def run(lab: Lab) -> Iterable[Row]:
    missing = [tool for tool in ("unshare", "mkfs.ext4", "mount") if shutil.which(tool) is None]
    if os.geteuid() != 0 or missing:
        return [Row("skipped", 0, f"needs root{' and ' + ', '.join(missing) if missing else ''}")]
    times = lab.times(300, 10)
    command = [
        "unshare",
        "-m",
        sys.executable,
        "-m",
        "tests.lab.power",
        str(lab.directory),
        str(lab.seed),
        str(times),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if "Command '('mount'" in done.stderr:
        return [Row("skipped", 0, "this machine does not let root mount")]
    assert done.returncode == 0, done.stderr
    return [Row.tally("power losses", Counter(json.loads(done.stdout)))]


def main() -> None:
    directory, seed, times = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    outcomes: Counter[str] = Counter()
    for nth in range(times):
        try:
            outcomes[lose_power_once(directory, random.Random(f"{seed}:{nth}"))] += 1
        except BaseException as error:
            error.add_note(f"power loss {nth} of seed {seed}")
            raise
    print(json.dumps(outcomes))


if __name__ == "__main__":
    main()
