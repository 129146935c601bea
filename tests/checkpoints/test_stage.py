"""One checkpoint directory on its way: whatever it is given up at, nothing of it stays and nothing is lost."""

from __future__ import annotations

import errno
import hashlib
import logging
import os
import stat

import pytest

from asynctune.checkpoints.disk import SourceError
from asynctune.checkpoints.manifest import Manifest, ManifestFile
from asynctune.checkpoints.stage import Stage, ensure_directory, look, require_unchanged
from asynctune.checkpoints.tree import scan_tree
from asynctune.errors import ConfigError
from asynctune.files import LocalFiles
from asynctune.trial import DICT_FILE, MANIFEST_FILE
from tests.checkpoints.fakes import TREE, CountingFiles, read_tree, tree

MANIFEST = Manifest(trial_id="t", step=1, epoch=1, attempt=0, files=())
NAMES = ["checkpoint_000001", "checkpoint_000001-1.0"]


class Refusing(LocalFiles):
    """Fails the renames of one directory."""

    def __init__(self, source: object, number: int) -> None:
        self._source = str(source)
        self._number = number

    def rename(self, source: str, target: str) -> None:
        if source == self._source:
            raise OSError(self._number, os.strerror(self._number), source)
        super().rename(source, target)


@pytest.fixture
def source(tmp_path):
    return tree(tmp_path / "source")


@pytest.fixture
def staging(tmp_path):
    return tmp_path / "staging"


@pytest.fixture
def trial(tmp_path):
    return tmp_path / "trial"


