"""The store against a plain dict: any sequence of calls, reopened, crashed, fenced, copied at any moment.

The model is what the user was told: the trials, their results, the metadata, the checkpoints. After each commit it is
remembered by its seq, so that what a crash leaves can be compared with every state that existed.
"""

from __future__ import annotations

import asyncio
import copy
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from asynctune.checkpoints.disk import DiskThreads
from asynctune.checkpoints.verify import verify_directory
from asynctune.clock import SystemClock
from asynctune.config import CheckpointConfig
from asynctune.errors import AsynctuneError, CheckpointNotFoundError, FencedError
from asynctune.files import LocalFiles
from asynctune.state.epochs import claim_epoch
from asynctune.store.store import ExperimentStore
from asynctune.trial import ALLOWED_TRANSITIONS, TrialStatus
from tests.blocking import no_blocking_calls
from tests.store.scenes import result_rows

VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False)
    | st.text("abc\0", max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text("xyz", max_size=2), inner, max_size=3)
    ),
    max_leaves=5,
)
CONFIGS = st.dictionaries(st.text("klm", min_size=1, max_size=2), VALUES, max_size=3)
PICK = st.integers(0, 1000)
KEYS = st.sampled_from(["a", "b", "c/d", "é"])


class Model:
    """What the experiment is, in plain values."""

    def __init__(self) -> None:
        self.trials: dict[str, dict[str, Any]] = {}
        self.metadata: dict[str, Any] = {}
        self.searcher: Any = None

    def view(self) -> dict[str, Any]:
        return copy.deepcopy({"trials": self.trials, "metadata": self.metadata})

    def cut(self, trial: dict[str, Any]) -> None:
        """The trial goes on from its latest checkpoint."""
        marks = [mark for _, mark in sorted(trial["checkpoints"].items())]
        keep = marks[-1] if marks else 0
        del trial["rows"][keep:]


def seen(store: ExperimentStore) -> dict[str, Any]:
    """The same view of a real store; how many rows each checkpoint stands at is in its record."""
    trials = {}
    for trial_id in store._records.trial_ids:
        trial = store.get_trial(trial_id)
        marks = {
            checkpoint.step: (store._records.get(f"checkpoint/{trial_id}/{checkpoint.step}") or {})[
                "timeline"
            ]["num_results"]
            for checkpoint in trial.checkpoints
        }
        trials[trial_id] = {
            "config": trial.config,
            "metadata": trial.metadata,
            "status": trial.status,
            "failures": trial.num_failures,
            "results": trial.num_results,
            "last": trial.last_result.get("loss"),
            "iteration": trial.last_result.get("training_iteration", 0),
            "replaced": store._table.replaced_by(trial_id),
            "checkpoints": marks,
        }
    return {"trials": trials, "metadata": store.metadata}


def told(view: dict[str, Any]) -> dict[str, Any]:
    """A model's view in the form of `seen`."""
    trials = {}
    for trial_id, trial in view["trials"].items():
        iteration, loss = trial["rows"][-1] if trial["rows"] else (0, None)
        trials[trial_id] = {
            **{
                key: trial[key]
                for key in ("config", "metadata", "status", "failures", "replaced", "checkpoints")
            },
            "results": len(trial["rows"]),
            "last": loss,
            "iteration": iteration,
        }
    return {"trials": trials, "metadata": view["metadata"]}


