"""What a location means, and that a refused one is not shown."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from asynctune.errors import ConfigError, MissingExtraError
from asynctune.storage.aside import StorageAside
from asynctune.storage.local import LocalStorage
from asynctune.storage.memory import MemoryStorage
from asynctune.storage.uri import StorageURI, open_storage, parse_uri

NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="/\0?#", exclude_categories=["C"]),
    min_size=1,
    max_size=20,
)
PARTS = st.lists(NAMES.filter(lambda name: name not in (".", "..")), max_size=4)
SLASHES = st.sampled_from(["/", "//", "/./", "///"])


@pytest.mark.parametrize(
    ("location", "expected"),
    [
        ("s3://bucket/a/b", ("s3", "bucket", "a/b")),
        ("S3://bucket", ("s3", "bucket", "")),
        ("s3://bucket/", ("s3", "bucket", "")),
        ("s3://bucket//a///b/./c//", ("s3", "bucket", "a/b/c")),
        ("s3://bucket/a b/100%25/x@y:z", ("s3", "bucket", "a b/100%25/x@y:z")),
        ("gs://my.bucket_1/runs", ("gs", "my.bucket_1", "runs")),
        ("memory://m/p", ("memory", "m", "p")),
        ("/data//runs/", ("file", "", "/data/runs")),
        ("data/./runs", ("file", "", "data/runs")),
        ("../runs", ("file", "", "../runs")),
        ("~/runs", ("file", "", "~/runs")),
        ("/a?b#c%20", ("file", "", "/a?b#c%20")),
        ("s3", ("file", "", "s3")),
        ("/", ("file", "", "/")),
        (".", ("file", "", ".")),
        (Path("/data/runs"), ("file", "", "/data/runs")),
        ("file:///data/my%20runs", ("file", "", "/data/my runs")),
        ("file://localhost/data", ("file", "", "/data")),
    ],
    ids=str,
)
def test_locations(location, expected):
    found = parse_uri(location)
    assert (found.scheme, found.bucket, found.prefix) == expected
    assert parse_uri(str(found)) == found


@pytest.mark.parametrize(
    ("location", "says"),
    [
        ("", "empty"),
        ("a\0b", "NUL"),
        (None, "NoneType"),
        (b"bytes", "bytes"),
        ("http://host/path", "http:// is no storage"),
        ("s3a://bucket/path", "s3a:// is no storage"),
        ("s3://", "names a bucket"),
        ("s3:///path", "names a bucket"),
        ("gs://a", "name of a bucket"),
        ("s3://bad!name/x", "name of a bucket"),
        ("s3://bucket/a/../b", "no '..'"),
        ("s3://bucket/..", "no '..'"),
        ("s3://bucket/a?versionId=1", "no query"),
        ("gs://bucket/a#1", "no fragment"),
        ("s3://bucket/a\nb", "control character"),
        ("s3://bucket/" + "n" * 300, "255"),
        ("s3://bucket/" + "n/" * 300, "too long"),
        ("s3:/bucket/a", "two slashes"),
        (Path("s3://bucket/a"), "two slashes"),
        (Path("gs://bucket/a"), "two slashes"),
        ("file://host/path", "of this machine"),
        ("file://relative", "of this machine"),
        ("file:///a%00b", "NUL"),
        ("file:///a?b", "no query"),
    ],
    ids=repr,
)
def test_what_cannot_be_a_location_is_refused(location, says):
    with pytest.raises(ConfigError, match=says.replace("(", r"\(").replace("?", r"\?")):
        parse_uri(location)


@pytest.mark.parametrize("scheme", ["s3", "gs", "memory", "file", "http"])
@pytest.mark.parametrize(
    "rest",
    [
        "AKIAKEY:hunter2secret@bucket/p",
        "AKIAKEY:hunter2secret/more@bucket/p",
        "hunter2secret@bucket",
        "bucket:hunter2secret",
        "bucket/p?X-Amz-Signature=hunter2secret",
        "bucket/p#hunter2secret",
        "!hunter2secret/p",
    ],
)
def test_credentials_are_refused_and_not_shown(scheme, rest):
    with pytest.raises(ConfigError) as caught:
        parse_uri(f"{scheme}://{rest}")
    assert "hunter2secret" not in str(caught.value)
    assert "AKIAKEY" not in str(caught.value)
    assert caught.value.__cause__ is None


@given(st.sampled_from(["s3", "gs", "memory"]), PARTS, st.lists(SLASHES, min_size=6, max_size=6))
def test_slashes_too_many_change_nothing(scheme, names, slashes):
    text = (
        f"{scheme}://bucket"
        + "".join(slash + name for slash, name in zip(slashes, names, strict=False))
        + slashes[5]
    )
    found = parse_uri(text)
    assert found == StorageURI(scheme, "bucket", "/".join(names))
    assert parse_uri(str(found)) == found
    assert parse_uri("s3://bucket").child(*names).prefix == found.prefix if names else True


@given(st.text())
@example("s3://é")
@example("file://[")
def test_any_text_is_a_location_or_a_config_error(text):
    try:
        found = parse_uri(text)
    except ConfigError:
        return
    if found.scheme != "file":
        assert parse_uri(str(found)) == found


def test_what_lies_below():
    assert str(parse_uri("s3://bucket").child("a", "b/c")) == "s3://bucket/a/b/c"
    assert str(parse_uri("gs://bucket/x/").child("a")) == "gs://bucket/x/a"
    assert str(parse_uri("/").child("a")) == "/a"
    assert str(parse_uri("/runs").child("a")) == "/runs/a"
    for wrong in ("..", "", "/a", "a/../b"):
        with pytest.raises(ConfigError):
            parse_uri("s3://bucket").child(wrong)


# -- opening -----------------------------------------------------------------------------------------------


async def test_paths_open_a_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for location, root in (
        (tmp_path, str(tmp_path)),
        (f"file://{tmp_path}/x", f"{tmp_path}/x"),
        ("runs/../runs", f"{tmp_path}/runs"),
        ("~/runs", f"{tmp_path}/home/runs"),
        (parse_uri("runs"), f"{tmp_path}/runs"),
    ):
        storage = await open_storage(location)
        assert isinstance(storage, LocalStorage)
        assert storage.location == root
        await storage.aclose()
    assert os.listdir(tmp_path) == []


async def test_memory_is_opened_by_its_name():
    first, second = await open_storage("memory://uri-test/a"), await open_storage("memory://uri-test")
    assert isinstance(first, MemoryStorage)
    await first.put("k", b"1")
    assert (await second.read("a/k")).data == b"1"
    MemoryStorage.forget("uri-test")


@pytest.mark.parametrize("location", ["/runs", "memory://m/p"])
async def test_options_are_for_buckets_and_not_shown(location):
    with pytest.raises(ConfigError, match="storage_options") as caught:
        await open_storage(location, {"secret": "hunter2secret"})
    assert "hunter2secret" not in str(caught.value)


@pytest.mark.parametrize(
    ("scheme", "extra", "package"), [("s3", "s3", "aiobotocore"), ("gs", "gcs", "gcloud.aio.storage")]
)
async def test_a_missing_client_names_its_extra(monkeypatch, scheme, extra, package):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=rf"asynctune\[{extra}\]") as caught:
        await open_storage(f"{scheme}://bucket/x")
    assert (caught.value.extra, caught.value.package) == (extra, package)


async def test_a_bucket_is_opened_by_the_module_of_its_client(monkeypatch):
    client: Any = types.ModuleType("asynctune.storage.s3")
    bucket = MemoryStorage()
    opened = []

    async def open_it(uri, options):
        opened.append((uri, options))
        return bucket

    client.open_storage = open_it
    monkeypatch.setitem(sys.modules, "asynctune.storage.s3", client)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: object())
    storage = await open_storage("s3://bucket/x", {"key": "k"})
    assert isinstance(storage, StorageAside), "its client computes too much for the caller's loop"
    assert storage.inner is bucket
    await storage.aclose()
    assert opened == [(parse_uri("s3://bucket/x"), {"key": "k"})]
