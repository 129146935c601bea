from __future__ import annotations

import errno

import google_crc32c
import pytest

from asynctune.checkpoints.trial_receiving import FileReceiver
from asynctune.errors import ConfigError, StorageError
from asynctune.testing import FaultyFiles
from tests.checkpoints.fakes import read_tree
from tests.checkpoints.travel import left_in, write_tree

OWNED = {"result.json": b"{}", "checkpoint_000001/weights": b"w", "params.json": b"{}"}


@pytest.fixture
async def receiver(tmp_path, threads):
    made = FileReceiver(write_tree(tmp_path / "head", OWNED), threads=threads)
    yield made
    await made.aclose()


def whole(path: str, data: bytes, offset: int = 0, last: bool = True) -> list[object]:
    return [path, 0o644, offset, google_crc32c.value(data), data, last]


def tail(path: str, data: bytes, offset: int = 0) -> list[object]:
    return [path, 0o644, offset, google_crc32c.value(data), data]


@pytest.mark.parametrize(
    "path",
    [
        "result.json",
        "params.json",
        "checkpoint_000001/weights",
        "result.json/x",
        "../out",
        "/tmp/out",
        ".hidden",
        "a/../b",
        "",
    ],
    ids=["result", "params", "checkpoint", "below-result", "up", "absolute", "dot", "up-inside", "empty"],
)
async def test_what_the_store_owns_is_never_touched(tmp_path, receiver, path):
    for op, arguments in (
        ("files.whole", {"pieces": [whole(path, b"x")]}),
        ("files.append", {"pieces": [tail(path, b"x", 2)]}),
        ("files.append", {"pieces": [tail(path, b"x")]}),
        ("files.look", {"paths": [path]}),
    ):
        with pytest.raises(ConfigError, match="cannot be taken from its node"):
            await receiver.handle(op, arguments)
    assert read_tree(tmp_path / "head") == OWNED
    assert [path.name for path in tmp_path.iterdir()] == ["head"]


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        pytest.param("files.look", {}, id="no-paths"),
        pytest.param("files.look", {"paths": [7]}, id="number"),
        pytest.param("files.look", {"paths": ["a"] * 200}, id="too-many"),
        pytest.param("files.whole", {"pieces": [tail("a", b"x")]}, id="short"),
        pytest.param("files.whole", {"pieces": [whole("a", b"x", -1)]}, id="negative"),
        pytest.param("files.append", {"pieces": [tail("a", b"x", 1 << 63)]}, id="far"),
        pytest.param("files.remove", {"paths": []}, id="no-such-operation"),
    ],
)
async def test_calls_that_make_no_sense_are_refused(tmp_path, receiver, op, arguments):
    with pytest.raises(ConfigError):
        await receiver.handle(op, arguments)
    assert read_tree(tmp_path / "head") == OWNED


async def test_a_file_has_its_name_when_it_is_whole(tmp_path, receiver):
    await receiver.handle("files.whole", {"pieces": [whole("d/f", b"old")]})
    await receiver.handle("files.whole", {"pieces": [whole("d/f", b"ne", last=False)]})
    assert (tmp_path / "head/d/f").read_bytes() == b"old"
    for wrong in (whole("d/f", b"w", 3), whole("d/g", b"w", 2), whole("other", b"w", 1)):
        with pytest.raises(StorageError, match="does not follow the one before") as caught:
            await receiver.handle("files.whole", {"pieces": [wrong]})
        assert caught.value.retryable
    await receiver.handle("files.whole", {"pieces": [whole("d/f", b"w", 2)]})
    assert (tmp_path / "head/d/f").read_bytes() == b"new"
    await receiver.handle("files.whole", {"pieces": [whole("half", b"x", last=False)]})
    await receiver.handle("files.whole", {"pieces": [whole("d/h", b"x", last=False)]})
    await receiver.aclose()
    await receiver.aclose()
    assert read_tree(tmp_path / "head") == OWNED | {"d/f": b"new"}
    assert not left_in(tmp_path / "head")
    with pytest.raises(StorageError, match="does not run on this node any more"):
        await receiver.handle("files.look", {"paths": []})


