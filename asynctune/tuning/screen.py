"""Owns writing progress to a stream: lines, and below them a picture that is drawn again and again.

What is written is told by others. A thread does it, because a terminal that is stopped, or a pipe that nobody reads,
would hold up the event loop.
"""

from __future__ import annotations

import logging
import queue
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Final, TextIO

from rich.console import Console, RenderableType
from rich.live import Live
from rich.text import Text

__all__ = ["Screen"]

logger = logging.getLogger("asynctune")

_DRAW_EVERY_S: Final = 0.25
_LINES_AT_ONCE: Final = 50
"""Between two pictures, however many are waiting."""
_CLOSE_WITHIN_S: Final = 2.0

Draw = Callable[[int, int], RenderableType]


class Screen:
    """Where progress is shown.

    Args:
        stream: A terminal, or anything else that takes text; `None`, or one that is closed: nothing is shown.
        draw: Gives the picture for so many columns and lines; called in another thread. It is only used on a
            terminal.
    """

    def __init__(self, stream: TextIO | None, draw: Draw) -> None:
        self._stream = None if stream is None or stream.closed else stream
        self._draw = draw
        # Not rich's own answer: colors may be forced where a picture cannot be drawn.
        self.is_terminal: Final = (
            self._stream is not None
            and self._stream.isatty()
            and not Console(file=self._stream).is_dumb_terminal
        )
        self._waiting: queue.SimpleQueue[Callable[[], str] | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._is_closed = False

    def open(self) -> None:
        """Begin."""
        if self._stream is None:
            return
        self._thread = threading.Thread(target=self._run, name="asynctune progress", daemon=True)
        self._thread.start()

    def line(self, text: str | Callable[[], str]) -> None:
        """Write a line, soon; a function is called for it in another thread."""
        if self._stream is not None:
            self._waiting.put(text if callable(text) else lambda: text)

    def close(self, lines: Sequence[str] = ()) -> None:
        """Take the picture away, write these lines, and end, soon. Again: does nothing."""
        if self._thread is not None and not self._is_closed:
            self._is_closed = True
            self._waiting.put(None)
            for line in lines:
                self.line(line)
            self._waiting.put(None)

    def add(self, line: str) -> None:
        """After `close`: write one line more, soon."""
        if self._thread is not None and self._is_closed:
            self.line(line)
            self._waiting.put(None)
            self._thread = threading.Thread(
                target=self._run_again, args=(self._thread,), name="asynctune progress", daemon=True
            )
            self._thread.start()

    def wait(self) -> None:
        """After `close` or `add`: return when everything is written, or nobody has read it for two seconds. Blocks."""
        if self._thread is not None:
            self._thread.join(_CLOSE_WITHIN_S)

    # -- in the thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        def show() -> None:
            if self.is_terminal:
                self._show_picture()
            else:
                self._show_lines()
            self._show_lines()  # the last ones

        self._watched(show)

    def _run_again(self, before: threading.Thread) -> None:
        before.join()
        self._watched(self._show_lines)

    def _watched(self, show: Callable[[], None]) -> None:
        try:
            show()
        except (OSError, ValueError):
            logger.debug("nobody reads the progress any more", exc_info=True)
        except Exception:
            logger.exception("the progress cannot be shown; the experiment goes on")

    def _show_lines(self) -> None:
        assert self._stream is not None
        while (line := self._waiting.get()) is not None:
            self._stream.write(line() + "\n")
            self._stream.flush()

    def _show_picture(self) -> None:
        console = Console(file=self._stream, force_terminal=True, force_jupyter=False, highlight=False)
        # What is printed meanwhile goes above the picture, but only if it goes to a terminal, and not to a file.
        live = Live(console=console, auto_refresh=False, transient=True, redirect_stdout=sys.stdout.isatty())
        with live:
            console.show_cursor(True)  # a kill must not leave the terminal without one
            while True:
                live.update(self._draw(console.width, console.height), refresh=True)
                timeout = _DRAW_EVERY_S
                for _ in range(_LINES_AT_ONCE):
                    try:
                        line = self._waiting.get(timeout=timeout)
                    except queue.Empty:
                        break
                    if line is None:
                        return
                    console.print(Text(line()), soft_wrap=True)
                    timeout = 0.0
