"""What a directory is taken for."""

from __future__ import annotations

import pytest

from asynctune.files import LocalFiles
from asynctune.store.finding import is_copy


class Late(LocalFiles):
    """A network filesystem that another host has just replaced a file on: its name is there, and nothing behind it."""

    def exists(self, path: str) -> bool:
        return not path.endswith("CURRENT") and super().exists(path)


@pytest.mark.parametrize("files", [LocalFiles(), Late()], ids=["at once", "late"])
def test_a_copy_is_known_by_its_register(tmp_path, files):
    assert not is_copy(str(tmp_path), files)
    (tmp_path / ".asynctune").mkdir()
    assert not is_copy(str(tmp_path), files)
    (tmp_path / ".asynctune" / "CURRENT").touch()
    assert is_copy(str(tmp_path), files)
