"""The state goes by a syncer as generations that are never changed, named only when they are whole, and comes back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from google_crc32c import value as crc32c

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.export_format import ExportEntry, decode_current, encode_current
from asynctune.checkpoints.state_exports import ExportFile, StateExports
from asynctune.checkpoints.syncer_calls import SyncerCalls
from asynctune.clock import SystemClock
from asynctune.errors import ConfigError, CorruptStateError, StorageError, UnsupportedFormatError
from asynctune.files import LocalFiles
from asynctune.packing import UnpackError, pack
from asynctune.testing import DirectorySyncer
from tests.checkpoints.fakes import read_tree

NONCE = "0123456789ab"


class Watched(DirectorySyncer):
    """Fails at the n-th call, before or after it is done, and remembers what it was called for."""

    def __init__(self):
        super().__init__()
        self.calls: list[tuple[str, str]] = []
        self.fail_at: int | None = None
        self.fails_after = False
        self.look = lambda: None

    def _call(self, name, remote, act):
        self.calls.append((name, Path(remote).name))
        fails = len(self.calls) == self.fail_at
        if fails and not self.fails_after:
            return False
        act()
        self.look()
        return not fails

    def sync_up(self, local_dir, remote_dir, exclude=None):
        return self._call("up", remote_dir, lambda: super(Watched, self).sync_up(local_dir, remote_dir))

    def delete(self, remote_dir):
        return self._call("delete", remote_dir, lambda: super(Watched, self).delete(remote_dir))


class World:
    """An experiment, its mirror, and openings of it."""

    def __init__(self, root):
        self.root = root
        self.threads = DiskThreads()
        self.syncer = Watched()

    def exports(self, experiment="exp", nonce=NONCE, stage_dir=None):
        home = self.root / experiment / ".asynctune"
        home.mkdir(parents=True, exist_ok=True)
        return StateExports(
            SyncerCalls(self.syncer, timeout_s=60, clock=SystemClock()),
            f"{self.remote}/",
            str(home.parent),
            files=LocalFiles(),
            threads=self.threads,
            nonce=nonce,
            stage_dir=stage_dir,
        )

    @property
    def remote(self):
        return self.root / "remote"

    @property
    def there(self):
        """The generations in the mirror."""
        export = self.remote / ".asynctune/export"
        return sorted(os.listdir(export)) if export.exists() else []

    async def back(self, exports=None):
        """What a reader on another machine gets."""
        into = self.root / f"into-{len(list(self.root.iterdir()))}"
        into.mkdir()
        found = await (exports or self.exports(experiment=f"x{into.name}")).fetch(str(into))
        if found is None:
            return None
        files = {name: Path(path).read_bytes() for name, path in found.files.items()}
        return found.number, found.current, files, found.passed_over


@pytest.fixture
def world(tmp_path):
    made = World(tmp_path)
    yield made
    made.threads.close()


def files(**named):
    return [ExportFile(name.replace("_", "-"), data) for name, data in named.items()]


async def test_a_state_goes_there_and_comes_back(world):
    assert await world.back() is None
    exports = world.exports()
    await exports.begin()
    assert await exports.send(files(snap_1=b"one", seg_2=b"two"), b"current") == 1
    assert await world.back() == (1, b"current", {"snap-1": b"one", "seg-2": b"two"}, ())
    assert world.syncer.calls == [("up", "files"), ("up", "current")]
    assert os.listdir(world.root / "exp/.asynctune/export") == ["sent"], "frozen only while it is sent"


async def test_current_comes_last_and_only_what_is_new_is_sent(world):
    exports = world.exports()
    await exports.begin()
    await exports.send(files(snap_1=b"one"), b"c1")
    seen = []
    world.syncer.look = lambda: seen.append(sorted(read_tree(world.remote)))
    await exports.send(files(snap_1=b"one", seg_2=b"two"), b"c2")
    new = [path for path in seen[0] if "0000000002" in path]
    assert new == [f".asynctune/export/0000000002-{NONCE}/files/seg-2"]
    assert world.syncer.sent == ["snap-1", "CURRENT", "seg-2", "CURRENT"]
    world.syncer.look = lambda: None
    await exports.send(files(snap_1=b"one", seg_2=b"two"), b"c3")
    assert world.syncer.sent[4:] == ["CURRENT"]
    assert await world.back() == (3, b"c3", {"snap-1": b"one", "seg-2": b"two"}, ())


async def test_what_no_current_needs_is_deleted_and_the_last_but_one_stays_whole(world):
    exports = world.exports()
    await exports.begin()
    for number in range(1, 6):
        await exports.send(files(**{f"snap_{number}": b"s%d" % number}), b"c%d" % number)
        assert await world.back() == (number, b"c%d" % number, {f"snap-{number}": b"s%d" % number}, ())
    assert world.there == [f"000000000{number}-{NONCE}" for number in (4, 5)]
    newest = world.remote / ".asynctune/export" / world.there[1] / "current/CURRENT"
    newest.write_bytes(newest.read_bytes()[:-1])
    assert await world.back() == (4, b"c4", {"snap-4": b"s4"}, (f"0000000005-{NONCE}",))


async def test_the_last_but_one_keeps_what_only_it_needs(world):
    exports = world.exports()
    await exports.begin()
    await exports.send(files(snap_1=b"one"), b"c1")
    await exports.send(files(snap_1=b"one", seg_2=b"two"), b"c2")
    await exports.send(files(snap_3=b"three"), b"c3")
    newest = world.remote / ".asynctune/export" / world.there[-1] / "current/CURRENT"
    newest.unlink()
    assert (await world.back())[:3] == (2, b"c2", {"snap-1": b"one", "seg-2": b"two"})


@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("fail_at", [1, 2, 3, 4, 5, 6, 7, 9])
async def test_whatever_fails_the_mirror_has_the_state_before_or_this_one(world, fail_at, after):
    exports = world.exports()
    await exports.begin()
    world.syncer.fail_at, world.syncer.fails_after = fail_at, after
    done, failed = 0, 0
    for number in range(1, 5):
        try:
            await exports.send(files(snap_0=b"s", **{f"seg_{number}": b"x%d" % number}), b"c%d" % number)
        except StorageError:
            failed = number
        else:
            done = number
        back = await world.back()
        if back is None:
            assert done == 0
            continue
        assert back[1] in {b"c%d" % done, b"c%d" % failed}
        assert back[2] == {"snap-0": b"s", f"seg-{back[1].decode()[1:]}": b"x%d" % int(back[1][1:])}
        assert number == failed or back[1] == b"c%d" % number
    await exports.send(files(snap_9=b"9"), b"c9")
    await exports.send(files(snap_10=b"10"), b"c10")
    assert len(world.there) == 2, "what failed calls left is deleted"


async def test_the_next_opening_refers_to_nothing_of_this_one(world):
    first = world.exports()
    await first.begin()
    await first.send(files(snap_1=b"one"), b"c1")
    again = world.exports(nonce="b" * 12)
    await again.begin()
    assert await again.send(files(snap_1=b"one", seg_2=b"two"), b"c2") == 2
    assert world.there == [f"0000000001-{NONCE}", "0000000002-bbbbbbbbbbbb"], "the second newest"
    await again.send(files(snap_1=b"one"), b"c3")
    assert world.there == [f"000000000{n}-bbbbbbbbbbbb" for n in (2, 3)]


async def test_another_machine_goes_on_with_the_numbers(world):
    first = world.exports()
    await first.begin()
    for number in range(3):
        await first.send(files(snap_1=b"one"), b"c%d" % number)
    other = world.exports("other", "c" * 12)
    assert (await world.back(other))[0] == 3
    await other.begin()
    assert await other.send(files(snap_4=b"four"), b"c4") == 4
    assert await other.send(files(snap_4=b"four"), b"c5") == 5
    assert [name[-1] for name in world.there] == ["c", "c"]
    third = world.exports("third")
    await third.begin(after=9)
    assert await third.send([], b"c6") == 10


async def test_what_a_killed_process_left_here_is_removed_and_its_number_not_used(world):
    exports = world.exports()
    await exports.begin()
    left = world.root / "exp/.asynctune/export" / f"0000000007-{NONCE}" / "files"
    left.mkdir(parents=True)
    again = world.exports(nonce="b" * 12)
    await again.begin()
    assert not left.exists()
    assert await again.send(files(snap_1=b"one"), b"c") == 8


async def test_before_it_begins_nothing_is_written_in_the_experiment(world):
    stage = world.root / "stage"
    stage.mkdir()
    exports = world.exports(stage_dir=str(stage))
    await exports.send(files(snap_1=b"one"), b"c1")
    assert os.listdir(world.root / "exp/.asynctune") == os.listdir(stage) == []
    await exports.begin()
    await exports.send(files(snap_1=b"one"), b"c2")
    assert os.listdir(world.root / "exp/.asynctune/export") == ["sent"]
    assert (await world.back())[1] == b"c2"


async def test_nothing_there_is_told_from_a_mirror_that_is_away(world):
    """For a syncer that fails in either case."""

    def strict(remote_dir, local_dir, exclude=None):
        return os.path.isdir(remote_dir) and DirectorySyncer.sync_down(world.syncer, remote_dir, local_dir)

    world.syncer.sync_down = strict
    into = world.root / "into"
    into.mkdir()
    exports = world.exports()
    with pytest.raises(StorageError, match="sync_down returned False"):
        await exports.fetch(str(into))
    world.syncer.fail_at = 1
    with pytest.raises(StorageError, match="sync_up returned False"):
        await exports.fetch(str(into), may_make=True)
    assert not world.remote.exists()
    assert await exports.fetch(str(into), may_make=True) is None
    assert sorted(os.listdir(world.root)) == ["exp", "into", "remote"]
    await exports.begin()
    await exports.send(files(snap_1=b"one"), b"c1")
    assert (await world.back())[1] == b"c1"


async def test_files_are_taken_by_another_name_or_copied(world, monkeypatch):
    exports = world.exports()
    await exports.begin()
    source = world.root / "snap"
    source.write_bytes(b"from a file")
    await exports.send([ExportFile("snap-1", str(source))], b"c1")

    def refuse(self, source, target):
        raise OSError(1, "no links here")

    monkeypatch.setattr(LocalFiles, "link", refuse)
    await exports.send([ExportFile("snap-2", str(source))], b"c2")
    assert (await world.back())[2] == {"snap-2": b"from a file"}
    source.unlink()
    with pytest.raises(StorageError, match="snap"):
        await exports.send([ExportFile("snap-3", str(source))], b"c3")
    await exports.send(files(snap_3=b"3"), b"c3")


async def test_damage_is_told_and_never_a_fresh_start(world):
    exports = world.exports()
    await exports.begin()
    await exports.send(files(snap_1=b"one"), b"c1")
    damaged = world.remote / ".asynctune/export" / world.there[0] / "files/snap-1"
    damaged.write_bytes(b"onE")
    with pytest.raises(CorruptStateError, match=r"no state in the mirror of Watched is whole \(0000000001"):
        await world.back()
    damaged.unlink()
    with pytest.raises(CorruptStateError):
        await world.back()


@pytest.mark.parametrize("name", ["", "../x", "a/b", ".hidden", "a\0"], ids=repr)
async def test_names_that_lead_elsewhere_are_refused(world, name):
    exports = world.exports()
    await exports.begin()
    with pytest.raises(ConfigError, match="no file of the state can be called"):
        await exports.send([ExportFile(name, b"")], b"c")


# -- bytes -------------------------------------------------------------------------------------------------

ENTRY = ExportEntry(f"0000000001-{NONCE}", 3, 4)


def test_a_current_can_be_read_back():
    data = encode_current(5, {"snap-1": ENTRY}, b"current")
    assert decode_current(data) == (5, {"snap-1": ENTRY}, b"current")


def test_every_damage_of_a_current_is_found():
    data = encode_current(5, {"snap-1": ENTRY}, b"current")
    for index in range(len(data)):
        for broken in (data[:index], data[:index] + bytes([data[index] ^ 1]) + data[index + 1 :]):
            with pytest.raises(UnpackError):
                decode_current(broken)


@pytest.mark.parametrize(
    "value",
    [
        7,
        {},
        {"v": 1},
        {"v": 1, "number": 1, "files": [], "current": b""},
        {"v": 1, "number": 1, "files": {"x": [1]}, "current": b""},
        {"v": 1, "number": 1, "files": {}, "current": "text"},
        {"v": 1, "number": 1, "files": {"../x": [f"0000000001-{NONCE}", 1, 2]}, "current": b""},
        {"v": 1, "number": 1, "files": {"x": ["../elsewhere", 1, 2]}, "current": b""},
        {"v": 1, "number": 1, "files": {"x": [7, 1, 2]}, "current": b""},
    ],
    ids=repr,
)
def test_a_current_that_says_what_cannot_be_is_none(value):
    with pytest.raises(UnpackError):
        decode_current(_signed(value))


def test_a_newer_form_is_told_by_name():
    with pytest.raises(UnsupportedFormatError, match="has form 2, and this asynctune knows 1"):
        decode_current(_signed({"v": 2}))


def _signed(value):
    payload = pack(value)
    return b"asynctune export\n" + crc32c(payload).to_bytes(4, "little") + payload
