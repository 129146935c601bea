"""The packed list of a checkpoint's files."""

from __future__ import annotations

import pickle

import pytest

from asynctune.checkpoints.sizes import FileSizes
from asynctune.errors import CorruptStateError
from asynctune.packing import pack

SIZES = {"model.pt": 7, "deep/er": 0}


def test_it_is_the_mapping_that_was_packed():
    sizes = FileSizes.of(SIZES)
    assert sizes == SIZES
    assert (sizes["model.pt"], len(sizes), list(sizes), "no" in sizes) == (7, 2, list(SIZES), False)
    assert repr(sizes) == repr(SIZES)
    assert FileSizes.of(sizes) is sizes


def test_it_goes_to_another_process_and_back():
    assert pickle.loads(pickle.dumps(FileSizes.of(SIZES))) == SIZES


@pytest.mark.parametrize("packed", [b"", b"\xc1", pack([1])], ids=["empty", "bad", "list"])
def test_what_is_no_map_is_damage(packed):
    with pytest.raises(CorruptStateError, match="files"):
        len(FileSizes(packed))
