"""Owns what the demo says before and after its Tuner runs, which shows its progress itself. Prints nothing."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Sequence
from typing import Any, Final

from asynctune.trial import Checkpoint, TrialStatus
from asynctune.tuning.result_grid import Result, ResultGrid

__all__ = ["COMMAND", "before_it_runs", "best_checkpoint", "elsewhere_line", "what_came_out"]

COMMAND: Final = "python -m asynctune.demo"
_MORE: Final = 12


def before_it_runs(
    before: Sequence[Result] | None, trials: int, found_at: str | None = None, copy: str | None = None
) -> list[str]:
    """What is going to happen.

    Args:
        before: The trials of an experiment that goes on; `None` for a new one.
        trials: How many there will be.
        found_at: Where that experiment is.
        copy: Where a copy is kept; `None`: nowhere, or where it was kept before.
    """
    if before is None:
        lines = [f"{_plural(trials, 'trial')} of a neural network on the handwritten digits of scikit-learn."]
        if copy is None:
            return [*lines, "Kill this at any moment, by any means, and start it again: it goes on."]
        return [
            *lines,
            f"A copy is kept in {copy}.",
            "Kill this at any moment, by any means, delete its directory, and start it again: it goes on.",
        ]
    ended = [each for each in before if each.status.is_finished]
    epochs = sum(_epoch(each.checkpoint) for each in before)
    kept, of = _plural(epochs, "epoch"), _plural(trials, "trial")
    whence = f"Going on from {found_at}, with" if found_at == copy is not None else "Going on with"
    lines = [f"{whence} {kept} in checkpoints; {len(ended)} of {of} ended before."]
    for each in before:
        if not each.status.is_finished:
            epoch = _epoch(each.checkpoint)
            start = f"from its checkpoint of epoch {epoch}" if epoch else "from the beginning"
            lines.append(f"  {each.trial_id} goes on {start}")
    return lines


def best_checkpoint(best: Result, metric: str) -> Checkpoint:
    """The checkpoint of a trial that was saved with the highest metric, the newest of equal ones."""
    made, _ = max(best.best_checkpoints, key=lambda pair: (pair[1][metric], pair[0].step))
    return made


def what_came_out(
    results: ResultGrid,
    best: Result,
    made: Checkpoint,
    test_accuracy: float,
    directory: str,
    arguments: Sequence[str] = (),
    *,
    has_copy: bool = False,
) -> list[str]:
    """The best trial, what its best checkpoint is worth, and how to look further.

    Args:
        results: Of the whole experiment.
        best: One of them.
        made: Its best checkpoint.
        test_accuracy: Of that, on images that the search has not seen; from 0 to 1.
        directory: Of the experiment, as the user gave it; its copy, where that is all there is.
        arguments: With which the command goes on with it; by default the directory.
        has_copy: Whether there is another place that the experiment would go on from.
    """
    config = ", ".join(
        f"{name}={value:.3g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in best.config.items()
        if name != "seed"  # the same for all
    )
    longest = max(each.metrics.get("training_iteration", 0) for each in results)
    early = sum(_ended_early(each, longest) for each in results)
    where = shlex.quote(directory)
    anew = f"{COMMAND} another-directory" if has_copy else f"rm -r {where}"
    return [
        "",
        f"best: trial {best.trial_id}, accuracy {best.metrics['accuracy']:.4f} on the validation images",
        *textwrap.wrap(config, 80, initial_indent="  ", subsequent_indent="  "),
        f"  its checkpoint of epoch {_epoch(made)}: {test_accuracy:.4f} on test images that the search never saw",
        f"  {early} of {_plural(len(results), 'trial')} {'was' if early == 1 else 'were'} stopped early",
        "",
        f"look closer:  python -m asynctune.inspect {where}",
        f"search on:    {COMMAND} {shlex.join(arguments or [directory])} --trials {len(results) + _MORE}",
        f"start anew:   {anew}",
    ]


def elsewhere_line(arguments: Sequence[str]) -> str:
    """How another machine goes on with the copy.

    Args:
        arguments: The command's there.
    """
    return f"elsewhere:    {COMMAND} {shlex.join(arguments)}"


def _ended_early(result: Result, longest: int) -> bool:
    iteration: Any = result.metrics.get("training_iteration", 0)
    return result.status is TrialStatus.TERMINATED and iteration < longest


def _epoch(made: Checkpoint | None) -> int:
    """The epoch that a checkpoint was saved after; 0 for none."""
    return 0 if made is None else int(made.metrics.get("training_iteration", made.step))


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
