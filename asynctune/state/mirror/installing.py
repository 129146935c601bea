"""Owns making a bucket's state the local one: what was there is set aside, never deleted. Blocking, for a thread.

The file `REPLACING` stands in the state directory from before the first change until after the last. While it is
there, the local state is neither the old one nor the new one: openings without the bucket have to refuse it.
"""

from __future__ import annotations

from collections.abc import Mapping

from asynctune.files import LocalFiles
from asynctune.state.epochs import Claim
from asynctune.state.mirror.reading import Mirrored
from asynctune.state.segments import History

__all__ = ["install", "is_being_replaced", "replacing_error"]


def is_being_replaced(state_dir: str, files: LocalFiles) -> bool:
    """Whether a replacement was cut short, so that only the bucket can say what the state is."""
    raise NotImplementedError


def replacing_error(state_dir: str) -> Exception:
    """The refusal for an opening that has no bucket to replace the state again."""
    raise NotImplementedError


def install(
    state_dir: str,
    mirrored: Mirrored,
    *,
    claim: Claim,
    history: History,
    node_ip: str,
    files: LocalFiles,
    records: Mapping[str, bytes] | None = None,
) -> str | None:
    """Make the bucket's state the local one; where the old one was put, or `None` if there was none.

    Afterwards `recover` finds the bucket's newest commit, in a snapshot, and of the frames before it all that the
    mirror still names, for their result rows. The local epoch was claimed before (`claim_epoch(given=claim)`).

    Args:
        state_dir: The `.asynctune` directory; made if missing.
        mirrored: The bucket's state.
        claim: This opening's.
        history: As in `Claimed.history`.
        node_ip: This host's address.
        files: The disk.
        records: What the snapshot holds instead of the bucket's records (the caller may know more of what the result
            files hold); `None`: those.

    Raises:
        OSError: The disk refused; the state is still being replaced, and can be again.
    """
    raise NotImplementedError
