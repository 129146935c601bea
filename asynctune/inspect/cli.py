"""Owns the command line: its commands, options and their help. What they do is elsewhere."""

from __future__ import annotations

import functools
import shutil
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, TypeVar

import click

from asynctune.inspect import tables
from asynctune.inspect.answers import (
    answer_best,
    answer_checkpoints,
    answer_gc,
    answer_summary,
    answer_trial,
    answer_trials,
    answer_verify,
)
from asynctune.inspect.exits import Exit
from asynctune.inspect.reading import Query, follow_trials
from asynctune.inspect.scan import Order
from asynctune.inspect.screen import Screen
from asynctune.inspect.tables import Layout
from asynctune.store.place import is_uri
from asynctune.trial import TrialStatus

__all__ = ["command_first", "main"]

PROGRAM: Final = "python -m asynctune.inspect"
_SUMMARY_ROWS: Final = 20
_TRIAL_ROWS: Final = 50
_CHECKPOINT_ROWS: Final = 50
_LEAK_ROWS: Final = 50
_LINES_AROUND_TABLE: Final = 20

F = TypeVar("F", bound=Callable[..., Any])


def command_first(args: Sequence[str], commands: Iterable[str]) -> list[str]:
    """`LOCATION COMMAND ...` and `LOCATION ...` in the one order that is parsed, `COMMAND LOCATION ...`."""
    known = {*commands, "--help", "-h"}
    if not args or args[0] in known:
        return list(args)
    if len(args) > 1 and args[1] in known - {"--help", "-h"}:
        return [args[1], args[0], *args[2:]]
    return ["summary", *args]


