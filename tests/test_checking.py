"""What cannot be a searcher, a scheduler or a callback is refused where it is given."""

from __future__ import annotations

import pytest

from asynctune.config import RunConfig, TuneConfig
from asynctune.errors import ConfigError


class Idle:
    """Has every method that is called on the loop, and does nothing."""

    def suggest(self, trial_id): ...
    def on_trial_result(self, trial_id, result): ...
    def on_trial_complete(self, trial_id, result=None, error=False): ...
    def on_trial_add(self, trial_id, config): ...
    def on_trial_rewind(self, trial_id, iteration): ...
    def add_past_trial(self, trial, rows, *, ended, failed): ...
    def set_search_properties(self, metric, mode, space): ...
    def choose_trial_to_run(self, trial_ids): ...
    def get_state(self): ...
    def set_state(self, state): ...
    def state_saved(self): ...


@pytest.mark.parametrize(
    ("name", "methods"),
    [
        (
            "search_alg",
            {name for name in vars(Idle) if not name.startswith("_")} - {"choose_trial_to_run"},
        ),
        (
            "scheduler",
            {
                *("on_trial_result", "on_trial_complete", "on_trial_rewind", "choose_trial_to_run"),
                *("get_state", "set_state", "state_saved"),
            },
        ),
        ("callback", {"get_state", "set_state"}),
    ],
    ids=["searcher", "scheduler", "callback"],
)
def test_what_is_called_on_the_loop_is_no_coroutine(name, methods):
    def given(value):
        return RunConfig(callbacks=[value]) if name == "callback" else TuneConfig(**{name: value})

    async def forgotten(self, *args): ...

    async def endless(self, *args):
        yield 1

    for method in vars(Idle):
        if method.startswith("_"):
            continue
        for function in (forgotten, endless):
            made = type("Theirs", (Idle,), {method: function})()
            if method in methods:
                with pytest.raises(
                    ConfigError, match=rf"{method}\(\) of the {name} Theirs must be a plain method"
                ):
                    given(made)
            else:
                given(made)
    with pytest.raises(ConfigError, match=rf"{name} must be an object, not the class Idle; write Idle\("):
        given(Idle)
