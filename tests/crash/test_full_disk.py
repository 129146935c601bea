from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import sys

import pytest

from tests.killing import ROOT


@pytest.mark.timeout(120)
@pytest.mark.skipif(
    not shutil.which("unshare") or os.geteuid() != 0, reason="mounting a small disk takes root"
)
async def test_a_disk_that_is_really_full_is_waited_out(tmp_path):
    disk, work = tmp_path / "disk", tmp_path / "work"
    disk.mkdir()
    work.mkdir()
    process = await asyncio.create_subprocess_exec(
        *("unshare", "--mount", sys.executable, "-m", "tests.crash.full_disk", str(disk)),
        cwd=ROOT,
        env=os.environ | {"WORK": str(work)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    output, errors = await process.communicate()
    if b"cannot mount" in output or b"unshare failed" in errors:
        pytest.skip("this system does not let root mount a tmpfs")
    assert output.strip() == b"fine", errors.decode()
