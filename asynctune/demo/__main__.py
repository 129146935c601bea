"""Owns the command `python -m asynctune.demo`: its arguments, what it says before and after, its exit codes.

Exit codes: 0 the experiment is finished; 1 it could not go on, with one line on standard error that says why;
2 usage; 130 Ctrl-C and 143 SIGTERM, after everything was committed.
"""

from __future__ import annotations

import asyncio
import importlib.util
import os
import shlex
import signal
import sys
import tempfile
from typing import Final

import click

from asynctune.errors import AsynctuneError, MissingExtraError

__all__ = ["main"]

_PACKAGES: Final = {"numpy": "numpy", "sklearn": "scikit-learn", "optuna": "optuna"}

# One process per core; and one thread sums in one order, so that equal trials give equal numbers.
_ONE_THREAD: Final = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    help="""Tune a small neural network on the handwritten digits of scikit-learn, in DIRECTORY.

    Optuna proposes the trials and stops the ones without promise; they train in worker processes, with a
    checkpoint after each epoch. Kill it with SIGKILL at any moment and start it again: it goes on.

    DIRECTORY (default: asynctune-demo, here) is made if it is missing. It may be the URI of a copy: the experiment
    goes on from there, in a directory of its name, here.
    """,
)
@click.argument("directory", default="asynctune-demo")
@click.option(
    "--upload-dir",
    metavar="PLACE",
    help="Keep a copy below PLACE (s3://bucket/prefix, gs://bucket/prefix, a directory), in the name of DIRECTORY, and "
    "go on from that where DIRECTORY is gone. Credentials and endpoint come from the environment.",
)
@click.option(
    "--trials",
    type=click.IntRange(1, 1000),
    help="How many trials [default: 24]; more than before go on with a finished experiment.",
)
@click.option("--epochs", type=click.IntRange(1, 1000), help="Epochs of the longest trials [default: 24].")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), help="Draws other hyperparameters [default: 1].")
@click.option(
    "--workers",
    type=click.IntRange(1, 16),
    default=2,
    show_default=True,
    help="Worker processes at a time.",
)
def main(
    directory: str,
    upload_dir: str | None,
    trials: int | None,
    epochs: int | None,
    seed: int | None,
    workers: int,
) -> None:
    """Run the demo."""
    given = {"trials": trials, "epochs": epochs, "seed": seed}
    try:
        _run(
            directory,
            upload_dir,
            {name: value for name, value in given.items() if value is not None},
            workers,
        )
    except AsynctuneError as error:
        click.echo(f"asynctune demo: {error}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        _say_how_to_go_on()
        sys.exit(128 + signal.SIGINT)
    except SystemExit:  # of SIGTERM
        _say_how_to_go_on()
        raise


def _run(directory: str, upload_dir: str | None, given: dict[str, int], workers: int) -> None:
    for module, package in _PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError("demo", package, "the demo")
    os.environ.update(_ONE_THREAD)
    # Only now: these need the extra.
    from asynctune.demo.experiment import Places, prepare  # noqa: PLC0415
    from asynctune.demo.telling import before_it_runs, best_checkpoint, elsewhere_line, what_came_out  # noqa: PLC0415
    from asynctune.demo.training import METRIC, Digits, DigitsModel  # noqa: PLC0415

    places = Places.of(directory, upload_dir)
    prepared = asyncio.run(prepare(places, given, workers))
    if prepared.is_finished:
        click.echo("This experiment is finished; nothing is left to run.")
        results = prepared.tuner.get_results()
    else:
        for line in before_it_runs(prepared.before, prepared.trials, prepared.found_at, places.copy):
            click.echo(line)
        results = prepared.tuner.run()

    best = results.get_best_result()
    made = best_checkpoint(best, METRIC)
    model = DigitsModel(best.config, Digits.load())
    with tempfile.TemporaryDirectory() as files:
        # as any other program would; it may be in the copy only
        model.load(asyncio.run(best.fetch_checkpoint(files, made)))
    where, arguments = places.shown, [places.shown]
    if prepared.is_finished and prepared.found_at == places.copy is not None:  # nothing was brought here
        where, arguments = places.copy, places.elsewhere
    accuracy, has_copy = model.accuracy("test"), places.copy is not None
    for line in what_came_out(results, best, made, accuracy, where, arguments, has_copy=has_copy):
        click.echo(line)
    if places.copy is not None:
        click.echo(elsewhere_line(places.elsewhere))


def _say_how_to_go_on() -> None:
    command = shlex.join(["python", "-m", "asynctune.demo", *sys.argv[1:]])
    click.echo(f"Stopped, and all of it is on disk. To go on: {command}")


if __name__ == "__main__":
    main()
