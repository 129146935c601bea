"""A terminal of a chosen size, and what was written to it."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import termios
import threading

__all__ = ["terminal"]


def terminal(columns=80, lines=24):
    """A terminal's end for writing, and a function that gives what was written when that is closed everywhere."""
    leader, follower = pty.openpty()
    fcntl.ioctl(follower, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    parts = []

    def read():
        while True:
            try:
                part = os.read(leader, 65536)
            except OSError:  # the other end is closed
                return
            if not part:
                return
            parts.append(part)

    thread = threading.Thread(target=read)
    thread.start()

    def stop():
        thread.join()
        os.close(leader)
        return b"".join(parts).decode()

    return follower, stop
