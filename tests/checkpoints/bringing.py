"""Workers that bring checkpoints, as runners on other machines have them: home to this disk, or into the bucket."""

from __future__ import annotations

import asyncio
import dataclasses
import inspect
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from asynctune.checkpoints.arriving import ArrivalPlace, ArrivingCheckpoint, InBucket
from asynctune.checkpoints.staging import StagedCheckpoint, stage_for_adoption
from asynctune.storage.base import ObjectStorage
from asynctune.trial import MANIFEST_FILE
from tests.checkpoints.fakes import tree

SMALL = {"model.bin": b"weights" * 9, "a/deep.txt": b"deep", "empty": b""}


class Worker:
    """Brings one checkpoint.

    Args:
        directory: Of its machine.
        content: The checkpoint's files.
        storage: The bucket to bring it to; `None`: it brings it home.
        experiment: Home; by default `exp` beside its directory.
        late: The trial does not wait for it.

    Attributes:
        asked: Set when it is asked to; `places` says for where.
        may_go: Cleared: it takes its time.
        ended: How its `bring` has ended.
        error: Raised instead.
        answer: Returned instead.
        make: What brings it, in the end; `made`.
    """

    def __init__(
        self,
        directory: Path,
        content: Mapping[str, bytes] = SMALL,
        *,
        storage: ObjectStorage | None = None,
        experiment: Path | None = None,
        late: bool = False,
    ) -> None:
        self._directory = directory
        self._content = content
        self._storage = storage
        self._experiment = directory.parent / "exp" if experiment is None else experiment
        self.places: list[ArrivalPlace] = []
        self.asked = asyncio.Event()
        self.may_go = asyncio.Event()
        self.may_go.set()
        self.ended: BaseException | str | None = "not"
        self.error: BaseException | None = None
        self.answer: object = ...
        self.make: Callable[[ArrivalPlace], Awaitable[Any]] = self.made
        files = () if storage is None else tuple(content)
        self.checkpoint = ArrivingCheckpoint(bring=self._bring, late=late, files=files)

    async def _bring(self, place: ArrivalPlace) -> StagedCheckpoint | InBucket | None:
        self.places.append(place)
        self.asked.set()
        try:
            await self.may_go.wait()
            if self.error is not None:
                raise self.error
            if self.answer is not ...:
                return self.answer  # type: ignore[return-value]
            made = await self.make(place)
        except BaseException as error:
            self.ended = error
            raise
        self.ended = None
        return made

    async def made(self, place: ArrivalPlace) -> StagedCheckpoint | InBucket:
        """Bring it."""
        await asyncio.to_thread(tree, self._directory / "made", self._content)
        home = self._directory / "staged"
        if self._storage is None:
            home = self._experiment / place.directory.partition("/")[0]
        await asyncio.to_thread(home.mkdir, parents=True, exist_ok=True)
        staged = await stage_for_adoption(self._directory / "made", home)
        if self._storage is None:
            return staged
        return InBucket(await put(self._storage, staged, place))

    def then(self, act: Callable[[ArrivalPlace], object]) -> None:
        """Something happens when it is there, before anybody is told."""

        async def make(place: ArrivalPlace) -> Any:
            came = await self.made(place)
            if inspect.isawaitable(acting := act(place)):
                await acting
            return came

        self.make = make


async def put(storage: ObjectStorage, staged: StagedCheckpoint, place: ArrivalPlace) -> bytes:
    """Put a staged tree where the commit wants it, the manifest last; the manifest."""
    for file in staged.manifest.files:
        data = await asyncio.to_thread(Path(staged.path, file.path).read_bytes)
        await storage.put(f"{place.directory}/{file.path}", data)
    encoded = staged.manifest.named(
        trial_id=place.trial_id, step=place.step, epoch=place.epoch, attempt=place.attempt
    ).encode()
    await storage.put(f"{place.directory}/{MANIFEST_FILE}", encoded)
    return encoded


def another(place: ArrivalPlace, **changes: Any) -> ArrivalPlace:
    """The same, but for something."""
    return dataclasses.replace(place, **changes)
