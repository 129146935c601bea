from __future__ import annotations

import pytest

from asynctune.checkpoints.lending import TreeSource
from asynctune.checkpoints.trial_walking import own_files
from asynctune.errors import ConfigError, StorageError
from tests.checkpoints.travel import open_below, write_tree


@pytest.fixture
async def source(tmp_path, threads):
    made = TreeSource(write_tree(tmp_path / "lent", {"a": b"0123456789", "b/c": b"x"}), threads=threads)
    yield made
    await made.aclose()


@pytest.mark.parametrize(
    ("op", "arguments"),
    [
        pytest.param("away.list", {"from": 3}, id="beyond-the-list"),
        pytest.param("away.list", {"from": -1}, id="before-the-list"),
        pytest.param("away.list", {}, id="nowhere"),
        pytest.param("away.read", {"pieces": [[2, 0, 1]]}, id="no-such-file"),
        pytest.param("away.read", {"pieces": [[-1, 0, 1]]}, id="negative-file"),
        pytest.param("away.read", {"pieces": [[0, 11, 0]]}, id="behind-its-end"),
        pytest.param("away.read", {"pieces": [[0, 5, 6]]}, id="over-its-end"),
        pytest.param("away.read", {"pieces": [[0, -1, 1]]}, id="before-its-start"),
        pytest.param("away.read", {"pieces": [[0, 0, -1]]}, id="negative-size"),
        pytest.param("away.read", {"pieces": [["a", 0, 1]]}, id="by-name"),
        pytest.param("away.read", {"pieces": [[0, 0, 1]] * 129}, id="too-many"),
        pytest.param("away.read", {"pieces": [[0, 0, 2 << 20]]}, id="too-much"),
        pytest.param("away.delete", {}, id="no-such-operation"),
    ],
)
async def test_only_what_was_listed_is_read(source, op, arguments):
    with pytest.raises(ConfigError, match="before their list"):
        await source.handle("away.read", {"pieces": [[0, 0, 1]]})
    await source.handle("away.list", {"from": 0})
    with pytest.raises(ConfigError):
        await source.handle(op, arguments)
    assert (await source.handle("away.read", {"pieces": [[0, 0, 2]]}))["pieces"][0][1] == b"01"


async def test_what_is_asked_for_is_bounded_whatever_the_sizes_sum_up_to(tmp_path, threads):
    source = TreeSource(write_tree(tmp_path / "lent", {"big": bytes(3 << 20)}), threads=threads)
    await source.handle("away.list", {"from": 0})
    for sizes in ([2 << 20, -(2 << 20)], [(1 << 20) + 1], [1 << 20, 1]):
        with pytest.raises(ConfigError):
            await source.handle("away.read", {"pieces": [[0, 0, size] for size in sizes]})
        assert not open_below(tmp_path), "none of it was read"
    await source.aclose()


async def test_a_file_that_changes_is_an_error(source, tmp_path):
    await source.handle("away.list", {"from": 0})
    (tmp_path / "lent/a").write_bytes(b"shorter")
    with pytest.raises(StorageError, match="changed while it was sent to a node"):
        await source.handle("away.read", {"pieces": [[0, 0, 5]]})
    (tmp_path / "lent/b/c").unlink()
    with pytest.raises(StorageError, match="cannot send a checkpoint to a node"):
        await source.handle("away.read", {"pieces": [[1, 0, 1]]})
    (tmp_path / "lent/b/c").symlink_to("/etc/hostname")
    with pytest.raises(StorageError, match="cannot send a checkpoint to a node"):
        await source.handle("away.read", {"pieces": [[1, 0, 1]]})


async def test_pieces_out_of_order_have_no_checksum_of_the_whole(source):
    await source.handle("away.list", {"from": 0})
    read = (await source.handle("away.read", {"pieces": [[0, 5, 5], [0, 0, 5], [0, 5, 5], [0, 0, 10]]}))[
        "pieces"
    ]
    first, _, last, whole = [each[2] for each in read]
    assert first == -1
    assert last == whole == read[3][0]


async def test_what_is_no_checkpoint_is_not_lent(tmp_path, threads):
    for path in (tmp_path / "nowhere", write_tree(tmp_path / "links", {"f": b""})):
        if path.exists():
            (path / "out").symlink_to("/etc/hostname")
        with pytest.raises(ConfigError):
            await TreeSource(path, threads=threads).handle("away.list", {"from": 0})


async def test_a_closed_one_reads_nothing(source, tmp_path):
    await source.handle("away.list", {"from": 0})
    await source.handle("away.read", {"pieces": [[0, 0, 5]]})
    assert len(open_below(tmp_path)) == 1
    await source.aclose()
    await source.aclose()
    assert not open_below(tmp_path)
    with pytest.raises(StorageError, match="not lent any more"):
        await source.handle("away.list", {"from": 0})


async def test_a_trials_own_file_goes_as_long_as_it_was_and_one_that_is_gone_is_listed_again(
    tmp_path, threads
):
    lent = write_tree(tmp_path / "own", {"a": b"0123456789", "b": b"x", "c": b"y"})
    source = TreeSource(lent, threads=threads, look=own_files)
    await source.handle("away.list", {"from": 0})
    (lent / "a").write_bytes(b"0123456789 and more")
    (lent / "b").unlink()
    (lent / "c").write_bytes(b"")
    assert (await source.handle("away.read", {"pieces": [[0, 0, 10]]}))["pieces"][0][1] == b"0123456789"
    for gone in (1, 2):
        with pytest.raises(StorageError, match="changed while it was sent to a node") as caught:
            await source.handle("away.read", {"pieces": [[gone, 0, 1]]})
        assert caught.value.retryable
    answer = await source.handle("away.list", {"from": 0})
    assert [file[:2] for file in answer["files"]] == [["a", 19], ["c", 0]]
    await source.aclose()
