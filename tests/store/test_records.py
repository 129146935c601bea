from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.errors import ConfigError
from asynctune.packing import pack, unpack
from asynctune.store.records import Records


class Journal(dict):
    """What was put and deleted, as a writer would commit it."""

    def put(self, key, value):
        self[key] = value

    def delete(self, key):
        del self[key]


def make() -> tuple[Records, Journal]:
    journal = Journal()
    return Records({}, journal), journal


def test_a_put_is_seen_at_once_and_reaches_the_journal():
    records, journal = make()
    records.put("meta/a", {"b": [1]})
    assert records.get("meta/a") == {"b": [1]}
    assert unpack(journal["meta/a"]) == {"b": [1]}
    assert records.packed("meta/a") == journal["meta/a"]


def test_each_get_is_a_fresh_value():
    records, _ = make()
    records.put("meta/a", {"b": 1})
    value = records.get("meta/a")
    assert value is not None
    value["b"] = 2
    assert records.get("meta/a") == {"b": 1}


def test_what_cannot_be_packed_changes_nothing():
    records, journal = make()
    records.put("meta/a", 1)
    with pytest.raises(ConfigError, match=r"metadata 'a'\['x'\] .*object"):
        records.put("meta/a", {"x": object()}, "metadata 'a'")
    assert records.get("meta/a") == 1
    assert unpack(journal["meta/a"]) == 1


def test_a_record_that_the_journal_could_not_take_is_refused_at_the_call(monkeypatch):
    monkeypatch.setattr("asynctune.store.records.MAX_RECORD_BYTES", 100)
    records, journal = make()
    with pytest.raises(ConfigError, match="limit is 100"):
        records.put("meta/a", "x" * 200)
    with pytest.raises(ConfigError, match="limit is 100"):
        records.put_packed("trial/a", b"x" * 200)
    with pytest.raises(ConfigError, match="limit is 100"):
        records.put("meta/" + "k" * 200, 1)
    assert not journal
    assert records.get("meta/a") is None
    assert not records.trial_ids


def test_a_key_that_is_not_valid_unicode_is_refused_at_the_call():
    records, journal = make()
    with pytest.raises(ConfigError, match="Unicode"):
        records.put("meta/\ud800", 1)
    assert not journal
    assert not records.named("meta")


def test_a_delete_of_what_is_not_there_does_nothing():
    records, journal = make()
    records.delete("meta/a")
    assert not journal


def test_the_indexes_follow_puts_and_deletes():
    records, _ = make()
    for key in ("trial/b", "trial/a", "meta/x/y", "name/n", "replaced/b", "run/a", "searcher"):
        records.put(key, 1)
    for step in (3, 1, 2, 2):
        records.put(f"checkpoint/a/{step}", {})
    assert list(records.trial_ids) == ["b", "a"]
    assert list(records.named("meta")) == ["x/y"]
    assert list(records.named("name")) == ["n"]
    assert list(records.named("replaced")) == ["b"]
    assert records.steps("a") == [1, 2, 3]
    records.steps("a").clear()
    records.delete("checkpoint/a/2")
    records.delete("trial/b")
    assert records.steps("a") == [1, 3]
    assert list(records.trial_ids) == ["a"]
    records.delete("checkpoint/a/1")
    records.delete("checkpoint/a/3")
    assert records.steps("a") == []


KEYS = st.sampled_from(
    ["trial/a", "trial/b", "meta/k", "name/n", "replaced/a", "run/a", "experiment"]
    + [f"checkpoint/{trial}/{step}" for trial in "ab" for step in (1, 2, 10)]
)


@given(st.lists(st.lists(st.tuples(st.booleans(), KEYS), max_size=8), max_size=8))
def test_a_reader_that_replays_has_the_same_records_and_indexes_as_the_writer_and_as_a_rebuild(commits):
    writer, _ = make()
    reader, model = Records({}), dict[str, bytes]()
    for commit in commits:
        puts, deletes = dict[str, bytes](), dict[str, None]()
        for number, (is_put, key) in enumerate(commit):
            if is_put:
                writer.put(key, number)
                puts[key] = model[key] = pack(number)
                deletes.pop(key, None)
            elif key in model:
                writer.delete(key)
                del model[key]
                puts.pop(key, None)
                deletes[key] = None
        reader.replay([part for item in puts.items() for part in item], list(deletes))
    rebuilt = Records.index(dict(model))
    for records in (writer, reader, rebuilt):
        assert {key: records.packed(key) for key in model} == model
        assert set(records.trial_ids) == {key[6:] for key in model if key.startswith("trial/")}
        for kind in ("meta", "name", "replaced"):
            assert set(records.named(kind)) == {
                k.partition("/")[2] for k in model if k.startswith(kind + "/")
            }
        for trial in "ab":
            prefix = f"checkpoint/{trial}/"
            assert records.steps(trial) == sorted(
                int(k[len(prefix) :]) for k in model if k.startswith(prefix)
            )


def test_become_takes_over_another_map_whole():
    old, new = Records.index({"trial/a": pack(1)}), Records.index({"trial/b": pack(2), "meta/m": pack(3)})
    old.become(new)
    assert list(old.trial_ids) == ["b"]
    assert old.get("trial/a") is None
    assert old.get("meta/m") == 3
