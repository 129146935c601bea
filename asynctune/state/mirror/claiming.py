"""Owns the claim of a mirror: waiting until its last owner is quiet, and the swap that makes it ours."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from asynctune.clock import Clock
from asynctune.state.epochs import Claim
from asynctune.state.mirror.current import Current
from asynctune.state.mirror.reading import Mirrored, ObjectCache
from asynctune.state.mirror.register import Named, Register
from asynctune.state.mirror.relations import Position, Relation
from asynctune.state.segments import History
from asynctune.storage.base import ObjectStorage

__all__ = ["Claimed", "claim_mirror", "give_up"]


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
    """

    experiment_id: str
    claim: Claim
    history: History
    relation: Relation
    set_aside: int
    mirrored: Mirrored | None
    named: Named
    register: Register


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
    raise NotImplementedError


async def give_up(claimed: Claimed) -> None:
    """Mark the mirror as closed, so that the next opening needs not wait: this one failed after the claim.

    Raises:
        StorageError: The storage refused.
    """
    raise NotImplementedError
