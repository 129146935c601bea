"""Owns `python -m asynctune.demo`: a real tuning run to be killed and started again; offers no API.

`__main__` is the command, `driver` the asyncio loop over the store, `scheduler` decides who trains how far,
`training` is the model, `worker` the process that trains, `workers` the driver's end of it, `heartbeat` what
lets the next start say how much work a crash has cost, `display` what is printed.
"""

from __future__ import annotations

__all__: list[str] = []