class StoreMachine(RuleBasedStateMachine):
    """Drives one experiment; several openings, copies made in the middle of things."""

    @initialize(keep=st.none() | st.integers(1, 3), period=st.sampled_from(["auto", 0, 3600]))
    def begin(self, keep, period):
        self.runner = asyncio.Runner()
        self.patches = pytest.MonkeyPatch()
        self.patches.setattr("asynctune.state.generations._MIN_JOURNAL_BYTES", 3000)
        self.patches.setattr("asynctune.state.journal._FRAME_KEYS", 8)
        self.root = Path(tempfile.mkdtemp(prefix="asynctune-model-"))
        self.location = self.root / "exp"
        self.config = CheckpointConfig(num_to_keep=keep)
        self.period = period
        self.model = Model()
        self.history: dict[int, list[dict[str, Any]]] = {0: [self.model.view()]}
        self.acknowledged = 0
        self.states: list[dict[str, Any]] = [self.model.view()]  # every state the user has made, in order
        self.durable = 0  # index of the last acknowledged one
        self.copies = 0
        self.watch = no_blocking_calls()
        self.watch.__enter__()
        self.store: ExperimentStore = self.run(self.open(self.location))

    # -- what rules share ------------------------------------------------------------------------------

    def run(self, coroutine):
        return self.runner.run(coroutine)

    async def open(self, location, mode="auto"):
        return await ExperimentStore.open(
            location,
            mode,
            checkpoint_config=None if mode == "read" else self.config,
            checkpoint_period=self.period,
        )

    def call(self, function):
        """A plain call, on the loop like in real life."""

        async def on_loop():
            return function()

        return self.run(on_loop())

    def changed(self) -> None:
        self.states.append(self.model.view())

    def pick(self, number: int, *statuses: TrialStatus) -> str | None:
        ids = [
            i
            for i, trial in self.model.trials.items()
            if trial["replaced"] is None and (not statuses or trial["status"] in statuses)
        ]
        return ids[number % len(ids)] if ids else None

    def retired(self, trial: dict[str, Any]) -> None:
        keep = self.config.num_to_keep
        if keep is not None:
            for step in sorted(trial["checkpoints"])[:-keep]:
                del trial["checkpoints"][step]

    # -- calls -----------------------------------------------------------------------------------------

    @rule(config=CONFIGS, metadata=CONFIGS)
    def add_trial(self, config, metadata):
        made = self.call(lambda: self.store.add_trial(config, metadata=metadata))
        assert made.trial_id not in self.model.trials
        self.model.trials[made.trial_id] = {
            "config": copy.deepcopy(config),
            "metadata": copy.deepcopy(metadata),
            "status": TrialStatus.PENDING,
            "failures": 0,
            "rows": [],
            "replaced": None,
            "checkpoints": {},
            "steps": 0,
        }
        self.changed()

    @rule(count=st.integers(9, 30))
    def add_many_metadata(self, count):
        def put():
            for number in range(count):
                self.store.set_metadata(f"many{number}", "x" * number)

        self.call(put)
        for number in range(count):
            self.model.metadata[f"many{number}"] = "x" * number
            self.changed()

    @rule(which=PICK, config=st.none() | CONFIGS, metadata=st.none() | CONFIGS)
    def update_trial(self, which, config, metadata):
        if (trial_id := self.pick(which)) is None:
            return
        self.call(lambda: self.store.update_trial(trial_id, config, metadata))
        trial = self.model.trials[trial_id]
        if config is not None:
            trial["config"] = copy.deepcopy(config)
        trial["metadata"] = {**trial["metadata"], **copy.deepcopy(metadata or {})}
        self.changed()

    @rule(which=PICK, to=st.sampled_from(TrialStatus), failed=st.booleans())
    def set_status(self, which, to, failed):
        target = to
        if (trial_id := self.pick(which)) is None:
            return
        trial = self.model.trials[trial_id]
        present = trial["status"]
        failed = failed and target in {TrialStatus.ERROR, TrialStatus.PENDING}
        allowed = target is present or target in ALLOWED_TRANSITIONS[present]
        try:
            self.call(lambda: self.store.set_status(trial_id, target, error="x" if failed else None))
        except AsynctuneError:
            assert not allowed
            return
        assert allowed
        if target is present:
            return
        trial["failures"] += failed or target is TrialStatus.ERROR
        trial["status"] = target
        if target is TrialStatus.PENDING and present is not TrialStatus.PAUSED:
            self.model.cut(trial)
        self.changed()

    @rule(which=PICK, loss=st.floats(allow_nan=False), ahead=st.integers(0, 3))
    def report(self, which, loss, ahead):
        running = (TrialStatus.PENDING, TrialStatus.RUNNING, TrialStatus.PAUSED)
        if (trial_id := self.pick(which, *running)) is None:
            return
        rows = self.model.trials[trial_id]["rows"]
        iteration = (rows[-1][0] if rows else 0) + 1 + ahead
        self.call(lambda: self.store.report(trial_id, {"loss": loss}, iteration if ahead else None))
        rows.append((iteration, loss))
        self.changed()

    @rule(key=KEYS, value=VALUES)
    def set_metadata(self, key, value):
        self.call(lambda: self.store.set_metadata(key, value))
        self.model.metadata[key] = copy.deepcopy(value)
        self.changed()

    @rule(unfinished=st.booleans(), errored=st.booleans(), restart=st.booleans())
    def requeue(self, unfinished, errored, restart):
        known = set(self.model.trials)
        self.call(lambda: self.store.requeue(unfinished, errored, restart))
        ids = self.call(lambda: list(self.store._records.trial_ids))
        new = iter([i for i in ids if i not in known])
        for trial in list(self.model.trials.values()):
            if trial["replaced"] is not None or trial["status"] is TrialStatus.TERMINATED:
                continue
            if trial["status"] is TrialStatus.ERROR:
                if errored:
                    trial["status"] = TrialStatus.PENDING
                    self.model.cut(trial)
                elif restart:
                    trial["replaced"] = new_id = next(new)
                    self.model.trials[new_id] = {
                        **copy.deepcopy(trial),
                        "status": TrialStatus.PENDING,
                        "failures": 0,
                        "rows": [],
                        "replaced": None,
                        "checkpoints": {},
                        "steps": 0,
                    }
            elif not unfinished:
                trial["status"] = TrialStatus.TERMINATED
            elif trial["status"] is not TrialStatus.PAUSED:
                trial["status"] = TrialStatus.PENDING
                self.model.cut(trial)
        assert next(new, None) is None
        # a call of many records: a commit may be cut between calls, never inside one
        self.changed()

    # -- checkpoints -----------------------------------------------------------------------------------

    @rule(which=PICK, content=st.binary(max_size=20), move=st.booleans(), ahead=st.integers(0, 2))
    def save_checkpoint(self, which, content, move, ahead):
        if (trial_id := self.pick(which)) is None:
            return
        trial = self.model.trials[trial_id]
        directory = Path(tempfile.mkdtemp(dir=self.root))
        (directory / "data").write_bytes(content)
        step = trial["steps"] + 1 + ahead
        saved = self.run(self.store.save_checkpoint(trial_id, directory, step if ahead else None, move=move))
        assert saved.step == step
        assert directory.exists() != move
        trial["steps"] = step
        trial["checkpoints"][step] = len(trial["rows"])
        self.retired(trial)
        self.changed()
        self.committed()
        self.contents[trial_id, step] = content

    @rule(which=PICK, other=PICK)
    def clone_checkpoint(self, which, other):
        sources = [i for i, t in self.model.trials.items() if t["checkpoints"]]
        target = self.pick(other)
        if not sources or target is None:
            return
        source = sources[which % len(sources)]
        newest = max(self.model.trials[source]["checkpoints"])
        made = self.run(self.store.clone_checkpoint(source, to_trial=target))
        trial = self.model.trials[target]
        assert made.step is not None
        trial["steps"] = made.step
        trial["checkpoints"][made.step] = len(trial["rows"])
        self.retired(trial)
        self.changed()
        self.committed()
        self.contents[target, made.step] = self.contents[source, newest]

    @rule(which=PICK)
    def restore_checkpoint(self, which):
        if (trial_id := self.pick(which)) is None:
            return
        steps = self.model.trials[trial_id]["checkpoints"]
        if not steps:
            with pytest.raises(CheckpointNotFoundError):
                self.run(self.store.restore_checkpoint(trial_id))
            return
        restored = self.run(self.store.restore_checkpoint(trial_id))
        assert restored.step == max(steps)
        assert (restored.path / "data").read_bytes() == self.contents[trial_id, restored.step]
        (restored.path / "data").write_bytes(b"scribbled over")

    # -- durability ------------------------------------------------------------------------------------

    def committed(self) -> None:
        """Everything so far was acknowledged."""
        self.durable = len(self.states) - 1

    @rule()
    def flush(self):
        self.run(self.store.flush())
        self.committed()

    @rule()
    def let_time_pass(self):
        self.run(asyncio.sleep(0.002))

    @rule()
    def reopen(self):
        self.run(self.store.aclose())
        self.committed()
        self.store = self.run(self.open(self.location, "resume"))

    @rule(in_the_middle=st.booleans(), turns=st.integers(0, 8))
    def crash(self, in_the_middle, turns):
        """Go on from a copy of the directory as it is on the disk, perhaps with a commit under way."""

        async def copied(target):
            task = asyncio.create_task(self.store.flush()) if in_the_middle else None
            for _ in range(turns):
                await asyncio.sleep(0)
            await asyncio.to_thread(_copy, self.location, target)
            if task is not None:
                await task

        self.copies += 1
        target = self.root / f"copy{self.copies}"
        self.run(copied(target))
        old = self.store
        self.store = self.run(self.open(target, "resume"))
        self.location = target
        self.go_back()
        self.run(old.aclose())

    @rule()
    def fenced(self):
        """Another host claims the experiment: the present opening can do no more, and what it was told stays."""

        async def taken_over():
            await asyncio.to_thread(
                claim_epoch, str(self.location / ".asynctune"), LocalFiles(), SystemClock()
            )
            with pytest.raises(FencedError):
                await self.set_and_flush()
            with pytest.raises(FencedError):
                self.store.set_metadata("too late", 1)
            with pytest.raises(FencedError):
                await self.store.aclose()

        self.run(taken_over())
        self.model.metadata["after the claim"] = 1
        self.changed()
        self.store = self.run(self.open(self.location, "resume"))
        self.go_back()

    async def set_and_flush(self) -> None:
        self.store.set_metadata("after the claim", 1)
        await self.store.flush()

    def go_back(self) -> None:
        """The model becomes what was found, which must be a state that existed, at or after the acknowledged one."""
        found = self.call(lambda: seen(self.store))
        for index in range(len(self.states) - 1, self.durable - 1, -1):
            if told(self.states[index]) == found:
                break
        else:
            raise AssertionError(f"{found} never existed since {told(self.states[self.durable])}")
        self.model.trials = copy.deepcopy(self.states[index]["trials"])
        self.model.metadata = copy.deepcopy(self.states[index]["metadata"])
        self.states = [self.model.view()]
        self.durable = 0

    # -- always ----------------------------------------------------------------------------------------

    @initialize()
    def nothing_saved(self):
        self.contents: dict[tuple[str, int], bytes] = {}

    @invariant()
    def the_store_is_the_model(self):
        if not hasattr(self, "store"):
            return
        assert self.call(lambda: seen(self.store)) == told(self.model.view())
        listed = [i for i, t in self.model.trials.items() if t["replaced"] is None]
        assert self.call(lambda: [trial.trial_id for trial in self.store.trials]) == listed

    @precondition(lambda self: hasattr(self, "store"))
    @rule()
    def a_reader_sees_a_state_that_existed(self):
        async def read():
            await self.store.flush()
            async with await self.open(self.location, "read") as reader:
                return seen(reader)

        found = self.run(read())
        self.committed()
        assert found == told(self.states[self.durable])

    def teardown(self):
        if not hasattr(self, "store"):
            return
        try:
            self.run(self.store.aclose())
            self.store = self.run(self.open(self.location, "read"))
            assert self.call(lambda: seen(self.store)) == told(self.model.view())
            for trial_id, trial in self.model.trials.items():
                rows = [(r["training_iteration"], r["loss"]) for r in result_rows(self.location / trial_id)]
                assert [i for i, _ in rows] == [i for i, _ in trial["rows"]], trial_id
                for checkpoint in self.call(lambda i=trial_id: self.store.checkpoints(i)):
                    assert checkpoint.path is not None
                    content = (checkpoint.path / "data").read_bytes()
                    assert content == self.contents[trial_id, checkpoint.step]
                    self.run(self._verify(checkpoint))
            self.run(self.store.aclose())
        finally:
            self.watch.__exit__(None, None, None)
            self.runner.close()
            self.patches.undo()
            shutil.rmtree(self.root)

    async def _verify(self, checkpoint):
        record = self.store._records.get(f"checkpoint/{checkpoint.trial_id}/{checkpoint.step}")
        threads = DiskThreads()
        report = await verify_directory(
            str(checkpoint.path), (record or {})["sha256"], files=LocalFiles(), threads=threads
        )
        threads.close()
        assert report.intact, str(report)


def _copy(source: Path, target: Path) -> None:
    """As a crash would leave it: files as they are, one after the other; what vanishes meanwhile is gone."""

    def ignore(directory, names):
        return {"staging", "restored"} & set(names)

    for _ in range(20):
        try:
            shutil.copytree(source, target, symlinks=True, ignore=ignore)
            return
        except shutil.Error:
            shutil.rmtree(target)
    raise AssertionError("the directory never stood still")


TestStoreModel = StoreMachine.TestCase
TestStoreModel.settings = settings(max_examples=max(10, settings().max_examples // 4))
TestStoreModel = pytest.mark.timeout(300)(TestStoreModel)