async def test_a_tail_goes_only_where_the_file_ends(tmp_path, receiver):
    async def append(*pieces: list[object]) -> object:
        return (await receiver.handle("files.append", {"pieces": list(pieces)}))["refused"]

    assert await append(tail("logs/a", b"12"), tail("logs/a", b"34", 2)) == []
    assert await append(tail("logs/a", b"x", 3), tail("logs/a", b"x"), tail("b", b"x", 1)) == [
        "logs/a",
        "logs/a",
        "b",
    ]
    assert read_tree(tmp_path / "head") == OWNED | {"logs/a": b"1234"}
    found = (await receiver.handle("files.look", {"paths": ["logs/a", "b", "logs", "logs/a/x"]}))["found"]
    assert found == [[4, google_crc32c.value(b"1234")], [-1, 0], [-1, 0], [-1, 0]]


async def test_links_are_not_followed(tmp_path, receiver):
    out = write_tree(tmp_path / "out", {"f": b"1"})
    (tmp_path / "head/dir").symlink_to(out)
    (tmp_path / "head/f").symlink_to(out / "f")
    for op, pieces in (
        ("files.whole", [whole("dir/g", b"x")]),
        ("files.append", [tail("dir/g", b"x")]),
        ("files.append", [tail("f", b"x", 1)]),
    ):
        [[path, why]] = (await receiver.handle(op, {"pieces": pieces}))["unfit"]
        assert path == pieces[0][0]
        assert ("is no directory here" if path == "dir/g" else "symbolic links") in why
    appended = await receiver.handle("files.append", {"pieces": [tail("dir/f", b"x", 1)]})
    assert appended == {"refused": ["dir/f"], "unfit": []}
    found = await receiver.handle("files.look", {"paths": ["f", "dir/f", "dir/none"]})
    assert found == {"found": [[-1, 0]] * 3}
    await receiver.handle("files.whole", {"pieces": [whole("f", b"x")]})  # in place of the link
    assert (tmp_path / "head/f").read_bytes() == b"x"
    assert read_tree(out) == {"f": b"1"}


async def test_damage_on_the_way_is_refused(tmp_path, receiver):
    for op, piece in (("files.whole", whole("f", b"x")), ("files.append", tail("f", b"x"))):
        piece[4] = b"y"
        with pytest.raises(StorageError, match="damaged on its way"):
            await receiver.handle(op, {"pieces": [piece]})
    assert read_tree(tmp_path / "head") == OWNED


@pytest.mark.parametrize("long", ["l" * 300, "l" * 300 + "/x"], ids=["file", "directory"])
async def test_a_file_that_cannot_be_here_holds_up_no_other(tmp_path, receiver, long):
    answer = await receiver.handle("files.whole", {"pieces": [whole(long, b"x"), whole("z", b"1")]})
    assert [path for path, _ in answer["unfit"]] == [long]
    answer = await receiver.handle("files.append", {"pieces": [tail(long, b"x"), tail("z", b"2", 1)]})
    assert (answer["refused"], [path for path, _ in answer["unfit"]]) == ([], [long])
    assert (tmp_path / "head/z").read_bytes() == b"12"
    looked = await receiver.handle("files.look", {"paths": [long, "z"]})
    assert looked["found"] == [[-1, 0], [2, google_crc32c.value(b"12")]]


async def test_a_disk_that_refuses_is_no_matter_of_one_file(tmp_path, threads):
    files = FaultyFiles()
    receiver = FileReceiver(write_tree(tmp_path / "head", {}), files=files, threads=threads)
    for op, piece in (("files.whole", whole("d/f", b"x")), ("files.append", tail("e/f", b"x"))):
        files.fail(errno.ENOSPC, on="make_plain_dir")
        with pytest.raises(StorageError, match="take a trial's files from its node"):
            await receiver.handle(op, {"pieces": [piece]})
    await receiver.aclose()
