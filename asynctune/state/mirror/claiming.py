"""Owns the claim of a mirror: waiting until its last owner is quiet, and the swap that makes it ours."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Final

from asynctune.clock import Clock
from asynctune.errors import AsynctuneError, ConfigError, ExperimentLockedError, StorageError
from asynctune.state.epochs import Claim, is_alive, new_claim
from asynctune.state.lineage import extend_history
from asynctune.state.mirror.current import Current, same_owner
from asynctune.state.mirror.named import Named, Register
from asynctune.state.mirror.objects import in_thread
from asynctune.state.mirror.reading import Mirrored, ObjectCache, read_mirror
from asynctune.state.mirror.register import open_register
from asynctune.state.mirror.relations import Position, Relation, common_seq, relate
from asynctune.state.segments import History
from asynctune.storage.base import ObjectStorage

__all__ = ["Claimed", "await_quiet", "claim_mirror", "claimed_by", "give_up", "who"]

_TRIES: Final = 3
_PAUSE_S: Final = 1.0
_TAKE_BACK_S: Final = 2.0
_LOOKS: Final = 6
_MAX_LOOK_S: Final = 5.0


@dataclass(slots=True)
class Claimed:
    """A mirror that is ours.

    Attributes:
        experiment_id: Of the state; a new one where nothing was.
        claim: Number and nonce; the local epoch is claimed with the very same (`claim_epoch(given=claim)`).
        history: For the local journal: of the copy that goes on, with this opening's entry last.
        relation: How the local copy stood to the bucket's. With `"bucket_ahead"` and `"fork"` the bucket's goes on.
        set_aside: How many local commits the bucket does not have, with `"fork"`; else 0.
        mirrored: The bucket's state, where it goes on.
        named: CURRENT after the claim.
        register: How it is replaced.
        closed_before: Whether the last owner had ended in order; true where there was none.
    """

    experiment_id: str
    claim: Claim
    history: History
    relation: Relation
    set_aside: int
    mirrored: Mirrored | None
    named: Named
    register: Register
    closed_before: bool


async def claim_mirror(
    storage: ObjectStorage,
    local: Position | None,
    *,
    clock: Clock,
    node_ip: str,
    at_least: int = 1,
    experiment_id: str | None = None,
    quiet_s: float = 30.0,
    waiting: Callable[[str], object] | None = None,
    is_dead: Callable[[Claim], bool] | None = None,
    check: Callable[[Relation, Current | None], object] | None = None,
    cache: ObjectCache | None = None,
    rows_after: Callable[[dict[str, bytes], Current], int] | None = None,
) -> Claimed:
    """Make the mirror ours, with an epoch above those of both copies. What it names stays as it is.

    Args:
        storage: At the experiment's place.
        local: Where the local copy stands; `None`: there is none.
        clock: Time.
        node_ip: This host's address.
        at_least: A number that the epoch must not be below: one above the highest local claim.
        experiment_id: For a new experiment; `None`: one is made.
        quiet_s: How long CURRENT must not have changed, unless its owner closed it or is dead.
        waiting: Told once, in a sentence, that this is waited for.
        is_dead: Whether the owner's process is known to be dead; called in a thread. `None`: by `epochs.is_alive`.
        check: Called with the relation and what CURRENT says (`None`: no mirror) before anything is written; what it
            raises ends the claim.
        cache: For reading the bucket's state.
        rows_after: Likewise, see `read_mirror`.

    Raises:
        ExperimentLockedError: The owner lives; or another opening claimed it in the same moment.
        ConfigError: The bucket holds another experiment.
        CorruptStateError, UnsupportedFormatError: What it holds cannot be read. Nothing was claimed.
        StorageError: The storage refused.
    """
    here = local or Position()
    register = await open_register(storage, writing=True, clock=clock)
    named = await register.read()
    while True:
        relation = _relation(here, named, storage)
        if check is not None:
            check(relation, None if named is None else named.current)
        if named is None:
            break
        quiet = await await_quiet(storage, named, register, clock, quiet_s, waiting, is_dead)
        if quiet is named:
            break
        # its owner has closed it meanwhile: what it says is another thing
        named = quiet
    mirrored = None
    if named is not None and relation in {"bucket_ahead", "fork"}:
        mirrored = await read_mirror(storage, clock=clock, cache=cache, rows_after=rows_after, named=named)
        if mirrored is None or mirrored.named.current.swap_nonce != named.current.swap_nonce:
            raise _locked(storage, named.current.claim, "it was replaced while it was read")
    epoch = max(at_least, here.epoch + 1, 1 if named is None else named.current.claim.epoch + 1)
    if named is not None:
        epoch = max(epoch, named.current.position.epoch + 1)
    claim = await in_thread(new_claim, epoch, clock)
    current = claimed_by(named, claim, node_ip, here.experiment_id or experiment_id or secrets.token_hex(8))
    try:
        answer = await _swap(register, current, named, clock)
    except asyncio.CancelledError:
        await _take_back(register, current, clock)
        raise
    if answer.current.swap_nonce != current.swap_nonce:
        raise _locked(storage, answer.current.claim, "it was replaced in the same moment")
    bucket = current.position if named is None else named.current.position
    history = here.history if relation in {"same", "local_ahead"} else bucket.history
    seq = here.seq if relation in {"same", "local_ahead"} else bucket.seq
    return Claimed(
        experiment_id=current.experiment_id,
        claim=claim,
        history=extend_history(history, claim.epoch, claim.nonce, seq),
        relation=relation,
        set_aside=here.seq - common_seq(here, bucket) if relation == "fork" else 0,
        mirrored=mirrored,
        named=answer,
        register=register,
        closed_before=named is None or named.current.closed,
    )


def _relation(here: Position, named: Named | None, storage: ObjectStorage) -> Relation:
    if named is None:
        return "local_ahead" if here.seq > 0 else "same"
    relation = relate(here, named.current.position)
    if relation == "foreign":
        # Even if nothing was saved there yet: it may be just beginning, on a machine that has nothing to say.
        empty = ""
        if named.current.seq == 0:
            empty = (
                f". Nothing was ever saved in it: if nobody is at work on it, delete {storage.location}/{named.key}, "
                "and the place is free"
            )
        raise ConfigError(
            f"{storage.location} holds experiment {named.current.experiment_id}, and the local directory holds "
            f"experiment {here.experiment_id}; choose another upload_dir or another name. Nothing was changed{empty}"
        )
    return relation


def claimed_by(named: Named | None, claim: Claim, node_ip: str, experiment_id: str) -> Current:
    """What CURRENT says after the claim: all that it said before, with another owner."""
    if named is None:
        fresh = Current(experiment_id=experiment_id, claim=claim, node_ip=node_ip, swap=0)
        return fresh.next(history=extend_history([], claim.epoch, claim.nonce, 0))
    before = named.current
    history = extend_history(before.history, claim.epoch, claim.nonce, before.seq)
    return before.next(claim=claim, node_ip=node_ip, history=history, closed=False)


async def _swap(register: Register, current: Current, named: Named | None, clock: Clock) -> Named:
    """Swap; a reply that stays unsettled is tried again with the very same bytes, which settles it."""
    for attempt in range(_TRIES):
        try:
            return await register.swap(current, named)
        except StorageError as error:
            if not error.retryable or attempt == _TRIES - 1:
                raise
        await clock.sleep(_PAUSE_S)
    raise AssertionError


async def _take_back(register: Register, current: Current, clock: Clock) -> None:
    """A cancelled swap may have been made all the same: the mirror is marked as closed then.

    Where the storage does not say so soon, the next opening waits for quiet, as after a kill.
    """
    with contextlib.suppress(TimeoutError, AsynctuneError):
        async with clock.timeout(_TAKE_BACK_S):
            found = await register.read()
            if found is not None and found.current.swap_nonce == current.swap_nonce:
                await register.swap(current.next(closed=True), found)


async def give_up(claimed: Claimed) -> None:
    """Mark the mirror as closed, so that the next opening needs not wait: this one failed after the claim.

    Raises:
        StorageError: The storage refused.
    """
    named = claimed.named
    for _ in range(_TRIES):
        content = named.current.next(closed=True)
        named = await claimed.register.swap(content, named)
        # it may have gone further than the claim; and whoever owns it now is none of our business
        if named.current.closed or not same_owner(named.current.claim, claimed.claim):
            return


# -- waiting for quiet -----------------------------------------------------------------------------------------


async def await_quiet(
    storage: ObjectStorage,
    named: Named,
    register: Register,
    clock: Clock,
    quiet_s: float,
    waiting: Callable[[str], object] | None,
    is_dead: Callable[[Claim], bool] | None,
) -> Named:
    """Return when the owner has been quiet for long enough: `named`, or what the owner put when it closed.

    Raises:
        ExperimentLockedError: The owner lives.
        StorageError: The storage refused, or CURRENT is not there any more.
    """
    current = named.current
    if current.closed or await in_thread(is_dead or _is_dead, current.claim):
        return named
    wait_s = quiet_s
    if named.modified_at > 0:
        # by the storage's own clock, so that ours may be wrong
        age_s = clock.time() + register.clock_offset_s - named.modified_at
        wait_s = quiet_s - min(max(0.0, age_s), quiet_s)
    ends = clock.monotonic() + wait_s
    told = False
    while (left_s := ends - clock.monotonic()) > 0:
        if not told and waiting is not None:
            told = True
            waiting(
                f"the mirror at {storage.location} was in use by {who(current.claim)} a moment ago; waiting "
                f"{wait_s:.0f} s for quiet"
            )
        await clock.sleep(min(left_s, max(quiet_s / _LOOKS, 0.0), _MAX_LOOK_S))
        found = await register.read()
        if found is None:
            raise StorageError(
                f"{storage.location}/{named.key} has vanished while it was waited for: somebody has removed the mirror "
                "of this experiment",
                operation="read",
                key=named.key,
                hint="nothing was changed; open the experiment again from a directory that has it, and the mirror is "
                "made anew",
            )
        if found.current.swap_nonce != current.swap_nonce:
            if found.current.closed:
                return found
            raise _locked(storage, found.current.claim, "it changes")
    return named


def _is_dead(claim: Claim) -> bool:
    return is_alive(claim) is False


def who(claim: Claim) -> str:
    """An owner, for people."""
    return f"pid {claim.pid} on {claim.hostname}"


def _locked(storage: ObjectStorage, claim: Claim, why: str) -> ExperimentLockedError:
    since = datetime.fromtimestamp(claim.opened_at, tz=UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    return ExperimentLockedError(
        f"the experiment's mirror at {storage.location} is open for writing by {who(claim)} since {since} ({why}); "
        'wait for it to end (or end it), or open the experiment with mode="read"',
        pid=claim.pid,
        hostname=claim.hostname,
        since=claim.opened_at,
    )
