"""Trials as coroutines on the driver's loop."""

from __future__ import annotations

import pytest

from asynctune import InlineRunner
from asynctune.testing import TrialRunnerTests
from asynctune.trainable import TrainableKind


class TestInlineRunner(TrialRunnerTests):
    kinds = frozenset({TrainableKind.COROUTINE})

    @pytest.fixture
    def make_runner(self):
        return InlineRunner
