"""Owns this process's connection to Ray, which all its runners share: who is the first makes it, the last ends it.

One that the user has made is used, and left as it is. Blocking, for a thread.
"""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from typing import Any, Final

from asynctune.errors import ConfigError

__all__ = ["RayConnection", "first_of", "join", "last_of", "refuse_client"]

logger = logging.getLogger("asynctune")

_ANSWERS_WITHIN_S: Final = 5.0
_SETTINGS: Final = b"\x04"
_PREFACE: Final = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + b"\0\0\0" + _SETTINGS + b"\0\0\0\0\0"
"""How a client of HTTP/2 begins: with settings, of which it has none. The server's are its answer."""
_FRAME_HEAD_BYTES: Final = 9
_LOOPBACK: Final = ("127.0.0.1", "::1")
_REASON_CHARACTERS: Final = 600

_lock: Final = threading.Lock()
_ours: list[RayConnection] = []
"""Those who use the connection that one of them has made."""


class RayConnection:
    """One runner's part in the connection that there is. Made by `join`.

    Attributes:
        address: Of the cluster.
        which: Tells the connection from a later one, be it to the same cluster.
    """

    def __init__(self) -> None:
        self.address: Final = _address()
        self.which: Final = _which()

    def check(self) -> None:
        """Nothing may be asked of Ray when the connection is gone: it would connect by itself, to whatever there is.

        Raises:
            ConfigError: It is gone, or leads elsewhere.
        """
        import ray  # noqa: PLC0415 - few have it

        if not ray.is_initialized() or _which() != self.which:
            raise ConfigError(
                "this process was disconnected from Ray, by ray.shutdown() or the like: no trial can run any more; "
                "Tuner.restore goes on with the experiment"
            )

    def leave(self) -> None:
        """The last one that uses a connection of the runners' ends it. Again: does nothing."""
        import ray  # noqa: PLC0415 - few have it

        with _lock:
            if self in _ours:
                _ours.remove(self)
                if not _ours and ray.is_initialized() and _which() == self.which:
                    ray.shutdown()


def join(address: str | None) -> RayConnection:
    """Use the connection there is, or make one.

    Args:
        address: Of a cluster; `None`: the one that this process or machine is part of, else one that is started.

    Raises:
        ConfigError: Nobody answers there, or this process is connected to another cluster.
    """
    # Read when Ray is imported. Its own handler prints a trace at each SIGTERM, which a Tuner takes as a wish.
    os.environ.setdefault("RAY_DISABLE_FAILURE_SIGNAL_HANDLER", "1")
    import ray  # noqa: PLC0415 - few have it

    with _lock:
        if not ray.is_initialized():
            _ours.clear()  # somebody has shut down what they used
            _init(address)
            _ours.append(made := RayConnection())
            return made
        connection = RayConnection()
        if not _is_same(address, connection.address):
            raise ConfigError(
                f"this process is connected to Ray at {connection.address} already, and can be to one cluster only: "
                f"call ray.shutdown() before, or leave out the address {address}"
            )
        if _ours and _ours[0].which == connection.which:
            _ours.append(connection)
        else:
            _ours.clear()  # what they used is gone, and this one is the user's
        return connection


def _init(address: str | None) -> None:
    import ray  # noqa: PLC0415 - few have it

    logging.getLogger("ray._private.worker").addFilter(_is_for_users)
    found = _found(address)
    settings: dict[str, Any] = {"log_to_driver": False, "configure_logging": False}
    if found is None:
        logger.info("no Ray is running: one is started on this machine")
        settings["include_dashboard"] = False
    try:
        ray.init(address=found or "local", **settings)
    except (Exception, SystemExit) as error:  # the latter if no Ray answers
        ray.shutdown()  # of processes that it has started already
        raise ConfigError(f"cannot reach Ray at {found or 'this machine'}: {error}{_cause(error)}") from error


def _address() -> str:
    """Of the cluster that this process is connected to."""
    import ray  # noqa: PLC0415 - few have it

    return str(ray.get_runtime_context().gcs_address)


def _which() -> tuple[str, str, str]:
    """Each connection of a driver is another job; a cluster that was started again has other nodes."""
    import ray  # noqa: PLC0415 - few have it

    context = ray.get_runtime_context()
    return str(context.gcs_address), str(context.get_node_id()), str(context.get_job_id())


