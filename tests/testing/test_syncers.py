"""The suite for syncers: right ones pass it, wrong ones do not."""

from __future__ import annotations

import asyncio
import os
import shlex
import shutil
import subprocess
import sys
from typing import ClassVar

import pytest
from _pytest.outcomes import Failed

from asynctune import CommandSyncer
from asynctune.checkpoints.syncer_calls import SyncerCalls
from asynctune.clock import SystemClock
from asynctune.errors import StorageError
from asynctune.protocols import Syncer
from asynctune.testing import DirectorySyncer, SyncerTests

# What `cp` alone cannot do: leave files out, and make the directories that the target lies in.
COPY = """
import sys
from asynctune.testing.directory_syncer import DirectorySyncer
*options, source, target = sys.argv[1:]
DirectorySyncer().sync_up(source, target, [each.removeprefix("--exclude=") for each in options])
"""


MAKE_AND_COPY = """
import os, subprocess, sys
os.makedirs(sys.argv[2], exist_ok=True)
sys.exit(subprocess.call(["cp", "-a", "--no-target-directory", *sys.argv[1:]]))
"""


class TestDirectorySyncer(SyncerTests):
    @pytest.fixture
    def syncer(self):
        return DirectorySyncer()

    @pytest.fixture
    def remote(self, tmp_path):
        return str(tmp_path / "remote")

    def sent(self, syncer):
        return list(syncer.sent)


class AsyncSyncer:
    """The same without a thread of asynctune's."""

    def __init__(self):
        self.inner = DirectorySyncer()

    async def sync_up(self, local_dir, remote_dir, exclude=None):
        return await asyncio.to_thread(self.inner.sync_up, local_dir, remote_dir, exclude)

    async def sync_down(self, remote_dir, local_dir, exclude=None):
        return await asyncio.to_thread(self.inner.sync_down, remote_dir, local_dir, exclude)

    async def delete(self, remote_dir):
        return await asyncio.to_thread(self.inner.delete, remote_dir)


class TestAsyncSyncer(TestDirectorySyncer):
    @pytest.fixture
    def syncer(self):
        return AsyncSyncer()

    def sent(self, syncer):
        return list(syncer.inner.sent)


class TestCommands(SyncerTests):
    """A program in the way of rsync."""

    @pytest.fixture
    def syncer(self, tmp_path):
        (tmp_path / "copy.py").write_text(COPY)
        command = f"{shlex.quote(sys.executable)} {shlex.quote(str(tmp_path / 'copy.py'))}"
        return CommandSyncer(
            f"{command} {{options}} {{source}} {{target}}",
            f"{command} {{options}} {{source}} {{target}}",
            "rm -rf {target}",
            exclude_template="--exclude={pattern}",
        )

    @pytest.fixture
    def remote(self, tmp_path):
        return str(tmp_path / "remote")


@pytest.mark.skipif(not shutil.which("cp") or sys.platform != "linux", reason="needs cp of GNU")
class TestCp(SyncerTests):
    """The plainest of commands."""

    excludes: ClassVar = False
    removes: ClassVar = False

    @pytest.fixture
    def syncer(self):
        up = f"{shlex.quote(sys.executable)} -c {shlex.quote(MAKE_AND_COPY)} {{source}} {{target}}"
        return CommandSyncer(up, "cp -a --no-target-directory {source} {target}", "rm -rf {target}")

    @pytest.fixture
    def remote(self, tmp_path):
        return str(tmp_path / "remote")


# -- wrong ones --------------------------------------------------------------------------------------------


class Flat(DirectorySyncer):
    """Copies no directories."""

    def sync_up(self, local_dir, remote_dir, exclude=None):
        return super().sync_up(local_dir, remote_dir, [*(exclude or ()), "*/*"])


class Nested(DirectorySyncer):
    """Copies into a directory of the source's name, as cp does where the target is there."""

    def sync_up(self, local_dir, remote_dir, exclude=None):
        place = (
            os.path.join(remote_dir, os.path.basename(local_dir)) if os.path.isdir(remote_dir) else remote_dir
        )
        return super().sync_up(local_dir, place, exclude)


class Deaf(DirectorySyncer):
    """Leaves nothing out."""

    def sync_up(self, local_dir, remote_dir, exclude=None):
        return super().sync_up(local_dir, remote_dir)

    def sync_down(self, remote_dir, local_dir, exclude=None):
        return super().sync_down(remote_dir, local_dir)


class Forgetful(DirectorySyncer):
    """Removes nothing, and sends everything again."""

    def sync_up(self, local_dir, remote_dir, exclude=None):
        shutil.copytree(local_dir, remote_dir, dirs_exist_ok=True)
        self.sent += [
            os.path.relpath(os.path.join(root, name), local_dir)
            for root, _, names in os.walk(local_dir)
            for name in names
        ]


class Greedy(DirectorySyncer):
    """Deletes whatever begins with the name."""

    def delete(self, remote_dir):
        parent = os.path.dirname(remote_dir)
        for name in os.listdir(parent):
            if name.startswith(os.path.basename(remote_dir)):
                shutil.rmtree(os.path.join(parent, name))


class Strict(DirectorySyncer):
    """Fails where there is nothing to delete."""

    def delete(self, remote_dir):
        shutil.rmtree(remote_dir)


class Silent(DirectorySyncer):
    """Tells of no failure."""

    def sync_up(self, local_dir, remote_dir, exclude=None):
        return not os.path.isdir(local_dir) or super().sync_up(local_dir, remote_dir, exclude)


class Shell:
    """Lets a shell read the names."""

    def sync_up(self, local_dir, remote_dir, exclude=None):
        os.makedirs(remote_dir, exist_ok=True)
        command = f"cp -a {local_dir}/. {remote_dir}"
        return subprocess.run(command, shell=True, capture_output=True, check=False).returncode == 0

    def sync_down(self, remote_dir, local_dir, exclude=None):
        return self.sync_up(remote_dir, local_dir)

    def delete(self, remote_dir):
        return True


@pytest.mark.parametrize(
    ("bad", "test"),
    [
        (Flat, "test_a_tree_comes_back_as_it_was"),
        (Nested, "test_what_has_changed_is_sent_again"),
        (Deaf, "test_what_is_excluded_stays_out_on_the_way_up"),
        (Deaf, "test_what_is_excluded_stays_out_on_the_way_down"),
        (Forgetful, "test_what_was_removed_is_removed"),
        (Forgetful, "test_what_has_not_changed_is_not_sent_again"),
        (Greedy, "test_what_was_deleted_is_gone_and_nothing_else"),
        (Strict, "test_what_is_not_there_can_be_deleted"),
        (Silent, "test_a_failure_is_told"),
        (Shell, "test_a_directory_whose_name_is_odd"),
    ],
    ids=lambda each: each.__name__ if isinstance(each, type) else each.removeprefix("test_"),
)
async def test_a_bad_syncer_is_found_out(tmp_path, bad, test):
    class Suite(SyncerTests):
        def sent(self, syncer):
            return list(syncer.sent)

    syncer = bad()
    assert isinstance(syncer, Syncer)
    arguments = [SyncerCalls(syncer, timeout_s=60, clock=SystemClock()), str(tmp_path / "remote"), tmp_path]
    if "not_changed" in test:
        arguments.insert(0, syncer)
    with pytest.raises((AssertionError, StorageError, Failed)):
        await getattr(Suite(), test)(*arguments)


async def test_half_a_syncer_is_found_out():
    with pytest.raises(AssertionError):
        await SyncerTests().test_it_has_the_methods_of_a_syncer(object())  # type: ignore[arg-type]
