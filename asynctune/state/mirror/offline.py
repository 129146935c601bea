"""Owns the claim for an opening that runs already and was opened without the bucket; it is made when that is back."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from asynctune.clock import Clock
from asynctune.errors import ExperimentLockedError, FencedError
from asynctune.state.epochs import Claim
from asynctune.state.mirror.claiming import await_quiet, claimed_by, who
from asynctune.state.mirror.current import same_owner
from asynctune.state.mirror.named import Named, Register
from asynctune.state.mirror.register import open_register
from asynctune.state.mirror.relations import Position, common_seq
from asynctune.state.segments import History
from asynctune.storage.base import ObjectStorage

__all__ = ["Identity", "claim_later"]


@dataclass(frozen=True, slots=True)
class Identity:
    """Who mirrors what: written into every CURRENT.

    Attributes:
        experiment_id: Of the state.
        claim: This opening's, number and nonce.
        history: Of the local journal, with this opening's entry last.
        node_ip: This host's address.
    """

    experiment_id: str
    claim: Claim
    history: History
    node_ip: str


async def claim_later(
    storage: ObjectStorage,
    identity: Identity,
    seq: int,
    crc_of: Callable[[int], Awaitable[int | None]],
    *,
    clock: Clock,
    quiet_s: float,
    is_dead: Callable[[Claim], bool] | None,
) -> tuple[Named, Register]:
    """Claim the mirror for an opening that runs already, and was opened without the bucket.

    Args:
        storage: At the experiment's place.
        identity: Of that opening; its epoch is what it is.
        seq: Its newest commit.
        crc_of: The crc of a commit in its journal; `None`: the journal does not reach back so far.
        clock: Time.
        quiet_s: As for `claim_mirror`.
        is_dead: Likewise.

    Raises:
        FencedError: Another driver went on from the bucket meanwhile.
        StorageError: The storage refused.
    """
    register = await open_register(storage, writing=True, clock=clock)
    named = await register.read()
    if named is not None and same_owner(named.current.claim, identity.claim):
        return named, register  # by a claim whose reply was lost
    if named is not None:
        await _check_line(storage, identity, seq, crc_of, named)
        try:
            quiet = await await_quiet(storage, named, register, clock, quiet_s, None, is_dead)
        except ExperimentLockedError as error:
            raise _went_on(storage, named.current.claim) from error
        if quiet is not named:
            await _check_line(storage, identity, seq, crc_of, quiet)
        named = quiet
    current = claimed_by(named, identity.claim, identity.node_ip, identity.experiment_id)
    answer = await register.swap(current, named)
    if not same_owner(answer.current.claim, identity.claim):
        raise _went_on(storage, answer.current.claim)
    return answer, register  # this claim, or a copy of an earlier one that came late


async def _check_line(
    storage: ObjectStorage,
    identity: Identity,
    seq: int,
    crc_of: Callable[[int], Awaitable[int | None]],
    named: Named,
) -> None:
    bucket = named.current.position
    if bucket.experiment_id != identity.experiment_id:
        raise FencedError(
            f"{storage.location} holds experiment {bucket.experiment_id}, and this driver, which was opened without "
            f"it, has experiment {identity.experiment_id}; nothing of it was mirrored. Choose another upload_dir or "
            "another name, and open the local directory again"
        )
    known = common_seq(Position(None, identity.history, seq), bucket) == bucket.seq
    if known and bucket.seq:
        crc = await crc_of(bucket.seq)
        known = crc is None or crc == bucket.crc
    if not known or max(named.current.claim.epoch, bucket.epoch) >= identity.claim.epoch:
        raise _went_on(storage, named.current.claim)


def _went_on(storage: ObjectStorage, claim: Claim) -> FencedError:
    return FencedError(
        f"this driver was opened without {storage.location}, and meanwhile {who(claim)} went on from there; this one "
        "writes nothing any more. Everything acknowledged is in its local directory; open the experiment again, and "
        "the bucket's state goes on while these commits are set aside"
    )
