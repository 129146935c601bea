"""What the arguments of `open` mean: directories, copies, and what cannot be."""

from __future__ import annotations

import pytest

from asynctune.config import SyncConfig
from asynctune.errors import ConfigError
from asynctune.store.place import Place, is_uri, place_of


def place(location, mode="auto", *, local_dir=None, sync_config=None, storage_options=None) -> Place:
    return place_of(
        location, mode, local_dir=local_dir, sync_config=sync_config, storage_options=storage_options
    )


def upload(directory: str, **settings) -> SyncConfig:
    return SyncConfig(upload_dir=directory, **settings)


def test_a_directory_without_a_copy():
    found = place("/data/exp", sync_config=SyncConfig())
    assert (found.path, found.remote, found.remembers, found.by_uri) == ("/data/exp", None, False, False)
    assert found.shown == "/data/exp"


def test_a_directory_of_which_nothing_is_said_asks_the_experiment():
    found = place("/data/exp", storage_options={"key": "k"})
    assert found.remote is None
    assert found.remembers
    assert found.options == {"key": "k"}
    assert "key" not in repr(found)


def test_a_directory_that_is_read_knows_its_copy_itself_and_takes_the_options_for_it():
    found = place(
        "/data/exp",
        mode="read",
        sync_config=upload("s3://elsewhere", storage_options={"a": 1, "b": 2}),
        storage_options={"b": 3},
    )
    assert (found.path, found.remote, found.remembers) == ("/data/exp", None, True)
    assert found.options == {"a": 1, "b": 3}


def test_a_directory_with_a_copy_in_a_bucket():
    found = place("/data/exp", sync_config=upload("s3://bucket/some/where/", storage_options={"a": 1}))
    assert found.remote is not None
    assert str(found.remote.uri) == "s3://bucket/some/where/exp"
    assert found.remote.options == {"a": 1}
    assert found.shown == "/data/exp", "it is the directory that was named"


def test_a_directory_with_a_copy_in_a_directory(tmp_path):
    found = place(tmp_path / "exp", sync_config=upload("/mnt/share"))
    assert found.remote is not None
    assert str(found.remote.uri) == "/mnt/share/exp"


def test_the_options_of_the_call_come_before_those_of_the_config():
    found = place(
        "/data/exp",
        sync_config=upload("s3://bucket", storage_options={"a": 1, "b": 2}),
        storage_options={"b": 3},
    )
    assert found.remote is not None
    assert found.remote.options == {"a": 1, "b": 3}


@pytest.mark.parametrize("mode", ["auto", "resume", "create"])
def test_a_uri_is_staged_below_local_dir(mode, tmp_path):
    found = place("gs://bucket/a/exp", mode, local_dir=tmp_path)
    assert found.path == str(tmp_path / "exp")
    assert found.by_uri
    assert found.makes_parent
    assert found.shown == "gs://bucket/a/exp"
    assert found.remote is not None
    assert found.remote.sync.upload_dir == "gs://bucket/a", "it goes on there"


def test_a_uri_without_a_local_dir_is_staged_where_the_tuner_makes_experiments(monkeypatch):
    monkeypatch.setenv("TUNE_RESULT_DIR", "/results")
    assert place("s3://bucket/exp").path == "/results/exp"


def test_a_uri_that_is_read_needs_no_directory():
    found = place("s3://bucket/exp", "read", storage_options={"key": "k"})
    assert (found.path, found.by_uri) == ("", True)
    assert found.remote is not None
    assert found.remote.options == {"key": "k"}


def test_a_directory_may_be_a_copy_that_is_staged(tmp_path):
    found = place("/mnt/share/exp", local_dir=tmp_path)
    assert found.path == str(tmp_path / "exp")
    assert found.remote is not None
    assert (str(found.remote.uri), found.remote.sync.upload_dir) == ("/mnt/share/exp", "/mnt/share")


def test_a_uri_may_be_named_together_with_its_own_upload_dir(tmp_path):
    config = upload("s3://bucket/a/", sync_period=7)
    found = place("s3://bucket/a/exp", local_dir=tmp_path, sync_config=config)
    assert found.remote is not None
    assert found.remote.sync.sync_period == 7


@pytest.mark.parametrize(
    ("location", "settings", "message"),
    [
        ("s3://bucket", {}, "names a bucket"),
        ("ftp://host/exp", {}, "ftp:// is no storage"),
        ("s3://bucket/exp", {"sync_config": upload("s3://other/place")}, "goes on there"),
        ("/data/exp", {"local_dir": "/data"}, "is the copy of an experiment"),
        (
            "/data/exp",
            {"sync_config": SyncConfig(), "storage_options": {"key": "k"}},
            "storage_options are for",
        ),
        (
            "/data/exp",
            {"local_dir": "/other", "storage_options": {"key": "k"}},
            "storage_options are for buckets",
        ),
        ("s3://bucket/exp", {"sync_config": SyncConfig(syncer=None)}, "nothing is copied"),
        ("s3://user:secret@bucket/exp", {}, "without credentials"),
    ],
    ids=[
        "bucket",
        "scheme",
        "elsewhere",
        "local_dir",
        "options",
        "options-staged",
        "no-syncer",
        "credentials",
    ],
)
def test_what_cannot_be_is_refused(location, settings, message):
    with pytest.raises(ConfigError, match=message) as refused:
        place(location, **settings)
    assert "secret" not in str(refused.value)


@pytest.mark.parametrize(
    ("location", "answer"),
    [("s3://b/e", True), ("GS://b/e", True), ("file:///e", False), ("/e", False), ("e", False)],
)
def test_what_is_a_uri(location, answer):
    assert is_uri(location) is answer


@pytest.mark.parametrize("name", ["what?", "one#two"])
def test_a_name_that_no_uri_ends_with(name):
    with pytest.raises(ConfigError, match=r"cannot be the end of a URI"):
        place(f"/data/{name}", sync_config=upload("s3://bucket/prefix"))
    found = place(f"/data/{name}", sync_config=upload("/mnt/share"))
    assert str(found.remote) == f"/mnt/share/{name}"
