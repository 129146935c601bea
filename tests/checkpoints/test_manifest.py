from __future__ import annotations

import hashlib
import json
import random
import shutil
import string
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from asynctune.checkpoints.manifest import Manifest, ManifestError, ManifestFile, check_paths, digest_of

SHA = hashlib.sha256(b"x").hexdigest()


def entry(path: str = "a", size: int = 1, crc: int = 2, sha: str = SHA) -> ManifestFile:
    return ManifestFile(path, size, crc, sha)


def manifest(*files: ManifestFile, **changes: Any) -> Manifest:
    return Manifest(**{"step": 5, "epoch": 1, "attempt": 0, "files": files, **changes})


# Case and normalization differ in no two of these letters, so that any set of paths may lie side by side.
part = st.text(alphabet=string.ascii_lowercase + "0123 -_.é日\\\n\"'", min_size=1, max_size=12).filter(
    lambda text: text not in {".", ".."}
)
paths = st.lists(st.lists(part, min_size=1, max_size=3).map("/".join), max_size=8, unique=True)


def lie_side_by_side(names: list[str]) -> bool:
    try:
        check_paths(names)
    except ManifestError:
        return False
    return True


@given(
    paths.filter(lie_side_by_side),
    st.integers(0, 10**12),
    st.integers(0, 2**63 - 1),
    st.none() | st.text(string.ascii_letters, min_size=1),
    st.randoms(use_true_random=False),
)
def test_what_was_encoded_is_decoded(names, step, size, trial_id, shuffle):
    files = [entry(name, size, shuffle.randrange(2**32)) for name in names]
    made = manifest(*sorted(files, key=lambda file: file.path), step=step, trial_id=trial_id)
    encoded = made.encode()
    assert Manifest.decode(encoded) == made
    shuffle.shuffle(files)
    assert manifest(*files, step=step, trial_id=trial_id).encode() == encoded  # one text for one content


def test_the_digest_is_that_of_the_bytes_on_the_disk():
    made = manifest(entry("model.bin"), trial_id="t")
    assert made.digest == hashlib.sha256(made.encode()).hexdigest() == digest_of(made.encode())


def test_any_tool_can_read_it():
    text = manifest(entry("b", 7, 10), entry("a"), trial_id="t", empty_directories=("e",)).encode()
    value = json.loads(text)
    assert value["format"] == 1
    assert [file["path"] for file in value["files"]] == ["a", "b"]
    assert value["files"][1] == {"path": "b", "size_bytes": 7, "crc32c": "0000000a", "sha256": SHA}
    assert text.count(b'"path"') == len([line for line in text.splitlines() if b'"path"' in line])


def test_sizes_and_naming():
    made = manifest(entry("a", 3), entry("b", 4))
    assert (made.size_bytes, made.sizes) == (7, {"a": 3, "b": 4})
    named = made.named(trial_id="t", step=9, epoch=2, attempt=1)
    assert (named.trial_id, named.step, named.epoch, named.attempt, named.files) == ("t", 9, 2, 1, made.files)


@pytest.mark.parametrize(
    ("names", "complaint"),
    [
        (["/etc/passwd"], "absolute"),
        (["../up"], r"part '\.\.'"),
        (["a/../b"], r"part '\.\.'"),
        (["a/./b"], r"part '\.'"),
        (["a//b"], "part ''"),
        (["a/"], "part ''"),
        ([""], "must be text"),
        ([3], "must be text"),
        (["a\0b"], "NUL"),
        (["\udcff"], "not valid Unicode"),
        ([".manifest.json"], "reserved"),
        (["x/.Manifest.JSON"], "reserved"),
        (["a" * 5000], "4,096"),
        (["a/" * 256 + "f"], "has 257 parts; the limit is 256"),
        (["same", "same"], "one name"),
        (["Model.bin", "model.bin"], "differ only in case"),
        (["A/x", "a/y"], "differ only in case"),
        (["straße", "STRASSE"], "differ only in case"),
        (["\u00e9", "e\u0301"], "Unicode form"),
        (["a", "a/b"], "one name"),
        (["a/b", "a"], "one name"),
        (["p/q/a/b", "p/Q/c"], "differ only in case"),
    ],
)
def test_paths_that_are_refused(names, complaint):
    with pytest.raises(ManifestError, match=complaint):
        check_paths(names)
    with pytest.raises(ManifestError, match=complaint):
        manifest(*(entry(name) for name in names)).encode()


