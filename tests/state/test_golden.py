"""States written by earlier releases open for ever, and the writer's bytes do not change unnoticed.

`golden/1` holds a state in format version 1: two snapshots, three openings, a retried write, commits of several
frames, stuffed payloads; `golden/1-zlib` the same with every payload compressed that gets smaller by it.
`python -m tests.state.test_golden DIRECTORY` writes one anew; a format that changes gets a number, and directories
beside the old ones, which stay.
"""

from __future__ import annotations

import hashlib
import random
import sys
from pathlib import Path
from unittest.mock import patch

import pytest

from asynctune.files import LocalFiles
from asynctune.state.epochs import read_claim
from asynctune.state.recovery import recover
from tests.lab.states import EXPERIMENT_ID, Made, make_state, read_all

GOLDEN = Path(__file__).parent / "golden"


def digest(records: dict[str, bytes]) -> str:
    """One line for a whole map."""
    known = hashlib.sha256()
    for key, value in sorted(records.items()):
        known.update(f"{key}\0{len(value)}\0".encode() + value)
    return known.hexdigest()


def make(directory: str, *, compressed: bool = False) -> Made:
    """The same bytes on any machine: nonces, host and clock are given. But one zlib packs otherwise than another."""
    if compressed:
        with patch("asynctune.state.journal._COMPRESS_BYTES", 1):
            return make_state(directory, random.Random(1))
    with patch("zlib.compress", lambda data, _level: data):
        return make_state(directory, random.Random(1))


@pytest.mark.parametrize("version", sorted(path.name for path in GOLDEN.iterdir() if path.is_dir()))
def test_an_old_state_opens(version):
    directory = str(GOLDEN / version)
    found = recover(directory, LocalFiles(), rows_after=lambda _: 0)
    assert found.experiment_id == EXPERIMENT_ID
    assert not found.notices
    lines = [
        f"{found.seq} {digest(found.records)}",
        *(f"{seq} {row.hex()}" for part in found.rows for seq, row in part),
    ]
    assert lines == (GOLDEN / f"{version}.txt").read_text(encoding="ascii").splitlines()
    assert read_claim(directory, 3, LocalFiles()).hostname == "host.example"


def test_the_writer_makes_the_same_bytes(tmp_path):
    make(f"{tmp_path}/state")
    made, golden = read_all(f"{tmp_path}/state"), read_all(str(GOLDEN / "1"))
    assert sorted(made) == sorted(golden)
    assert [name for name in made if made[name] != golden[name]] == []


if __name__ == "__main__":
    make(sys.argv[1], compressed=sys.argv[1].endswith("-zlib"))
    state = recover(sys.argv[1], LocalFiles(), rows_after=lambda _: 0)
    print(state.seq, digest(state.records))
    for rows in state.rows:
        for seq, row in rows:
            print(seq, row.hex())
