"""Moves files of many gigabytes to and from a storage that keeps nothing, in a process whose memory is watched."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterable

from tests.lab.registry import Lab, Row, experiment

MOST_BYTES = 200 << 20


@experiment(
    "transfers", "memory and loop lag while one large file is sent and received; it is sparse, or zeros"
)
def transfers(lab: Lab) -> Iterable[Row]:
    sizes = (("send", lab.times(5 << 30, 512 << 20)), ("receive", lab.times(1 << 30, 128 << 20)))
    for what, size_bytes in sizes:
        directory = lab.directory / what
        directory.mkdir()
        command = [sys.executable, "-m", "tests.storage.discarding", what, str(size_bytes), str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        told = json.loads(done.stdout)
        assert told["rss_most"] <= MOST_BYTES, told
        if what == "send":
            assert told["received"] == size_bytes, told
        yield Row(
            f"{what} a file of {size_bytes >> 20:,} MiB",
            1,
            f"{told['rss_most'] >> 20} MiB resident at most ({told['rss_before'] >> 20} before), "
            f"lag p99 {told['lag_p99_ms']:.1f} ms, most {told['lag_most_ms']:.1f} ms, {told['took_s']:.1f} s",
        )
        (directory / "file").unlink()
