"""Owns nothing: starts the command line, also when Ctrl-C comes while it is still being imported."""

from __future__ import annotations

import sys

try:
    from asynctune.inspect.cli import main

    code = main()
except KeyboardInterrupt:
    code = 130
sys.exit(code)
