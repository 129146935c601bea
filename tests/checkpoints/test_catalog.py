from __future__ import annotations

import asyncio
import math

import pytest

from asynctune.checkpoints import committing
from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.config import CheckpointConfig
from asynctune.errors import (
    CheckpointExistsError,
    CheckpointNotFoundError,
    ConfigError,
    StorageError,
    StoreClosedError,
)
from asynctune.trial import Checkpoint
from tests.checkpoints.fakes import TREE, CountingFiles, MemorySink, Room, disk_full, read_tree, tree, where


@pytest.fixture
async def room(tmp_path):
    async with Room(tmp_path / "exp") as made:
        yield made


# -- saving ------------------------------------------------------------------------------------------------


async def test_what_is_returned_is_durable_and_listed(room):
    metrics = {"acc": 0.5, "nested": {"loss": math.inf}, "step": (1, 2)}
    saved = await room.save("t", metrics=metrics, timeline={"num_results": 3})
    assert saved == room.catalog.list("t")[0]
    assert (saved.trial_id, saved.step, saved.mirrored) == ("t", 1, False)
    assert saved.metrics == metrics
    assert saved.size_bytes == sum(map(len, TREE.values()))
    assert saved.path == room.path / "t/checkpoint_000001"
    record = room.sink.crashed().get("checkpoint/t/1")
    assert record["dir"] == "t/checkpoint_000001"
    assert record["timeline"] == {"num_results": 3}
    assert (record["epoch"], record["attempt"], record["state"]) == (1, 0, "live")
    (report,) = await room.verify()
    assert report.ok
    assert report.manifest.digest == record["sha256"]
    assert (report.manifest.trial_id, report.manifest.step, report.manifest.epoch) == ("t", 1, 1)
    (event,) = room.events
    assert event["kind"] == "checkpoint_saved"
    assert (event["trial_id"], event["step"], event["files"], event["how"]) == ("t", 1, len(TREE), "copy")


async def test_no_commit_no_checkpoint(room):
    """What the crash leaves: a directory, and no record."""
    room.sink.gate.clear()
    saving = asyncio.create_task(room.save("t"))
    await room.sink.asked.acquire()
    assert not saving.done()
    assert room.sink.crashed().steps("t") == []
    assert not room.events
    room.sink.gate.set()
    await saving
    assert room.sink.crashed().steps("t") == [1]


async def test_steps_only_rise(room):
    await room.save("t", step=5)
    for step in (5, 4, 0):
        with pytest.raises(CheckpointExistsError, match="higher step"):
            await room.save("t", step=step)
    assert (await room.save("t")).step == 6
    assert (await room.save("t", step=10**12)).step == 10**12
    assert (await room.save("u", step=0)).path.name == "checkpoint_000000"
    assert room.directories() == ["checkpoint_000005", "checkpoint_000006", "checkpoint_1000000000000"]
    assert room.steps() == [5, 6, 10**12]


@pytest.mark.parametrize(
    "wrong",
    [
        {"step": -1},
        {"step": True},
        {"step": 1.5},
        {"step": "1"},
        {"step": 10**12 + 1},
        {"metrics": {"f": print}},
        {"metrics": {"x": print}},
        {"timeline": {"x": print}},
        {"trial_name": "../t"},
        {"trial_name": ""},
        {"trial_name": ".asynctune"},
        {"attempt": -1},
        {"attempt": True},
    ],
    ids=repr,
)
async def test_arguments_that_are_refused_before_a_byte_is_copied(tmp_path, wrong):
    files = CountingFiles()
    async with Room(tmp_path / "exp", files=files) as room:
        with pytest.raises(ConfigError):
            await room.save("t", **wrong)
        assert not files.calls
        assert not room.sink.records
        assert (await room.save("t")).step == 1


async def test_what_the_caller_changes_later_changes_nothing(room):
    metrics = {"acc": {"now": 1}}
    saving = asyncio.create_task(room.save("t", metrics=metrics))
    await asyncio.sleep(0)
    metrics["acc"]["now"] = 2
    assert (await saving).metrics == {"acc": {"now": 1}}


async def test_after_a_takeover_names_carry_epoch_and_attempt(tmp_path):
    async with Room(tmp_path / "exp", epoch=7) as room:
        saved = await room.save("t", plain=False, attempt=2)
        assert saved.path.name == "checkpoint_000001-7.2"
        assert read_tree(where(await room.catalog.restore("t"))) == TREE


