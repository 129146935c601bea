from __future__ import annotations

from dataclasses import replace

import pytest

from asynctune.checkpoints.records import (
    CheckpointRecord,
    Records,
    check_step,
    directory_name,
    is_checkpoint_name,
)
from asynctune.errors import ConfigError, CorruptStateError
from asynctune.packing import pack, unpack
from tests.checkpoints.fakes import MemorySink

RECORD = CheckpointRecord(
    trial_id="t",
    step=5,
    directory="trial_t/checkpoint_000005-3.1",
    manifest_sha256="ab" * 32,
    files={"a": 3, "b/c": 4},
    size_bytes=7,
    committed_at=1.5,
    metrics={"acc": 0.5},
    timeline={"num_results": 2},
    epoch=3,
    attempt=1,
)


def test_a_record_comes_back():
    value = unpack(pack(RECORD.to_value()))
    assert value["state"] == "live"
    assert value["mirrored"] is False
    assert CheckpointRecord.from_value("t", 5, value) == RECORD
    checkpoint = RECORD.checkpoint(RECORD.path("/exp"))
    assert str(checkpoint.path) == "/exp/trial_t/checkpoint_000005-3.1"
    assert (checkpoint.trial_id, checkpoint.step, checkpoint.size_bytes) == ("t", 5, 7)
    assert checkpoint.metrics == {"acc": 0.5}
    assert checkpoint.files == {"a": 3, "b/c": 4}


def test_what_is_said_of_the_bucket_comes_back_and_old_records_say_nothing_of_it():
    retired = replace(RECORD, mirrored=True, deleting=True, bucket_deleting=True)
    value = unpack(pack(retired.to_value()))
    assert CheckpointRecord.from_value("t", 5, value) == retired
    del value["bucket_deleting"]
    assert CheckpointRecord.from_value("t", 5, value) == replace(retired, bucket_deleting=False)


@pytest.mark.parametrize(
    "changes",
    [
        {"v": 2},
        {"v": ...},
        {"state": "gone"},
        {"dir": "trial_t/../../etc"},
        {"dir": "../checkpoint_000005"},
        {"dir": ".asynctune/checkpoint_000005"},
        {"dir": "/checkpoint_000005"},
        {"dir": "trial_t"},
        {"dir": "trial_t/data"},
        {"dir": "a/b/checkpoint_000005"},
        {"dir": 5},
        {"sha256": "ab"},
        {"sha256": None},
        {"files": ["a"]},
        {"metrics": None},
        {"timeline": 1},
        {"size": "many"},
        {"epoch": ...},
        {"committed_at": None},
    ],
)
def test_a_record_that_cannot_be_used_is_an_error_and_not_a_path_to_delete(changes):
    value = {key: each for key, each in (RECORD.to_value() | changes).items() if each is not ...}
    with pytest.raises(CorruptStateError, match="checkpoint/t/5"):
        CheckpointRecord.from_value("t", 5, value)


def test_no_map_at_all():
    with pytest.raises(CorruptStateError, match="not a map"):
        CheckpointRecord.from_value("t", 5, [1])


def test_names():
    assert directory_name(5) == "checkpoint_000005"
    assert directory_name(5, epoch=3, attempt=1) == "checkpoint_000005-3.1"
    assert directory_name(10**12) == "checkpoint_1000000000000"
    for name in (directory_name(0), directory_name(10**12, epoch=2**63 - 1, attempt=7)):
        assert is_checkpoint_name(name)
    for name in ("checkpoint_5", "checkpoint_best", "checkpoint_000005.tmp", "checkpoint_000005-1", "x"):
        assert not is_checkpoint_name(name)


@pytest.mark.parametrize("step", [-1, 10**12 + 1, True, 1.0, "1", None])
def test_steps_that_are_refused(step):
    with pytest.raises(ConfigError, match="step must be a whole number"):
        check_step(step)


def test_what_is_being_deleted_is_not_listed():
    sink = MemorySink()
    records = Records(sink)
    records.put(RECORD)
    assert records.live("t") == [RECORD]
    records.retire(RECORD)
    assert records.steps("t") == [5]
    assert records.live("t") == []
    assert [record.deleting for record in records.all("t")] == [True]
    records.remove("t", 5)
    assert records.steps("t") == []
    assert records.get("t", 5) is None
