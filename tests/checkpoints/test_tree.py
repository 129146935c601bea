from __future__ import annotations

import os
import socket

import pytest

from asynctune.checkpoints.tree import private_mode, scan_tree
from asynctune.errors import ConfigError
from tests.checkpoints.fakes import TREE, tree


def test_a_nested_tree(tmp_path):
    root = tree(tmp_path / "d")
    (root / "empty" / "inner").mkdir(parents=True)
    found = scan_tree(str(root))
    assert [file.path for file in found.files] == sorted(TREE)
    assert {file.path: file.size for file in found.files} == {name: len(data) for name, data in TREE.items()}
    assert [path for path, _ in found.directories] == ["a", "a/b", "empty", "empty/inner"]
    assert found.empty_directories == ["empty/inner"]
    assert found.movable


def test_the_root_may_be_a_link(tmp_path):
    tree(tmp_path / "d")
    (tmp_path / "link").symlink_to("d")
    found = scan_tree(str(tmp_path / "link"))
    assert found.root == str(tmp_path / "d")
    assert found.movable


def test_what_is_no_directory(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    for name in ("file", "nothing", "file/below"):
        with pytest.raises(ConfigError, match="no directory at"):
            scan_tree(str(tmp_path / name))


def test_a_link_to_a_file_inside_stands_for_a_copy(tmp_path):
    root = tree(tmp_path / "d")
    (root / "a/link").symlink_to("../model.bin")
    (root / "absolute").symlink_to(root / "model.bin")
    (root / "twice").symlink_to("a/link")
    found = scan_tree(str(root))
    links = [file for file in found.files if file.path in {"a/link", "absolute", "twice"}]
    assert {file.source for file in links} == {str(root / "model.bin")}
    assert {file.size for file in links} == {len(TREE["model.bin"])}
    assert not found.movable  # a link kept as it is would point elsewhere


def test_a_hard_link_is_not_taken_as_it_stands(tmp_path):
    root = tree(tmp_path / "d")
    os.link(root / "model.bin", tmp_path / "another-name")
    assert not scan_tree(str(root)).movable


def refused(root, what):
    with pytest.raises(ConfigError) as caught:
        scan_tree(str(root))
    assert what in str(caught.value)


def test_links_that_are_refused(tmp_path):
    (tmp_path / "outside").write_bytes(b"secret")
    (tmp_path / "d-next").mkdir()
    (tmp_path / "d-next/file").write_bytes(b"")
    for number, (target, complaint) in enumerate(
        [
            ("../outside", "out of the directory"),
            ("../d-next/file", "out of the directory"),  # a prefix of the name is not inside
            ("/etc/hostname", "out of the directory"),
            ("nowhere", "to nowhere"),
            ("bad", "to nowhere"),  # to itself
            (".", "to a directory"),
            ("a", "to a directory"),
        ]
    ):
        root = tree(tmp_path / f"{number}" / "d")
        (root / "bad").symlink_to(target if target.startswith("/") else target.replace("../", "../../"))
        refused(root, complaint)
        refused(root, str(root / "bad"))


def test_special_files_are_refused_without_opening_them(tmp_path):
    root = tree(tmp_path / "fifo")
    os.mkfifo(root / "pipe")
    refused(root, "is a FIFO")
    root = tree(tmp_path / "link")
    os.mkfifo(root / "x-pipe")
    (root / "a-link").symlink_to("x-pipe")
    refused(root, "is a FIFO")
    root = tree(tmp_path / "socket")
    server = socket.socket(socket.AF_UNIX)
    directory = os.open(root, os.O_RDONLY)
    try:  # a short name: paths of sockets are limited to 108 bytes
        server.bind(f"/proc/self/fd/{directory}/s")
    finally:
        os.close(directory)
        server.close()
    refused(root, "is a socket")


def test_names_that_are_refused(tmp_path):
    refused(tree(tmp_path / "1", {"Model": b"", "model": b""}), "differ only in case")
    refused(tree(tmp_path / "2", {"a/.manifest.json": b""}), "reserved")
    refused(tree(tmp_path / "3", {".manifest.json": b""}), "reserved")
    refused(tree(tmp_path / "4", {os.fsdecode(b"bad-\xff"): b""}), "not valid Unicode")


def test_a_committed_directory_is_listed_without_its_manifest(tmp_path):
    root = tree(tmp_path / "d", {".manifest.json": b"", "file": b""})
    assert [file.path for file in scan_tree(str(root), committed=True).files] == ["file"]
    tree(root, {"a/.manifest.json": b""})
    with pytest.raises(ConfigError, match="reserved"):
        scan_tree(str(root), committed=True)


@pytest.mark.parametrize(
    ("mode", "expected"), [(0o777, 0o755), (0o444, 0o644), (0o6755, 0o755), (0o000, 0o600), (0o660, 0o640)]
)
def test_permission_bits_of_a_copy(mode, expected):
    assert private_mode(mode, 0o600) == expected
