"""Owns what runs first in the namespaces of a test cluster's node: private directories, then Ray, until it is let go.

A line of JSON on standard input says what to do, and its end that whoever started the node has closed it or is dead.
This is process 1 of a PID namespace: all that the node ever started ends with it. Needs the standard library alone.
"""

from __future__ import annotations

import json
import os
import select
import shutil
import signal
import subprocess
import time

EVERY_MS = 200


def main() -> int:
    with open(0, "rb", buffering=0, closefd=False) as orders:
        told = orders.readline()
    if not told:
        return 0
    order = json.loads(told)
    for directory in order["private"]:
        os.makedirs(directory, exist_ok=True)
        subprocess.run(["mount", "-t", "tmpfs", "none", directory], check=True)
    ray = subprocess.Popen(order["command"], stdin=subprocess.DEVNULL)
    let_go = select.poll()
    let_go.register(0, select.POLLIN | select.POLLHUP)
    while not let_go.poll(EVERY_MS):
        # Orphans come to process 1, and stay zombies until it has asked for each.
        while (ended := os.waitpid(-1, os.WNOHANG)) != (0, 0):
            if ended[0] == ray.pid:
                return os.waitstatus_to_exitcode(ended[1]) or 1
    if order["leftover"] is not None:  # whoever would have removed it is dead
        os.kill(-1, signal.SIGKILL)
        tries = 50  # the other nodes may be writing still
        while os.path.exists(order["leftover"]) and (tries := tries - 1):
            shutil.rmtree(order["leftover"], ignore_errors=True)
            time.sleep(0.02)
    return 0


if __name__ == "__main__":
    os._exit(main())