def _is_same(asked: str | None, there: str) -> bool:
    if asked in (None, "auto", "local", there):
        return True
    import ray  # noqa: PLC0415 - few have it

    host, _, port = asked.rpartition(":")
    if port != there.rpartition(":")[2]:
        return False
    try:  # Ray puts the machine's own address for that of its loopback
        addresses = {each[4][0] for each in socket.getaddrinfo(host.strip("[]"), None)}
    except OSError:
        return False
    where = there.rpartition(":")[0].strip("[]")
    is_here = where == ray.util.get_node_ip_address() and not addresses.isdisjoint(_LOOPBACK)
    return where in addresses or is_here


def _is_for_users(record: logging.LogRecord) -> bool:
    """Ray warns that it has not taken SIGTERM over: it is the Tuner that has."""
    return not str(record.msg).startswith("SIGTERM handler is not set")


def _found(address: str | None) -> str | None:
    """The address of a Ray that runs; `None`: there is none. Blocking.

    Raises:
        ConfigError: Nobody answers at the one that was asked for.
    """
    if address == "local":
        return None
    if address not in (None, "auto"):
        _await_answer(address)
        return address
    from_environment = os.environ.get("RAY_ADDRESS") or None
    if from_environment not in (None, "auto", "local"):
        refuse_client(from_environment)
        _await_answer(from_environment)
        return from_environment
    if from_environment == "local":
        return None
    from ray._private.services import canonicalize_bootstrap_address  # noqa: PLC0415 - few have it

    try:
        found = canonicalize_bootstrap_address("auto")
        if found is not None:
            _await_answer(found)
            return str(found)
    except (ConnectionError, ConfigError) as error:  # the note of one that was killed stays
        logger.debug("no Ray of this machine answers: %s", error)
    if address == "auto":
        raise ConfigError(
            "cannot reach Ray at this machine: none is running; start one, or leave out the address"
        )
    return None


def _await_answer(address: str) -> None:
    """Ray itself takes minutes, and may end the process.

    Raises:
        ConfigError: Nobody answers there, or it is no Ray.
    """
    host, separator, port = address.rpartition(":")
    if not separator or not port.isdigit():
        return  # not one that is known here
    try:
        with socket.create_connection((host.strip("[]"), int(port)), _ANSWERS_WITHIN_S) as connection:
            is_ray = os.environ.get("RAY_USE_TLS", "0") != "0" or _speaks_http2(connection)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"cannot reach Ray at {address}: {error}; is a cluster running there?") from error
    if not is_ray:
        raise ConfigError(
            f"cannot reach Ray at {address}: whoever answers there is no Ray; is the port right?"
        )


def _speaks_http2(connection: socket.socket) -> bool:
    """Whether the other end greets as gRPC does, which is what Ray speaks."""
    connection.sendall(_PREFACE)
    greeting = b""
    ends = time.monotonic() + _ANSWERS_WITHIN_S
    while len(greeting) < _FRAME_HEAD_BYTES and (left := ends - time.monotonic()) > 0:
        connection.settimeout(left)
        if not (part := connection.recv(_FRAME_HEAD_BYTES - len(greeting))):
            return False
        greeting += part
    return greeting[3:4] == _SETTINGS


def _cause(error: BaseException) -> str:
    """What Ray hides under its error, such as a wrong token: the end of a trace."""
    told = str(error.__cause__ or "").strip().rpartition("\n")[2]
    return f" ({first_of(told)})" if told else ""


def refuse_client(address: str) -> None:
    """Refuse an address that cannot be.

    Raises:
        ConfigError: It is of Ray's client, or none at all.
    """
    if not isinstance(address, str) or not address:
        raise ConfigError(
            f"address must be that of a Ray cluster, such as 10.0.0.1:6379, or None, not {address!r:.80}"
        )
    if address.startswith("ray://"):
        raise ConfigError(
            f"{address} is of Ray's client, whose nodes cannot call this process; run the driver on a machine of "
            "the cluster, with the address of the cluster itself"
        )


def first_of(text: str) -> str:
    """The lines that say why, without the trace."""
    told = " ".join(line.strip() for line in text.splitlines() if line.strip())
    return told if len(told) <= _REASON_CHARACTERS else f"{told[:_REASON_CHARACTERS]}..."


def last_of(text: str) -> str:
    """The end of a trace, which says why."""
    told = " ".join(line.strip() for line in text.splitlines() if line.strip(" ^~"))
    return told if len(told) <= _REASON_CHARACTERS else f"...{told[-_REASON_CHARACTERS:]}"