def test_a_deep_tree_can_be_removed(tmp_path):
    path = "a/" * 255 + "f"
    check_paths([path])
    (tmp_path / "t" / path).parent.mkdir(parents=True)
    shutil.rmtree(tmp_path / "t")


def test_an_empty_directory_may_not_be_a_file_too():
    check_paths(["a/b"], ["c", "a/d"])
    with pytest.raises(ManifestError, match="one name"):
        check_paths(["a/b"], ["a"])
    with pytest.raises(ManifestError, match="differ only in case"):
        check_paths(["a/b"], ["a/B"])


@pytest.mark.parametrize(
    "changes",
    [
        {"step": -1},
        {"step": True},
        {"step": 1.0},
        {"step": 10**12 + 1},
        {"epoch": -1},
        {"attempt": "0"},
        {"trial_id": ""},
        {"trial_id": 7},
        {"trial_id": "\udcff"},
        {"files": (entry(size=-1),)},
        {"files": (entry(size=2**63),)},
        {"files": (entry(crc=2**32),)},
        {"files": (entry(sha="abc"),)},
        {"files": (entry(sha="G" * 64),)},
    ],
)
def test_values_that_are_refused(changes):
    with pytest.raises(ManifestError):
        manifest(**changes).encode()


def changed(**changes: Any) -> bytes:
    value = json.loads(manifest(entry()).encode())
    value.update(changes)
    return json.dumps({key: each for key, each in value.items() if each is not ...}).encode()


FILE = {"path": "a", "size_bytes": 1, "crc32c": "00000002", "sha256": SHA}


@pytest.mark.parametrize(
    ("data", "complaint"),
    [
        (b"", "not a manifest"),
        (b"\xff\xfe", "not a manifest"),
        (b"[]", "no format"),
        (b"null", "no format"),
        (b'{"format":1', "not a manifest"),
        (b'{"format":1,"format":1}', "twice"),
        (b'{"format":NaN}', "NaN"),
        (b'{"format":' + b"9" * 5000 + b"}", "not a manifest"),
        (b"[" * 100_000, "not a manifest"),
        (changed(format=2), "newer.*upgrade"),
        (changed(format=0), "does not exist"),
        (changed(format=True), "format"),
        (changed(format="1"), "format"),
        (changed(extra=1), "unknown"),
        (changed(files=...), "lacks"),
        (changed(files={}), "lists"),
        (changed(empty_directories="a"), "lists"),
        (changed(files=["a"]), "must be an object"),
        (changed(files=[FILE | {"crc32c": 2}]), "hex digits"),
        (changed(files=[FILE | {"crc32c": "+0000002"}]), "hex digits"),
        (changed(files=[FILE | {"sha256": None}]), "hex digits"),
        (changed(files=[FILE | {"size_bytes": 1.5}]), "whole number"),
        (changed(files=[FILE | {"path": ["a"]}]), "must be text"),
        (changed(files=[FILE | {"path": "../a"}]), "part"),
        (changed(files=[FILE | {"more": 1}]), "unknown"),
        (changed(files=[FILE, FILE]), "one name"),
        (changed(step="5"), "step"),
        (changed(trial_id=[]), "trial_id"),
    ],
)
def test_hostile_input_is_refused_and_says_why(data, complaint):
    with pytest.raises(ManifestError, match=complaint):
        Manifest.decode(data)


def test_cut_anywhere_it_is_no_manifest():
    encoded = manifest(entry("a"), entry("b/c"), trial_id="t").encode()
    for size in range(len(encoded) - 1):  # the last byte is a line feed
        with pytest.raises(ManifestError):
            Manifest.decode(encoded[:size])


def test_a_flipped_bit_never_gives_the_same_digest(rng: random.Random):
    encoded = manifest(entry("a"), entry("b/c"), trial_id="t").encode()
    for _ in range(300):
        position = rng.randrange(len(encoded))
        damaged = bytearray(encoded)
        damaged[position] ^= 1 << rng.randrange(8)
        assert digest_of(bytes(damaged)) != digest_of(encoded)
        try:
            Manifest.decode(bytes(damaged))
        except ManifestError:
            continue