class _EitherOrder(click.Group):
    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, command_first(args, self.commands))

    def format_usage(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write_usage(ctx.command_path, "LOCATION [COMMAND] [ARGS]... [OPTIONS]")


def _names(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[str, ...] | None:
    names = [name.strip() for value in values for name in value.split(",") if name.strip()]
    return tuple(dict.fromkeys(names)) or None


def _statuses(_: click.Context, __: click.Parameter, values: Sequence[str]) -> tuple[TrialStatus, ...]:
    names = [name.strip().upper() for value in values for name in value.split(",") if name.strip()]
    unknown = [name for name in names if name not in TrialStatus.__members__]
    if unknown:
        raise click.BadParameter(f"{unknown[0]!r} is not one of {', '.join(TrialStatus.__members__)}.")
    return tuple(TrialStatus[name] for name in names)


def _order(_: click.Context, __: click.Parameter, value: str | None) -> Order | None:
    if value is None:
        return None
    name = value.removeprefix("-")
    if not name:
        raise click.BadParameter("name a field, hyperparameter or metric.")
    return Order(name, descending=value.startswith("-"))


def _options(*options: Callable[[F], F]) -> Callable[[F], F]:
    return lambda command: functools.reduce(lambda made, option: option(made), reversed(options), command)


_location = click.argument("location", metavar="LOCATION")
_output = _options(
    click.option("--json", "as_json", is_flag=True, help="Answer with one JSON document (docs/inspect.md)."),
    click.option("--wide", is_flag=True, help="Show every column whole, however wide that gets."),
    click.option("--no-color", is_flag=True, help="No colors and no other escape sequences."),
)
_metric = _options(
    click.option(
        "--metric", metavar="NAME", help="Name the trial whose last value of this is best; outer/inner."
    ),
    click.option("--mode", type=click.Choice(["min", "max"]), help="Which end of the metric is best."),
)
_selection = _options(
    click.option(
        "--status",
        "statuses",
        metavar="STATUS",
        multiple=True,
        callback=_statuses,
        help="Only trials with this.",
    ),
    click.option(
        "--sort", "order", metavar="NAME", callback=_order, help="Sort by a column; -NAME: largest first."
    ),
    click.option("--columns", metavar="NAMES", multiple=True, callback=_names, help="Exactly these columns."),
    click.option("--metrics", metavar="NAMES", multiple=True, callback=_names, help="Which metrics to show."),
    click.option("--limit", type=click.IntRange(0), metavar="N", help="At most N trials; 0: all."),
    click.option("--follow", "-f", is_flag=True, help="Refresh on the terminal until Ctrl-C."),
    click.option(
        "--interval",
        type=click.FloatRange(0.1),
        default=1.0,
        show_default=True,
        metavar="SECONDS",
        help="How often --follow looks.",
    ),
)


@click.group(cls=_EitherOrder, context_settings={"help_option_names": ["-h", "--help"]})
def _inspect() -> None:
    """Shows what is in the experiment at LOCATION, or which experiments are in a directory or bucket of them.

    LOCATION is a directory, or the URI of the copy in a bucket: s3://bucket/prefix/name, gs://bucket/prefix/name.
    It may also come after the command. A directory that is called like a command is written with a path, as in
    ./trials. Reads only, takes no lock, and may run while a driver writes.

    Exit codes: 0 fine, 1 a problem was found, 2 usage, 3 nothing there.
    """


@_inspect.command()
@_location
@_selection
@_metric
@_output
def summary(location: str, **options: Any) -> Exit:
    """The experiment and its trials (what is shown without a command)."""
    return _trials(location, answer_summary, tables.summary_view, _SUMMARY_ROWS, options)


@_inspect.command()
@_location
@_selection
@_metric
@_output
def trials(location: str, **options: Any) -> Exit:
    """The trial table alone.

    Columns: trial, name, status, iteration, results, checkpoint, duration, failures, error, created, started,
    ended, config/NAME for a hyperparameter, and the name of any metric of the last result (outer/inner).
    """
    return _trials(location, answer_trials, tables.trials_view, _TRIAL_ROWS, options)


@_inspect.command()
@_location
@click.argument("trial_id", metavar="TRIAL_ID")
@_output
def trial(location: str, trial_id: str, **options: Any) -> Exit:
    """Everything about one trial, given by its id or its name."""
    return _screen(options, location).answer(answer_trial(location, trial_id))


@_inspect.command()
@_location
@click.argument("trial_id", metavar="[TRIAL_ID]", required=False)
@click.option("--limit", type=click.IntRange(0), metavar="N", help="At most the newest N; 0: all.")
@_output
def checkpoints(location: str, trial_id: str | None, limit: int | None, **options: Any) -> Exit:
    """The checkpoints of a trial, or of all, and whether their files are there."""
    if limit is None:
        limit = 0 if options["as_json"] else _CHECKPOINT_ROWS
    return _screen(options, location).answer(answer_checkpoints(location, trial_id, limit))


@_inspect.command()
@_location
@_metric
@click.option(
    "--limit",
    type=click.IntRange(0),
    default=5,
    show_default=True,
    metavar="N",
    help="Rank N trials; 0: all.",
)
@_output
def best(location: str, metric: str | None, mode: Any, limit: int, **options: Any) -> Exit:
    """The trial with the best last value of a metric, its config and checkpoints, and the next best ones.

    Metric and mode are the experiment's own, where it has some (as a Tuner's has), unless others are given.
    """
    return _screen(options, location).answer(answer_best(location, metric, mode, limit))


@_inspect.command()
@_location
@_output
def verify(location: str, **options: Any) -> Exit:
    """Compare the whole state and every file of every checkpoint with their checksums.

    Of a copy in a bucket every checkpoint is downloaded, a few at a time, and removed at once.
    """
    return _screen(options).answer(answer_verify(location, show_progress=not options["no_color"]))


@_inspect.command()
@_location
@click.option("--limit", type=click.IntRange(0), metavar="N", help="List the largest N; 0: all.")
@_output
def gc(location: str, limit: int | None, **options: Any) -> Exit:
    """List what crashed drivers left in a bucket and nothing needs. Deletes nothing."""
    if limit is None:
        limit = 0 if options["as_json"] else _LEAK_ROWS
    return _screen(options, location).answer(answer_gc(location, limit))


def _trials(
    location: str, answer: Callable[..., Any], view: Callable[..., Any], rows: int, options: dict[str, Any]
) -> Exit:
    screen, limit = _screen(options, location), options["limit"]
    if options["follow"]:
        if options["as_json"] or not sys.stdout.isatty():
            raise click.UsageError(
                "--follow redraws a terminal: not with --json, and not into a pipe or file."
            )
        rows = max(5, shutil.get_terminal_size().lines - _LINES_AROUND_TABLE)
    elif options["as_json"]:
        rows = 0
    query = Query(
        statuses=options["statuses"],
        order=options["order"],
        limit=rows if limit is None else limit,
        names=_named(options),
        metric=options["metric"],
        mode=options["mode"],
    )
    if options["follow"]:
        return screen.follow(follow_trials(location, query, options["interval"]), view)
    return screen.answer(answer(location, query))


def _named(options: dict[str, Any]) -> tuple[str, ...]:
    """Every column that the reader asked for by name."""
    order = options["order"]
    return (*(options["columns"] or ()), *(options["metrics"] or ()), *([order.name] if order else ()))


def _screen(options: dict[str, Any], location: str | None = None) -> Screen:
    order = options.get("order")
    layout = Layout(
        columns=options.get("columns"),
        metrics=options.get("metrics"),
        sort=None if order is None else order.name,
    )
    return Screen(
        as_json=options["as_json"],
        color=not options["no_color"],
        wide=options["wide"],
        layout=layout,
        waits_for=location if is_uri(location) else None,
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        args: Instead of the process's own.

    Returns:
        The exit code; see `exits.Exit`.
    """
    try:
        code = _inspect.main(args, prog_name=PROGRAM, standalone_mode=False)
    except click.ClickException as error:
        error.show()
        return error.exit_code
    except (click.Abort, KeyboardInterrupt):
        return Exit.INTERRUPTED
    return int(code or 0)
