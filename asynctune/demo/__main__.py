"""Owns the command `python -m asynctune.demo`: its arguments, its signals, its exit codes.

Exit codes: 0 the experiment is finished; 1 it could not go on, with one line on standard error that says why;
2 usage; 130 Ctrl-C and 143 SIGTERM, after everything was committed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import logging
import shlex
import signal
import sys

import click

from asynctune.demo.display import Display
from asynctune.demo.experiment import run
from asynctune.demo.scheduler import Plan
from asynctune.errors import AsynctuneError, MissingExtraError

__all__ = ["main"]


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    help=f"""Tune a small neural network on the handwritten digits of scikit-learn, in DIRECTORY.

    {Plan.trials} trials by successive halving, in worker processes, with a checkpoint after each epoch.
    Kill it with SIGKILL at any moment and start it again: it goes on, and says what was kept and what
    was lost.

    DIRECTORY (default: asynctune-demo, here) is made if missing; the one above it has to exist.
    """,
)
@click.argument("directory", default="asynctune-demo")
@click.option("--trials", type=click.IntRange(1, 200), help=f"How many trials [default: {Plan.trials}].")
@click.option(
    "--epochs", type=click.IntRange(1, 1000), help=f"Epochs of the longest trials [default: {Plan.epochs}]."
)
@click.option("--seed", type=int, help=f"Draws other hyperparameters [default: {Plan.seed}].")
@click.option(
    "--workers",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="Worker processes at a time.",
)
def main(directory: str, trials: int | None, epochs: int | None, seed: int | None, workers: int) -> None:
    """Run the demo."""
    options = {"trials": trials, "epochs": epochs, "seed": seed}
    given = {name: value for name, value in options.items() if value is not None}
    with Display() as display:
        # What the library warns about belongs between the lines that are printed, not across them.
        logging.getLogger("asynctune").addHandler(_Log(display))
        code = _run(directory, given, workers, display)
    sys.exit(code)


class _Log(logging.Handler):
    def __init__(self, display: Display) -> None:
        super().__init__(logging.WARNING)
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        self._display.line(f"{record.levelname.lower()}: {record.getMessage()}", style="yellow")


def _run(directory: str, given: dict[str, int], workers: int, display: Display) -> int:
    code = 0
    try:
        for package, module in (("scikit-learn", "sklearn"), ("numpy", "numpy")):
            if importlib.util.find_spec(module) is None:
                raise MissingExtraError("demo", package, "the demo")
        asyncio.run(_interruptible(directory, given, workers, display))
    except* AsynctuneError as errors:
        click.echo(f"asynctune demo: {_first(errors)}", err=True)
        code = 1
    except* KeyboardInterrupt:
        _say_how_to_go_on(display)
        code = 128 + signal.SIGINT
    except* asyncio.CancelledError:
        _say_how_to_go_on(display)
        code = 128 + signal.SIGTERM
    return code


def _first(errors: BaseExceptionGroup[AsynctuneError]) -> BaseException:
    error: BaseException = errors
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error


async def _interruptible(directory: str, given: dict[str, int], workers: int, display: Display) -> None:
    task = asyncio.ensure_future(run(directory, given, workers, display))
    # asyncio.run answers SIGINT in the same way by itself.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    await task


def _say_how_to_go_on(display: Display) -> None:
    command = shlex.join(["python", "-m", "asynctune.demo", *sys.argv[1:]])
    display.line(f"Stopped, and all of it is on disk. To go on: {command}", style="bold")


if __name__ == "__main__":
    main()
