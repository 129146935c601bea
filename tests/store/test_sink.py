from __future__ import annotations

import pytest

from asynctune.errors import FencedError
from asynctune.protocols import CommitSink
from asynctune.store.records import Records
from asynctune.store.sink import RecordSink


class Journal(dict):
    def put(self, key, value):
        self[key] = value

    def delete(self, key):
        del self[key]


async def test_reads_see_what_was_put_and_a_failed_store_takes_no_more():
    journal = Journal()
    records = Records({}, journal)
    failure: list[Exception] = []

    def check():
        if failure:
            raise failure[0]

    async def commit():
        return 7

    sink: CommitSink = RecordSink(records, check, commit)
    sink.put("checkpoint/t/3", {"a": 1})
    sink.put("checkpoint/t/1", {})
    assert sink.get("checkpoint/t/3") == {"a": 1}
    assert list(sink.steps("t")) == [1, 3]
    assert await sink.commit() == 7
    sink.delete("checkpoint/t/3")
    assert sink.get("checkpoint/t/3") is None
    failure.append(FencedError("fenced"))
    for call in (lambda: sink.put("checkpoint/t/4", {}), lambda: sink.delete("checkpoint/t/1")):
        with pytest.raises(FencedError):
            call()
    with pytest.raises(FencedError):
        await sink.commit()
    assert list(sink.steps("t")) == [1]  # looking is still possible
    assert set(journal) == {"checkpoint/t/1"}