async def test_a_name_that_is_taken_is_never_used(room):
    for name in ("checkpoint_000001", "checkpoint_000002", "checkpoint_000002-1.0"):
        (room.path / "t" / name).mkdir(parents=True)
    assert (await room.save("t")).path.name == "checkpoint_000001-1.0"
    with pytest.raises(StorageError, match="in the way"):
        await room.save("t")
    assert not list((room.path / "t/checkpoint_000002").iterdir())
    assert not room.leftovers()


async def test_saves_of_one_trial_go_in_the_order_of_the_calls(room):
    big = tree(room.path.parent / "big", {"f": b"x" * 5_000_000})
    results = await asyncio.gather(
        room.save("t", big),
        room.save("t"),
        room.save("t", step=9),
        room.save("t"),
        room.save("t", step=9),
        return_exceptions=True,
    )
    assert [getattr(each, "step", type(each)) for each in results] == [1, 2, 9, 10, CheckpointExistsError]
    assert [event["step"] for event in room.events.of("checkpoint_saved")] == [1, 2, 9, 10]


async def test_trials_are_saved_beside_each_other(tmp_path, monkeypatch):
    monkeypatch.setattr(committing, "MAX_COPIES", 3)
    async with Room(tmp_path / "exp") as room:
        room.sink.gate.clear()
        saving = [asyncio.create_task(room.save(f"t{number}")) for number in range(5)]
        for _ in range(3):
            await room.sink.asked.acquire()
        assert room.catalog._committer.slots.locked()
        room.sink.gate.set()
        await asyncio.gather(*saving)


async def test_a_failed_commit_is_the_callers_error(room):
    await room.save("t")
    room.sink.commit_error = disk_full()
    with pytest.raises(StorageError, match="journal"):
        await room.save("t")
    room.sink.commit_error = None
    assert room.sink.crashed().steps("t") == [1]


async def test_a_checkpoint_value_may_be_a_directory(room, tmp_path):
    saved = await room.save("t", await asyncio.to_thread(Checkpoint.from_directory, tree(tmp_path / "d")))
    assert read_tree(saved.path) == TREE
    with pytest.raises(ConfigError, match="no directory"):
        await room.save("t", Checkpoint(path=tmp_path / "gone"))


async def test_a_value_is_taken_as_it_is_at_the_call(room):
    value = {"weights": [1, 2]}
    saving = asyncio.create_task(room.save("t", Checkpoint.from_dict(value)))
    await asyncio.sleep(0)
    value["weights"].append(3)
    saved = await saving
    assert await asyncio.to_thread(saved.to_dict) == {"weights": [1, 2]}
    assert list(saved.files) == [".checkpoint-value.msgpack"]


async def test_a_committed_checkpoint_is_cloned_and_not_taken(room):
    saved = await room.save("t", metrics={"acc": 1})
    again = await room.save("u", saved, metrics={"acc": 2})
    assert (again.trial_id, again.step, again.metrics) == ("u", 1, {"acc": 2})
    assert room.events[-1]["how"] == "clone"
    with pytest.raises(ConfigError, match="cannot be moved"):
        await room.save("u", saved, move=True)
    assert all(report.ok for report in [*await room.verify("t"), *await room.verify("u")])


async def test_listing_is_of_records_alone(tmp_path):
    async with Room(tmp_path / "exp") as room:
        assert room.catalog.list("t") == ()
        for _ in range(3):
            await room.save("t")
    # A reader has no directory of its own there, and writes nothing.
    sink = MemorySink()
    sink.records = dict(room.sink.durable)
    async with Room(tmp_path / "exp", sink=sink, deleting=False) as reader:
        assert [checkpoint.step for checkpoint in reader.catalog.list("t")] == [1, 2, 3]


# -- cloning -----------------------------------------------------------------------------------------------


