"""Owns the suite for syncers: what a mirror that is kept by one relies on. Needs pytest and pytest-asyncio."""

from __future__ import annotations

import asyncio
import fnmatch
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import ClassVar, Final

import pytest

from asynctune.checkpoints.syncer_calls import SyncerCalls
from asynctune.clock import SystemClock
from asynctune.errors import StorageError
from asynctune.protocols import Syncer

__all__ = ["SyncerTests"]

_TREE: Final[Mapping[str, bytes]] = {
    "model.bin": b"weights" * 1000,
    "empty": b"",
    ".manifest.json": b"{}",
    "a/b/c/deep.txt": b"deep",
    "with space/and 'quotes'.txt": b"quoted",
    "-dash/--option": b"no option",
    "grüße.txt": "grüße".encode(),
    "logs/one.log": b"one",
    "logs/keep.txt": b"keep",
    "scratch.tmp": b"scratch",
    "a/scratch.tmp": b"scratch",
}
_EXCLUDED: Final = ("*.tmp", "logs/*")
_KEPT: Final = {
    path: data for path, data in _TREE.items() if not any(fnmatch.fnmatch(path, each) for each in _EXCLUDED)
}


class SyncerTests:
    """Inherit from this class, and say how a syncer is made and where it copies to; pytest runs its tests for it.

    Example::

        class TestMySyncer(SyncerTests):
            @pytest.fixture
            def syncer(self):
                return MySyncer()

            @pytest.fixture
            def remote(self):
                return f"s3://test-bucket/{uuid.uuid4()}"

    Attributes:
        excludes: Whether it can leave files out. asynctune itself does not ask for it.
        removes: Whether a `sync_up` removes what is not in the local directory. It need not.
    """

    pytestmark: ClassVar = [pytest.mark.asyncio]
    excludes: ClassVar[bool] = True
    removes: ClassVar[bool] = True

    @pytest.fixture
    def syncer(self) -> Syncer:
        """Override: a syncer."""
        raise NotImplementedError

    @pytest.fixture
    def remote(self) -> str:
        """Override: a remote place of this test's own, where nothing is."""
        raise NotImplementedError

    def sent(self, syncer: Syncer) -> Sequence[str] | None:  # noqa: ARG002
        """Override: the paths of all files that it has sent so far, relative to what it copied; `None`: unknown."""
        return None

    @pytest.fixture
    def calls(self, syncer: Syncer) -> SyncerCalls:
        """The way in which asynctune calls it."""
        return SyncerCalls(syncer, timeout_s=120, clock=SystemClock())

    # -- trees -----------------------------------------------------------------------------------------------

    async def test_it_has_the_methods_of_a_syncer(self, syncer: Syncer) -> None:
        """See `asynctune.protocols.Syncer`."""
        assert isinstance(syncer, Syncer)

    async def test_a_tree_comes_back_as_it_was(self, calls: SyncerCalls, remote: str, tmp_path: Path) -> None:
        """Nested directories, empty and hidden files, names that a shell or a command could misread."""
        await calls.up(await _made(tmp_path / "up", _TREE), f"{remote}/exp/trial/checkpoint_000001")
        back = await _made(tmp_path / "down", {})
        await calls.down(f"{remote}/exp/trial/checkpoint_000001", back)
        assert await _read(back) == _TREE

    async def test_a_directory_whose_name_is_odd(
        self, calls: SyncerCalls, remote: str, tmp_path: Path
    ) -> None:
        """Spaces and quotes stay within one argument."""
        await calls.up(await _made(tmp_path / "-up 'it'", {"f": b"1"}), f"{remote}/a trial $(of) 'mine'/c")
        back = await _made(tmp_path / '-down "it"', {})
        await calls.down(f"{remote}/a trial $(of) 'mine'/c", back)
        assert await _read(back) == {"f": b"1"}

    async def test_directories_are_kept_apart(self, calls: SyncerCalls, remote: str, tmp_path: Path) -> None:
        """Whatever the beginning of their names, and whichever is copied first."""
        for name in ("trial/c_1", "trial/c_10", "trial"):
            await calls.up(
                await _made(tmp_path / name.replace("/", "_"), {name.replace("/", "_"): b""}),
                f"{remote}/{name}-",
            )
        for name in ("trial/c_1", "trial/c_10", "trial"):
            back = await _made(tmp_path / f"back_{name.replace('/', '_')}", {})
            await calls.down(f"{remote}/{name}-", back)
            assert list(await _read(back)) == [name.replace("/", "_")]

    async def test_what_has_changed_is_sent_again(
        self, calls: SyncerCalls, remote: str, tmp_path: Path
    ) -> None:
        """And what is new."""
        local = await _made(tmp_path / "up", {"same": b"1", "longer": b"1"})
        await calls.up(local, f"{remote}/c")
        await _made(tmp_path / "up", {"longer": b"12", "new": b"3"})
        await calls.up(local, f"{remote}/c")
        back = await _made(tmp_path / "down", {})
        await calls.down(f"{remote}/c", back)
        assert await _read(back) == {"same": b"1", "longer": b"12", "new": b"3"}

    async def test_what_has_not_changed_is_not_sent_again(
        self, syncer: Syncer, calls: SyncerCalls, remote: str, tmp_path: Path
    ) -> None:
        """As far as `sent` tells."""
        local = await _made(tmp_path / "up", _TREE)
        await calls.up(local, f"{remote}/c")
        before = self.sent(syncer)
        if before is None:
            pytest.skip("it does not tell what it sends")
        assert sorted(before) == sorted(_TREE)
        count = len(before)
        await calls.up(local, f"{remote}/c")
        again = self.sent(syncer)
        assert again is not None
        assert list(again[count:]) == []
        await _made(tmp_path / "up", {"a/b/c/deep.txt": b"deeper"})
        await calls.up(local, f"{remote}/c")
        again = self.sent(syncer)
        assert again is not None
        assert list(again[count:]) == ["a/b/c/deep.txt"]

    async def test_what_was_removed_is_removed(self, calls: SyncerCalls, remote: str, tmp_path: Path) -> None:
        """Where it does so."""
        if not self.removes:
            pytest.skip("it removes nothing")
        local = await _made(tmp_path / "up", _TREE)
        await calls.up(local, f"{remote}/c")
        await asyncio.to_thread(os.unlink, os.path.join(local, "a/b/c/deep.txt"))
        await calls.up(local, f"{remote}/c")
        back = await _made(tmp_path / "down", {})
        await calls.down(f"{remote}/c", back)
        assert await _read(back) == {path: data for path, data in _TREE.items() if path != "a/b/c/deep.txt"}

    async def test_what_is_excluded_stays_out_on_the_way_up(
        self, calls: SyncerCalls, remote: str, tmp_path: Path
    ) -> None:
        """Files at any depth, and whole directories."""
        self._require_excludes()
        await calls.up(await _made(tmp_path / "up", _TREE), f"{remote}/c", _EXCLUDED)
        back = await _made(tmp_path / "down", {})
        await calls.down(f"{remote}/c", back)
        assert await _read(back) == _KEPT

    async def test_what_is_excluded_stays_out_on_the_way_down(
        self, calls: SyncerCalls, remote: str, tmp_path: Path
    ) -> None:
        """Likewise."""
        self._require_excludes()
        await calls.up(await _made(tmp_path / "up", _TREE), f"{remote}/c")
        back = await _made(tmp_path / "down", {})
        await calls.down(f"{remote}/c", back, _EXCLUDED)
        assert await _read(back) == _KEPT

    # -- deleting --------------------------------------------------------------------------------------------

    async def test_what_was_deleted_is_gone_and_nothing_else(
        self, calls: SyncerCalls, remote: str, tmp_path: Path
    ) -> None:
        """Also where another name begins in the same way."""
        local = await _made(tmp_path / "up", _TREE)
        for name in ("c_1", "c_10"):
            await calls.up(local, f"{remote}/{name}")
        await calls.delete(f"{remote}/c_1")
        assert await self._comes_back(calls, f"{remote}/c_1", tmp_path / "gone") == {}
        assert await self._comes_back(calls, f"{remote}/c_10", tmp_path / "there") == _TREE
        await calls.up(local, f"{remote}/c_1")
        assert await self._comes_back(calls, f"{remote}/c_1", tmp_path / "again") == _TREE

    async def test_what_is_not_there_can_be_deleted(
        self, calls: SyncerCalls, remote: str, tmp_path: Path
    ) -> None:
        """Again, after a reply that was lost."""
        await calls.up(await _made(tmp_path / "up", _TREE), f"{remote}/c")
        await calls.delete(f"{remote}/c")
        await calls.delete(f"{remote}/c")

    # -- failures --------------------------------------------------------------------------------------------

    async def test_a_failure_is_told(self, calls: SyncerCalls, remote: str, tmp_path: Path) -> None:
        """`False` or an exception, never silence: here there is no local directory."""
        with pytest.raises(StorageError):
            await calls.up(str(tmp_path / "missing"), f"{remote}/c")

    async def test_up_and_down_go_on_beside_each_other(
        self, calls: SyncerCalls, remote: str, tmp_path: Path
    ) -> None:
        """One of each at a time."""
        for name in ("one", "two"):
            await calls.up(await _made(tmp_path / name, {name: b"1"}), f"{remote}/{name}")
        backs = [await _made(tmp_path / f"down_{name}", {}) for name in ("one", "two")]
        three = await _made(tmp_path / "three", {"three": b"3"})
        await asyncio.gather(
            calls.down(f"{remote}/one", backs[0]),
            calls.up(three, f"{remote}/three"),
            calls.down(f"{remote}/two", backs[1]),
        )
        assert [await _read(back) for back in backs] == [{"one": b"1"}, {"two": b"1"}]
        assert await self._comes_back(calls, f"{remote}/three", tmp_path / "b") == {"three": b"3"}

    # -- small things ----------------------------------------------------------------------------------------

    def _require_excludes(self) -> None:
        if not self.excludes:
            pytest.skip("it can leave nothing out")

    async def _comes_back(self, calls: SyncerCalls, remote_dir: str, local: Path) -> dict[str, bytes]:
        """What is there; a place where nothing is may be a failure."""
        back = await _made(local, {})
        try:
            await calls.down(remote_dir, back)
        except StorageError:
            assert await _read(back) == {}
        return await _read(back)


async def _made(directory: Path, files: Mapping[str, bytes]) -> str:
    """The path of a directory with these files."""

    def make() -> None:
        directory.mkdir(parents=True, exist_ok=True)
        for path, data in files.items():
            (directory / path).parent.mkdir(parents=True, exist_ok=True)
            (directory / path).write_bytes(data)

    await asyncio.to_thread(make)
    return str(directory)


async def _read(directory: str) -> dict[str, bytes]:
    def read() -> dict[str, bytes]:
        root = Path(directory)
        return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}

    return await asyncio.to_thread(read)
