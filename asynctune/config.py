"""Owns what a user may set: the config classes, and every environment variable, read in this one place.

Checks values when they are made, so that a wrong one fails at its line and not hours later. Does no I/O.

==================================== =======================================================================
variable                             meaning
==================================== =======================================================================
`TUNE_GLOBAL_CHECKPOINT_S`           seconds between commits of the experiment state; unset or `auto`: the
                                     5 % rule
==================================== =======================================================================
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from asynctune.errors import ConfigError

__all__ = ["CheckpointConfig", "SyncConfig", "checkpoint_period_s"]

CHECKPOINT_PERIOD_VARIABLE: Final = "TUNE_GLOBAL_CHECKPOINT_S"


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How many checkpoints of each trial are kept, and which.

    Attributes:
        num_to_keep: Keep the best this many of each trial (the newest is always kept too); `None`: all.
        checkpoint_score_attribute: The metric that ranks them, `"a/b"` for nested ones; `None`: the newest rank best.
        checkpoint_score_order: `"max"` or `"min"`: which end of the attribute is best.
        checkpoint_frequency: For class trainables: a checkpoint every so many iterations; 0: never.
        checkpoint_at_end: For class trainables: one more when the trial ends.

    Raises:
        ConfigError: A value that cannot work.
    """

    num_to_keep: int | None = None
    checkpoint_score_attribute: str | None = None
    checkpoint_score_order: Literal["max", "min"] = "max"
    checkpoint_frequency: int = 0
    checkpoint_at_end: bool | None = None

    def __post_init__(self) -> None:
        keep = self.num_to_keep
        if keep is not None and (not isinstance(keep, int) or isinstance(keep, bool) or keep < 1):
            msg = f"num_to_keep must be a whole number from 1, or None to keep all, not {keep!r}"
            raise ConfigError(msg)
        attribute = self.checkpoint_score_attribute
        if attribute is not None and (not isinstance(attribute, str) or not attribute.strip("/")):
            msg = f"checkpoint_score_attribute must name a metric, such as 'loss' or 'eval/acc', not {attribute!r}"
            raise ConfigError(msg)
        if self.checkpoint_score_order not in ("max", "min"):
            msg = f"checkpoint_score_order must be 'max' or 'min', not {self.checkpoint_score_order!r}"
            raise ConfigError(msg)
        if self.checkpoint_at_end not in (None, True, False):
            msg = f"checkpoint_at_end must be True, False or None, not {self.checkpoint_at_end!r}"
            raise ConfigError(msg)
        every = self.checkpoint_frequency
        if not isinstance(every, int) or isinstance(every, bool) or every < 0:
            msg = f"checkpoint_frequency must be a whole number from 0 (never), not {every!r}"
            raise ConfigError(msg)


@dataclass(frozen=True, kw_only=True)
class SyncConfig:
    """Where the experiment is mirrored to.

    Attributes:
        upload_dir: URI or directory that receives a copy; `None`: the local directory is all there is.
    """

    upload_dir: str | None = None

    def __post_init__(self) -> None:
        if self.upload_dir is not None:
            msg = (
                f"upload_dir={self.upload_dir!r}: this release keeps experiments on the local disk only; "
                "leave upload_dir unset"
            )
            raise ConfigError(msg)


def checkpoint_period_s(
    setting: float | str = "auto", environ: Mapping[str, str] | None = None
) -> float | None:
    """The fixed period between commits of the state in seconds, or `None` for the 5 % rule.

    `TUNE_GLOBAL_CHECKPOINT_S` (source of the name and of `auto`: Ray Tune's storage guide) overrides `setting`.

    Args:
        setting: Seconds from 0, or `"auto"`.
        environ: Environment to read instead of the process's own.

    Raises:
        ConfigError: Neither a finite number of seconds from 0 nor `"auto"`; the message names the source.
    """
    text = (os.environ if environ is None else environ).get(CHECKPOINT_PERIOD_VARIABLE)
    source = "checkpoint_period" if text is None else f"the environment variable {CHECKPOINT_PERIOD_VARIABLE}"
    value: float | str = setting if text is None else text.strip()
    if isinstance(value, str) and value.lower() == "auto":
        return None
    try:
        if isinstance(value, bool):
            raise TypeError
        seconds = float(value)
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not (math.isfinite(seconds) and seconds >= 0):
        msg = f"{source} must be a number of seconds from 0, or 'auto', not {value!r}"
        raise ConfigError(msg) from None
    return seconds