def mode_of(path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


def staged(staging, how="copy", files=None) -> Stage:
    return Stage(LocalFiles() if files is None else files, str(staging / "one"), how)


# -- directories -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("private", [False, True])
def test_a_directory_is_made_once_and_its_name_is_durable(tmp_path, private):
    files, path = CountingFiles(), tmp_path / "directory"
    ensure_directory(files, str(path), private=private)
    assert files.calls == ["make_dir" if private else "make_plain_dir", "sync_dir", "sync"]
    assert (mode_of(path) == 0o700) or not private
    ensure_directory(files, str(path), private=private)
    assert len(files.calls) == 3


def test_a_directory_that_somebody_else_makes_meanwhile_will_do(tmp_path):
    files, path = CountingFiles(), tmp_path / "directory"
    files.at[1] = path.mkdir
    ensure_directory(files, str(path))
    assert path.is_dir()
    with pytest.raises(FileNotFoundError):
        ensure_directory(files, str(tmp_path / "no/parents"))


# -- filling -----------------------------------------------------------------------------------------------


def test_a_value_is_written_privately(staging):
    stage = staged(staging)
    stage.make()
    stage.write_value(b"packed")
    written = staging / "one" / DICT_FILE
    assert written.read_bytes() == b"packed"
    assert [mode_of(path) for path in (staging, staging / "one", written)] == [0o700, 0o700, 0o600]


def test_directories_keep_their_bits_but_let_nobody_else_write(staging, source):
    (source / "a").chmod(0o777)
    (source / "a/b").chmod(0o711)
    (source / "hollow").mkdir(mode=0o500)
    source.chmod(0o755)
    found = scan_tree(str(source))
    stage = staged(staging)
    stage.make()
    stage.make_directories(found)
    stage.seal(found)
    modes = {name: mode_of(staging / "one" / name) for name in ("", "a", "a/b", "hollow")}
    assert modes == {"": 0o755, "a": 0o755, "a/b": 0o711, "hollow": 0o700}


def test_the_manifest_lists_files_in_order(staging):
    stage = staged(staging)
    stage.entries = [ManifestFile(name, 1, 0, "0" * 64) for name in ("b", "a/z", "a")]
    stage.empty_directories = ["hollow"]
    manifest = stage.manifest()
    assert [file.path for file in manifest.files] == ["a", "a/z", "b"]
    assert manifest.empty_directories == ("hollow",)
    assert manifest.trial_id is None


# -- taking ------------------------------------------------------------------------------------------------


def test_a_directory_is_taken_by_rename_and_goes_back(staging, source):
    inode = source.stat().st_ino
    stage = staged(staging, "move")
    assert stage.take(scan_tree(str(source)))
    assert not source.exists()
    assert (staging / "one").stat().st_ino == inode
    stage.withdraw()
    assert source.stat().st_ino == inode
    assert read_tree(source) == TREE
    assert not list(staging.iterdir())


@pytest.mark.parametrize("number", [errno.EXDEV, errno.EBUSY, errno.EPERM, errno.EACCES, errno.EINVAL])
def test_a_directory_that_cannot_be_renamed_stands_untouched(staging, source, number):
    stage = staged(staging, "move", Refusing(source, number))
    assert not stage.take(scan_tree(str(source)))
    stage.withdraw()
    assert read_tree(source) == TREE
    assert not list(staging.iterdir())


def test_a_broken_disk_is_no_reason_to_copy(staging, source):
    stage = staged(staging, "move", Refusing(source, errno.EIO))
    with pytest.raises(OSError, match="Input/output"):
        stage.take(scan_tree(str(source)))
    stage.withdraw()
    assert read_tree(source) == TREE


# -- placing -----------------------------------------------------------------------------------------------


def test_a_placed_directory_has_its_manifest_and_the_first_name(staging, trial):
    stage = staged(staging)
    stage.make()
    stage.write_value(b"packed")
    digest = stage.place(MANIFEST, str(trial), NAMES)
    assert stage.path == str(trial / NAMES[0])
    written = (trial / NAMES[0] / MANIFEST_FILE).read_bytes()
    assert Manifest.decode(written) == MANIFEST
    assert hashlib.sha256(written).hexdigest() == digest
    assert not list(staging.iterdir())


@pytest.mark.parametrize("kind", ["empty", "full", "file", "dangling"])
def test_a_name_that_is_there_is_left_alone(staging, trial, kind):
    trial.mkdir()
    taken = trial / NAMES[0]
    if kind == "file":
        taken.write_bytes(b"")
    elif kind == "dangling":
        taken.symlink_to("nowhere")
    else:
        taken.mkdir()
        if kind == "full":
            (taken / "theirs").touch()
    before = taken.lstat()
    stage = staged(staging)
    stage.make()
    stage.place(MANIFEST, str(trial), NAMES)
    assert stage.path == str(trial / NAMES[1])
    assert taken.lstat().st_ino == before.st_ino


def test_without_a_free_name_it_can_still_be_given_up(staging, trial):
    for name in NAMES:
        (trial / name).mkdir(parents=True)
    stage = staged(staging)
    stage.make()
    with pytest.raises(FileExistsError) as refused:
        stage.place(MANIFEST, str(trial), NAMES)
    assert refused.value.filename == str(trial / NAMES[1])
    stage.withdraw()
    assert not list(staging.iterdir())
    assert sorted(each.name for each in trial.iterdir()) == NAMES
    assert not any(list(each.iterdir()) for each in trial.iterdir())


def test_whatever_fails_the_stage_can_be_given_up(tmp_path):
    def fill(stage: Stage, place) -> None:
        stage.make()
        stage.write_value(b"packed")
        stage.seal(scan_tree(stage.path))
        stage.place(MANIFEST, str(place), NAMES)

    counting = CountingFiles()
    fill(staged(tmp_path / "whole", files=counting), tmp_path / "whole-trial")
    assert "sync_dir" in counting.calls
    for number in range(1, len(counting.calls) + 1):
        home, trial = tmp_path / f"staging-{number}", tmp_path / f"trial-{number}"
        failing = CountingFiles(number)
        stage = staged(home, files=failing)
        with pytest.raises(OSError, match="Input/output"):
            fill(stage, trial)
        stage.withdraw()
        assert not list(home.glob("*")), f"{number}: {failing.calls}"
        assert not list(trial.glob("*")), f"{number}: {failing.calls}"


# -- giving up ---------------------------------------------------------------------------------------------


def test_a_stage_without_anything_has_nothing_to_withdraw(staging):
    stage = staged(staging)
    stage.withdraw()
    assert not staging.exists()
    staging.mkdir()
    (staging / "one").mkdir()
    stage.withdraw()
    assert (staging / "one").is_dir()  # it was not this stage that made it


def test_withdrawing_twice_does_no_more_than_once(staging, source):
    stage = staged(staging, "move")
    stage.take(scan_tree(str(source)))
    stage.withdraw()
    (staging / "one").mkdir()
    stage.withdraw()
    assert (staging / "one").is_dir()
    assert read_tree(source) == TREE


def test_a_placed_directory_that_was_taken_goes_back_without_a_manifest(staging, source, trial):
    stage = staged(staging, "move")
    stage.take(scan_tree(str(source)))
    stage.place(MANIFEST, str(trial), NAMES)
    assert (trial / NAMES[0] / MANIFEST_FILE).exists()
    stage.withdraw()
    assert read_tree(source) == TREE
    assert not (source / MANIFEST_FILE).exists()
    assert not list(trial.iterdir())


def test_an_adopted_directory_goes_back_with_its_manifest(staging, source, trial):
    (source / MANIFEST_FILE).write_bytes(MANIFEST.encode())
    stage = staged(staging, "adopt")
    stage.take_adopted(scan_tree(str(source), committed=True))
    assert stage.path == str(source)
    stage.place(MANIFEST, str(trial), NAMES)
    assert not source.exists()
    stage.withdraw()
    assert read_tree(source) == TREE
    assert (source / MANIFEST_FILE).exists()
    assert not list(trial.iterdir())


def test_files_whose_old_place_is_taken_again_are_kept_and_told_of(staging, source, trial, caplog):
    stage = staged(staging, "move")
    stage.take(scan_tree(str(source)))
    stage.place(MANIFEST, str(trial), NAMES)
    source.mkdir()
    (source / "new").touch()
    with caplog.at_level(logging.WARNING, "asynctune"):
        stage.withdraw()
    assert str(staging / "one") in caplog.text
    assert read_tree(source) == {"new": b""}
    assert read_tree(staging / "one") == TREE
    assert not list(trial.iterdir())


# -- looking -----------------------------------------------------------------------------------------------


def test_a_directory_without_any_file_is_refused(tmp_path):
    (tmp_path / "empty/only").mkdir(parents=True)
    with pytest.raises(ConfigError, match="holds no files"):
        look(str(tmp_path / "empty"))
    (tmp_path / "empty" / MANIFEST_FILE).touch()
    with pytest.raises(ConfigError, match="holds no files"):
        look(str(tmp_path / "empty"), committed=True)


def test_what_stayed_as_it_was_is_fine(source):
    require_unchanged(look(str(source)), str(source))


@pytest.mark.parametrize("change", ["write", "add", "remove", "replace", "mkdir", "rmdir"])
def test_a_change_is_found(source, change):
    (source / "hollow").mkdir()
    before = look(str(source))
    model = source / "model.bin"
    info = model.stat()
    if change == "write":
        model.write_bytes(b"longer" + model.read_bytes())
    elif change == "add":
        (source / "b").touch()
    elif change == "remove":
        model.unlink()
    elif change == "replace":
        (source / "new").write_bytes(model.read_bytes())
        os.utime(source / "new", ns=(info.st_atime_ns, info.st_mtime_ns))
        (source / "new").rename(model)
    elif change == "mkdir":
        (source / "another").mkdir()
    else:
        (source / "hollow").rmdir()
    with pytest.raises(SourceError, match="changed while it was being saved") as found:
        require_unchanged(before, str(source))
    changed = {"add": "b", "mkdir": "", "rmdir": ""}.get(change, "model.bin")
    assert found.value.path == (str(source / changed) if changed else str(source))
