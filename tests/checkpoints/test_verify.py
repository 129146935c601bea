# mypy: disable-error-code="func-returns-value"
# Damages are lists of calls, made for their effect.
from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from asynctune.checkpoints import copying
from asynctune.checkpoints.staging import stage_for_adoption
from asynctune.checkpoints.verify import VerifyReport, copy_verified, verify_directory
from asynctune.files import LocalFiles
from tests.checkpoints.fakes import TREE, read_tree, tree


@pytest.fixture
async def committed(tmp_path, monkeypatch):
    """A complete directory and its manifest's digest; its big file has more than one chunk."""
    monkeypatch.setattr(copying, "SMALL_BYTES", 256)
    monkeypatch.setattr(copying, "CHUNK_BYTES", 256)
    source = tree(tmp_path / "src")
    (source / "hollow").mkdir()
    staged = await stage_for_adoption(source, tmp_path)
    return Path(staged.path), staged.manifest.digest


async def check(committed, threads, **options) -> VerifyReport:
    path, digest = committed
    return await verify_directory(str(path), digest, files=LocalFiles(), threads=threads, **options)


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


async def test_what_is_as_recorded(committed, threads):
    report = await check(committed, threads)
    assert report.ok
    assert report.intact
    assert report.manifest is not None
    assert str(report).endswith("is intact")


DAMAGES: dict[str, tuple[Callable[[Path], list[object]], str, str]] = {
    "file gone": (lambda d: [(d / "z.json").unlink()], "missing", "z.json"),
    "folder gone": (lambda d: [shutil.rmtree(d / "a")], "missing", "a/b/deep.txt"),
    "shorter": (lambda d: [(d / "z.json").write_bytes(b"{")], "size", "z.json"),
    "bit flipped": (lambda d: [flip(d / "z.json")], "content", "z.json"),
    "bit of a big file flipped": (lambda d: [flip(d / "model.bin")], "content", "model.bin"),
    "now a folder": (lambda d: [(d / "z.json").unlink(), (d / "z.json").mkdir()], "content", "z.json"),
    "now a link": (
        lambda d: [(d / "z.json").rename(d / "y"), (d / "z.json").symlink_to("y")],
        "content",
        "z.json",
    ),
    "now a FIFO": (lambda d: [(d / "z.json").unlink(), os.mkfifo(d / "z.json")], "content", "z.json"),
    "folder now a file": (
        lambda d: [shutil.rmtree(d / "a"), (d / "a").write_bytes(b"")],
        "missing",
        "a/other",
    ),
    "one more": (lambda d: [(d / "a/more").write_bytes(b"")], "extra", "a/more"),
    "a link more": (lambda d: [(d / "a/link").symlink_to("/nowhere")], "extra", "a/link"),
    "no manifest": (lambda d: [(d / ".manifest.json").unlink()], "manifest", ".manifest.json"),
    "bit of the manifest flipped": (lambda d: [flip(d / ".manifest.json")], "manifest", ".manifest.json"),
    "manifest empty": (lambda d: [(d / ".manifest.json").write_bytes(b"")], "manifest", ".manifest.json"),
    "all gone": (lambda d: [shutil.rmtree(d)], "manifest", ".manifest.json"),
    "a file instead": (lambda d: [shutil.rmtree(d), d.write_bytes(b"")], "manifest", ".manifest.json"),
}


@pytest.mark.parametrize("name", DAMAGES)
async def test_what_is_not(committed, threads, name):
    damage, kind, path = DAMAGES[name]
    damage(committed[0])
    report = await check(committed, threads)
    assert not report.ok
    assert report.intact == (kind == "extra")
    assert (kind, path) in {(problem.kind, problem.path) for problem in report.problems}
    assert path in str(report)


async def test_without_contents_names_and_sizes_are_compared(committed, threads):
    flip(committed[0] / "z.json")
    assert (await check(committed, threads, contents=False)).ok
    (committed[0] / "z.json").write_bytes(b"")
    assert not (await check(committed, threads, contents=False)).ok


async def test_every_problem_is_told_and_a_few_are_shown(committed, threads):
    for name in TREE:
        (committed[0] / name).unlink()
    report = await check(committed, threads)
    assert len(report.problems) == len(TREE)
    assert "and 1 more" in str(report)


async def test_another_valid_manifest_is_not_the_recorded_one(committed, threads, tmp_path):
    other = await stage_for_adoption(tree(tmp_path / "other", {"z": b""}), tmp_path)
    shutil.copy(Path(other.path) / ".manifest.json", committed[0] / ".manifest.json")
    report = await check(committed, threads)
    assert [problem.kind for problem in report.problems] == ["manifest"]


async def test_a_disk_that_cannot_read_is_damage_and_a_missing_permission_is_not(committed, threads):
    class Faulty(LocalFiles):
        error = errno.EIO

        def read(self, path: str) -> bytes:
            raise OSError(self.error, os.strerror(self.error), path)

    path, digest = committed
    report = await verify_directory(str(path), digest, files=Faulty(), threads=threads)
    assert [problem.kind for problem in report.problems] == ["unreadable"]
    for number in (errno.EACCES, errno.EMFILE):
        Faulty.error = number
        with pytest.raises(OSError, match=r"many|denied"):
            await verify_directory(str(path), digest, files=Faulty(), threads=threads)


async def copy(committed, target, threads, **options):
    path, digest = committed
    target.mkdir()
    return await copy_verified(
        str(path), digest, str(target), files=LocalFiles(), threads=threads, **{"durable": True, **options}
    )


async def test_a_verified_copy(committed, threads, tmp_path):
    (committed[0] / "stray").write_bytes(b"")
    report = await copy(committed, tmp_path / "to", threads)
    assert report.intact
    assert read_tree(tmp_path / "to") == TREE
    assert (tmp_path / "to/hollow").is_dir()
    assert not (tmp_path / "to/.manifest.json").exists()
    assert not (tmp_path / "to/z.json").samefile(committed[0] / "z.json")


async def test_a_copy_of_damaged_files_says_so(committed, threads, tmp_path):
    flip(committed[0] / "model.bin")
    report = await copy(committed, tmp_path / "to", threads, durable=False)
    assert not report.intact
    assert [problem.path for problem in report.problems] == ["model.bin"]
    (committed[0] / "z.json").unlink()
    report = await copy(committed, tmp_path / "again", threads)
    assert not report.intact
    assert not list((tmp_path / "again").iterdir())
