"""Sizes of parts, and the record of an upload."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ConfigError
from asynctune.packing import pack, unpack
from asynctune.storage.memory_bucket import IN_ANY_ORDER, IN_ORDER
from asynctune.storage.values import Always, IfVersion, OnlyCreate, PendingUpload, Upload, UploadRules

MIB = 1 << 20
RULES = st.sampled_from([IN_ANY_ORDER, IN_ORDER])


@given(RULES, st.integers(1, 5 << 40), st.integers(1, 6 << 30))
def test_the_part_size_that_is_proposed_is_taken(rules, size_bytes, wanted_bytes):
    part_bytes = rules.part_bytes(size_bytes, wanted_bytes)
    rules.check(size_bytes, part_bytes)
    least = max(rules.min_part_bytes, min(wanted_bytes, rules.max_part_bytes))
    assert part_bytes >= least - rules.part_multiple + 1


@given(RULES, st.integers(1, 1 << 40), st.integers(1, 64 * MIB))
def test_parts_cover_the_object_without_a_gap(rules, size_bytes, wanted_bytes):
    upload = Upload(
        key="k", upload_id="u", size_bytes=size_bytes, part_bytes=rules.part_bytes(size_bytes, wanted_bytes)
    )
    count = upload.num_parts
    assert upload.part_range(1)[0] == 0
    assert sum(upload.part_range(count)) == size_bytes
    for number in {1, count // 2, count - 1} & set(range(1, count)):
        offset, size = upload.part_range(number)
        assert size == upload.part_bytes
        assert upload.part_range(number + 1)[0] == offset + size
    for number in (0, count + 1):
        with pytest.raises(ConfigError):
            upload.part_range(number)


@pytest.mark.parametrize(
    ("size_bytes", "part_bytes", "says"),
    [
        (0, 8 * MIB, "at least one byte"),
        (8 * MIB, 4 * MIB, "5242880 to"),
        (8 * MIB, 6 << 30, "to 5368709120"),
        (10_001 * 5 * MIB, 5 * MIB, "10001 parts"),
    ],
)
def test_what_is_not_taken_is_refused(size_bytes, part_bytes, says):
    with pytest.raises(ConfigError, match=says):
        IN_ANY_ORDER.check(size_bytes, part_bytes)


def test_an_object_that_no_parts_hold_is_refused():
    rules = UploadRules(min_part_bytes=1, max_part_bytes=10, max_parts=3, max_put_bytes=10)
    assert rules.part_bytes(30, 1) == 10
    with pytest.raises(ConfigError, match="4 parts"):
        rules.part_bytes(31, 1)


@given(
    st.sampled_from([Always(), OnlyCreate(), IfVersion('"etag"')]),
    st.none() | st.integers(0, 2**32 - 1),
    st.text(),
)
def test_an_upload_can_be_written_down(condition, crc32c, upload_id):
    upload = Upload(
        key="a/b", upload_id=upload_id, size_bytes=7, part_bytes=3, condition=condition, crc32c=crc32c
    )
    assert Upload.from_record(unpack(pack(upload.to_record(), "it"))) == upload


@pytest.mark.parametrize(
    "change",
    [
        {"upload_id": None},
        {"size_bytes": 0},
        {"part_bytes": "1"},
        {"condition": "sometimes"},
        {"condition": {"version": 1}},
        {"condition": {}},
        {"crc32c": "00"},
        {"key": b"k"},
    ],
    ids=str,
)
def test_what_is_no_record_is_refused_and_not_shown(change):
    record = Upload(key="k", upload_id="hunter2secret", size_bytes=1, part_bytes=1).to_record()
    with pytest.raises(ConfigError) as caught:
        Upload.from_record(record | change)
    assert "hunter2secret" not in str(caught.value)
    with pytest.raises(ConfigError):
        Upload.from_record({name: record[name] for name in record if name not in change})


def test_an_upload_id_is_shown_nowhere():
    upload = Upload(key="k", upload_id="hunter2secret", size_bytes=1, part_bytes=1)
    assert "hunter2secret" not in f"{upload} {upload!r} {PendingUpload('k', 'hunter2secret', 0.0)!r}"
