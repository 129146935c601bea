"""Owns `python -m asynctune.demo`: a real tuning run to be killed and started again; offers no API.

`__main__` is the command, `experiment` opens the store, `driver` is the asyncio loop over it, `scheduler`
decides who trains how far, `training` is the model, `worker` the process that trains, `workers` the driver's end
of it, `heartbeat` and `resumption` say how much work a crash has cost, `display` prints.
"""

from __future__ import annotations

__all__: list[str] = []