async def test_a_clone_is_a_checkpoint_of_its_own(room):
    source = await room.save("t", step=7, metrics={"acc": 1})
    clone = await room.catalog.clone("t", 7, to_trial="u", trial_name="u", timeline={"num_results": 1})
    assert (clone.trial_id, clone.step, clone.metrics) == ("u", 7, {"acc": 1})
    assert read_tree(clone.path) == TREE
    assert not (clone.path / "model.bin").samefile(source.path / "model.bin")
    assert room.sink.get("checkpoint/u/7")["timeline"] == {"num_results": 1}
    assert (await room.verify("u"))[0].manifest.trial_id == "u"
    # Its step is its source's, unless it has to be higher.
    assert (await room.catalog.clone("t", None, to_trial="u", trial_name="u")).step == 8
    assert (await room.catalog.clone("t", 7, to_trial="u", trial_name="u", to_step=20, metrics={})).step == 20
    with pytest.raises(CheckpointExistsError):
        await room.catalog.clone("t", 7, to_trial="u", trial_name="u", to_step=20)
    assert (await room.catalog.clone("t", 7, to_trial="t", trial_name="t")).step == 8


async def test_what_is_damaged_is_not_cloned(room):
    await room.save("t")
    saved = await room.save("t")
    (saved.path / "z.json").write_bytes(b"[]")
    with pytest.raises(CheckpointNotFoundError, match="checkpoint 1 verifies"):
        await room.catalog.clone("t", 2, to_trial="u", trial_name="u")
    (saved.path / "z.json").unlink()
    with pytest.raises(CheckpointNotFoundError, match="is missing"):
        await room.catalog.clone("t", 2, to_trial="u", trial_name="u")
    assert [event["step"] for event in room.events.of("checkpoint_damaged")] == [2, 2]
    assert room.steps("u") == []
    assert not room.leftovers()
    with pytest.raises(CheckpointNotFoundError, match="no checkpoint 9"):
        await room.catalog.clone("t", 9, to_trial="u", trial_name="u")
    with pytest.raises(CheckpointNotFoundError, match="has no checkpoint"):
        await room.catalog.clone("nobody", None, to_trial="u", trial_name="u")


async def test_the_source_of_a_clone_is_leased(tmp_path):
    files = CountingFiles()
    async with Room(tmp_path / "exp", files=files, config=CheckpointConfig(num_to_keep=1)) as room:
        await room.save("t")
        await room.save("u")
        files.calls.clear()
        seen = []
        files.at = {2: lambda: seen.append(room.catalog._deletions.leases.steps("t"))}
        await room.catalog.clone("t", 1, to_trial="u", trial_name="u")
        assert seen == [{1}]


async def test_clones_in_a_population(room):
    """Everybody copies from everybody at once."""
    for trial in "abcd":
        await room.save(trial, tree(room.path.parent / trial, {"who": trial.encode()}))
    await asyncio.gather(
        *(
            room.catalog.clone(source, 1, to_trial=target, trial_name=target)
            for source in "abcd"
            for target in "abcd"
        )
    )
    for trial in "abcd":
        assert room.steps(trial) == [1, 2, 3, 4, 5]
        found = {(each.path / "who").read_bytes() for each in room.catalog.list(trial)}
        assert found == {b"a", b"b", b"c", b"d"}


# -- closing -----------------------------------------------------------------------------------------------


async def test_after_the_close_nothing_is_taken(tmp_path):
    async with Room(tmp_path / "exp") as room:
        saved = await room.save("t")
        staged = await stage_for_adoption(tree(tmp_path / "src"), room.path / "t")
    for call in (
        room.save("t"),
        room.catalog.adopt("t", staged, trial_name="t"),
        room.catalog.clone("t", 1, to_trial="u", trial_name="u"),
        room.catalog.restore("t"),
        room.catalog.settle(lambda _: None),
    ):
        with pytest.raises(StoreClosedError):
            await call
    assert room.catalog.list("t") == (saved,)
    await room.catalog.aclose()


async def test_the_close_waits_for_what_is_under_way(tmp_path):
    async with Room(tmp_path / "exp") as room:
        saving = asyncio.create_task(room.save("t"))
        await asyncio.sleep(0)
    assert (await saving).step == 1
    assert room.sink.crashed().steps("t") == [1]


async def test_after_the_highest_step_there_is_no_next_one(room):
    await room.save("t", step=10**12)
    with pytest.raises(ConfigError, match="from 0 to 1,000,000,000,000"):
        await room.save("t")


async def test_metrics_that_are_no_mapping_are_refused(room):
    with pytest.raises(ConfigError, match="metrics must be a mapping of names to values, not int"):
        await room.save("t", metrics=5)
