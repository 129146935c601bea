"""Damage of each kind, done to real experiments: what is found, and what is no problem."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from asynctune import ExperimentStore, TrialStatus
from asynctune.inspect.cli import main
from tests.inspect_cli.stores import ask, build, driver, files, flip, show


@pytest.fixture
def made(tmp_path):
    path = tmp_path / "digits"
    return path, build(path)


@pytest.fixture
def generations(tmp_path):
    """An experiment with two snapshots, and segments that go back to the older one."""

    async def grow() -> None:
        async with ExperimentStore.open(tmp_path / "grown") as store:
            trial = store.add_trial({})
            store.set_status(trial.trial_id, TrialStatus.RUNNING)
            events = store.events()
            for _ in range(2):
                while store.stats().journal_bytes <= max(1 << 20, store.stats().snapshot_bytes):
                    for _ in range(100):
                        store.add_trial({"blob": os.urandom(4000)})
                    await store.flush()
                while (await anext(events)).kind != "snapshot_written":
                    pass

    asyncio.run(grow())
    return tmp_path / "grown"


def state(path: Path, pattern: str) -> list[Path]:
    found = list((path / ".asynctune").glob(pattern))
    return sorted(found, key=lambda each: int(each.name.split("-")[-1]))


def test_what_is_intact_is_said_to_be(made, capsys):
    path, _ = made
    code, document = ask(capsys, path, "verify")
    assert (code, document["intact"], document["problems"], document["notes"]) == (0, True, [], [])
    assert (document["checkpoints"], document["files"], document["checkpoint_bytes"]) == (4, 8, 4 * 3005)
    assert document["frames"] > 2
    assert document["state_bytes"] == sum(
        each.stat().st_size for pattern in ("wal-*", "snap-*") for each in state(path, pattern)
    )
    code, text, errors = show(capsys, path, "verify")
    assert (code, errors) == (0, "")
    assert "intact: everything matches its checksums" in text


@pytest.mark.parametrize("kind", ["flipped", "longer", "gone", "manifest"])
def test_a_damaged_checkpoint_is_named(made, capsys, kind):
    path, ids = made
    checkpoint = path / ids[0] / "checkpoint_000001"
    if kind == "flipped":
        flip(checkpoint / "weights.bin", 1500)
    elif kind == "longer":
        (checkpoint / "weights.bin").write_bytes(bytes(3001))
    elif kind == "gone":
        (checkpoint / "sub" / "note.txt").unlink()
    else:
        flip(checkpoint / ".manifest.json", 10)
    code, document = ask(capsys, path, "verify")
    assert (code, document["intact"], document["checkpoints"]) == (1, False, 4)
    (problem,) = document["problems"]
    assert (problem["kind"], problem["trial_id"], problem["step"]) == ("damaged_checkpoint", ids[0], 1)
    assert str(checkpoint) in problem["message"]


def test_a_file_beside_the_recorded_ones_is_no_problem(made, capsys):
    path, ids = made
    (path / ids[0] / "checkpoint_000001" / "README").write_text("mine")
    code, document = ask(capsys, path, "verify")
    assert (code, document["intact"]) == (0, True)
    (note,) = document["notes"]
    assert "README" in note
    assert "README" in show(capsys, path, "verify")[1]


def test_the_older_generation_is_read_too(generations, capsys):
    code, document = ask(capsys, generations, "verify")
    assert (code, document["snapshots"]) == (0, 2)
    old_segment = state(generations, "wal-*")[0]
    flip(old_segment, old_segment.stat().st_size // 2)
    assert main([str(generations)]) == 0  # an opening does not need it
    capsys.readouterr()
    code, document = ask(capsys, generations, "verify")
    assert code == 1
    (problem,) = document["problems"]
    assert problem["kind"] == "state"
    assert f"{old_segment.name} at byte " in problem["message"]


@pytest.mark.parametrize("which", [0, 1])
def test_a_damaged_snapshot_is_found(generations, capsys, which):
    snapshot = state(generations, "snap-*")[which]
    flip(snapshot, snapshot.stat().st_size // 2)
    code, document = ask(capsys, generations, "verify")
    assert code == 1
    (problem,) = document["problems"]
    assert snapshot.name in problem["message"]
    # the newer one is also what opening had to do without
    assert main([str(generations), "trials", "--limit", "1"]) == which


def test_damage_that_keeps_the_experiment_from_opening_is_told_once(made, capsys):
    path, _ = made
    (segment,) = state(path, "wal-*")
    flip(segment, segment.stat().st_size // 2)
    code, document = ask(capsys, path, "verify")
    assert (code, document["kind"], document["experiment"]) == (1, "verify", None)
    (problem,) = document["problems"]
    assert str(segment) in problem["message"]


def test_a_damaged_claim_is_found(made, capsys):
    path, _ = made
    flip(path / ".asynctune" / "epoch-1", 50)
    code, document = ask(capsys, path, "verify")
    assert (code, [problem["kind"] for problem in document["problems"]]) == (1, ["state"])
    assert "epoch-1" in document["problems"][0]["message"]


def test_a_record_that_makes_no_sense_is_found_though_its_checksums_are_right(tmp_path, capsys):
    path = tmp_path / "odd"

    async def write() -> str:
        async with ExperimentStore.open(path) as store:
            store.add_trial({})
            trial = store.add_trial({})
            store._records.put_packed(f"trial/{trial.trial_id}", b"\xc1 no msgpack")
            return trial.trial_id

    trial_id = asyncio.run(write())
    code, document = ask(capsys, path, "verify")
    assert code == 1
    (problem,) = document["problems"]
    assert trial_id in problem["message"]


def test_a_tear_is_reported_and_no_problem(tmp_path, capsys):
    path = tmp_path / "torn"
    with driver(path, "wait") as process:
        process.kill()
        process.wait()
    (segment,) = state(path, "wal-*")
    data = segment.read_bytes()
    segment.write_bytes(data + data[:30])
    for command in ("summary", "verify"):
        code, document = ask(capsys, path, command)
        assert code == 0
        assert segment.name in document["experiment"]["tear"]
    assert "tear" in show(capsys, path, "verify")[1]


def test_an_experiment_that_is_written_to_verifies_all_the_time(tmp_path, capsys):
    """Retention deletes checkpoints, and the journal changes generations, while they are being read."""
    path = tmp_path / "busy"
    with driver(path, "busy") as process:
        for _ in range(6):
            for command in ("verify", "checkpoints", "summary"):
                code, document = ask(capsys, path, command)
                assert (code, document["problems"]) == (0, [])
                assert document["experiment"]["writer"] | {"hostname": "", "since": 0} == {
                    "state": "live",
                    "pid": process.pid,
                    "hostname": "",
                    "since": 0,
                    "closed_at": None,
                }


def test_a_checkpoint_made_by_hand_is_not_looked_at(made, capsys, tmp_path):
    path, ids = made
    files(path / ids[0] / "checkpoint_000009", 9)
    assert ask(capsys, path, "verify")[1]["checkpoints"] == 4


def test_no_flipped_bit_of_the_state_goes_unnoticed(made, capsys, rng):
    path, _ = made
    for _ in range(40):
        victim = rng.choice([each for pattern in ("wal-*", "epoch-*") for each in state(path, pattern)])
        whole = victim.read_bytes()
        flip(victim, position := rng.randrange(len(whole)))
        code, document = ask(capsys, path, "verify")
        assert code == 1, (victim.name, position)
        assert document["kind"] in {"verify", "error"}  # an error: a format that seems to be a newer one
        assert main([str(path)]) in {0, 1}
        capsys.readouterr()
        victim.write_bytes(whole)
    assert ask(capsys, path, "verify")[0] == 0


def test_no_flipped_bit_of_a_snapshot_goes_unnoticed(generations, capsys, rng):
    for _ in range(6):
        victim = rng.choice(state(generations, "snap-*"))
        whole = victim.read_bytes()
        flip(victim, position := rng.randrange(len(whole)))
        assert ask(capsys, generations, "verify")[0] == 1, (victim.name, position)
        victim.write_bytes(whole)


def test_a_state_cut_anywhere_is_answered(made, capsys, rng):
    path, _ = made
    (segment,) = state(path, "wal-*")
    whole = segment.read_bytes()
    for size in [0, 1, *rng.sample(range(2, len(whole)), 20)]:
        segment.write_bytes(whole[:size])
        for command in ("summary", "verify"):
            code = main([str(path), command])
            shown = capsys.readouterr()
            assert code in {0, 1, 3}
            assert bool(shown.out) != bool(shown.err)
