"""Owns `python -m asynctune.demo`: a real tuning run to be killed and started again; offers no API.

`__main__` is the command and what it says, `experiment` the Tuner that is begun or restored, `training` the model
and the trainable.
"""

from __future__ import annotations

__all__: list[str] = []
