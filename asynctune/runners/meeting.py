"""Owns how a driver and its agents find each other: who listens, who calls, and how each proves to be who it says.

Both know a secret that the driver made for this one run; neither says it aloud. Each draws a number and signs the
other's with the secret (HMAC-SHA256), so that a stranger on the network can neither pose as an agent nor as the
driver. What is said afterwards is not encrypted: the network between the machines is trusted not to listen, as the
engine's own is. What is said is `peer`'s.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import hmac
import logging
import secrets
import socket
from collections.abc import Mapping
from typing import Any, Final

from asynctune.errors import ConfigError
from asynctune.runners.frames import FrameError, frame, length_of, message_of
from asynctune.runners.peer import BUFFER_BYTES, Peer

__all__ = ["Listener", "StrangerError", "dial", "new_secret"]

logger = logging.getLogger("asynctune")

_HEAD_BYTES: Final = 4
_MAX_GREETING_BYTES: Final = 4096
_GREETING_S: Final = 10.0
_NONCE_BYTES: Final = 32
_FORM: Final = 1


class StrangerError(Exception):
    """The other end does not know the secret, or speaks another language."""


def new_secret() -> bytes:
    """What the driver and the agents of one run know."""
    return secrets.token_bytes(_NONCE_BYTES)


class Listener:
    """The driver's end: takes connections, and hands each to the peer whose agent has called.

    Args:
        secret: See `new_secret`.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret = secret
        self._server: asyncio.Server | None = None
        self._expected: dict[str, Peer] = {}
        self._greeting: set[asyncio.Task[None]] = set()
        self.port = 0

    async def start(self, host: str, port: int = 0) -> None:
        """Listen.

        Args:
            host: An address of this machine that the agents reach.
            port: 0: any that is free.

        Raises:
            ConfigError: Nobody can listen there.
        """
        try:
            self._server = await asyncio.start_server(self._connected, host, port, limit=BUFFER_BYTES)
        except OSError as error:
            raise ConfigError(
                f"cannot listen on {host}, port {port or 'any'}, for the workers: {error}; give an address of this "
                "machine that the nodes reach, as listen_host"
            ) from error
        self.port = self._server.sockets[0].getsockname()[1]

    def expect(self, agent_id: str, peer: Peer) -> None:
        """Connections of this agent are the peer's."""
        self._expected[agent_id] = peer

    def forget(self, agent_id: str) -> None:
        """This agent is not expected any more."""
        self._expected.pop(agent_id, None)

    async def aclose(self) -> None:
        """Listen no more. Again: does nothing."""
        server, self._server = self._server, None
        if server is not None:
            server.close()
        for task in list(self._greeting):
            task.cancel()
        if self._greeting:
            await asyncio.wait(self._greeting)

    async def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._greeting.add(task)
        try:
            async with asyncio.timeout(_GREETING_S):
                agent_id = await self._greet(reader, writer)
        except (StrangerError, FrameError, OSError, asyncio.IncompleteReadError, ValueError) as error:
            logger.debug("a connection was refused: %s", error)
            writer.transport.abort()
        except asyncio.CancelledError:
            writer.transport.abort()  # the listener ends
        else:
            self._expected[agent_id].attach(reader, writer)
        finally:
            self._greeting.discard(task)

    async def _greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> str:
        ours = secrets.token_bytes(_NONCE_BYTES)
        writer.write(frame({"asynctune": _FORM, "nonce": ours}))
        said = await _read(reader)
        agent_id, theirs, proof = said.get("agent"), said.get("nonce"), said.get("proof")
        if not isinstance(agent_id, str) or not isinstance(theirs, bytes) or not isinstance(proof, bytes):
            raise StrangerError("it said nothing that makes sense")
        if not hmac.compare_digest(proof, _proof(self._secret, b"agent", ours, theirs, agent_id)):
            raise StrangerError("it does not know the secret of this run")
        if agent_id not in self._expected:
            writer.write(frame({"no": f"agent {agent_id} is not expected any more"}))
            raise StrangerError(f"agent {agent_id} is not expected any more")
        _keep_quick(writer)
        writer.write(frame({"proof": _proof(self._secret, b"driver", theirs, ours, agent_id)}))
        return agent_id


async def dial(
    host: str, port: int, agent_id: str, secret: bytes
) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """The agent's end: call the driver; the streams of a connection whose other end has proved itself.

    Raises:
        OSError: Nobody answers there, or hangs up, or says nothing: it may later.
        StrangerError: Whoever answers is not the driver, or does not expect this agent.
    """
    async with asyncio.timeout(_GREETING_S):
        reader, writer = await asyncio.open_connection(host, port, limit=BUFFER_BYTES)
        try:
            _keep_quick(writer)
            said = await _read(reader)
            theirs = said.get("nonce")
            if said.get("asynctune") != _FORM or not isinstance(theirs, bytes):
                raise StrangerError(f"whoever answers at {host}, port {port}, is no driver of this asynctune")
            ours = secrets.token_bytes(_NONCE_BYTES)
            proof = _proof(secret, b"agent", theirs, ours, agent_id)
            writer.write(frame({"agent": agent_id, "nonce": ours, "proof": proof}))
            answer = await _read(reader)
            proved = answer.get("proof")
            if not isinstance(proved, bytes) or not hmac.compare_digest(
                proved, _proof(secret, b"driver", ours, theirs, agent_id)
            ):
                raise StrangerError(str(answer.get("no") or "whoever answers does not know the secret"))
        except asyncio.IncompleteReadError as error:
            writer.transport.abort()
            raise ConnectionResetError(f"{host}, port {port}, hung up") from error
        except FrameError as error:
            writer.transport.abort()
            raise StrangerError(
                f"whoever answers at {host}, port {port}, is no driver of this asynctune"
            ) from error
        except BaseException:
            writer.transport.abort()
            raise
    return reader, writer


async def _read(reader: asyncio.StreamReader) -> Mapping[str, Any]:
    size = length_of(await reader.readexactly(_HEAD_BYTES), _MAX_GREETING_BYTES)
    message = message_of(await reader.readexactly(size))
    if not isinstance(message, Mapping):
        raise FrameError("no greeting")
    return message


def _proof(secret: bytes, who: bytes, asked: bytes, other: bytes, agent_id: str) -> bytes:
    """Shows that `who` knows the secret, to whom has drawn `asked`."""
    parts = (b"asynctune", who, asked, other, agent_id.encode())
    return hmac.new(secret, b"".join(hashlib.sha256(part).digest() for part in parts), "sha256").digest()


def _keep_quick(writer: asyncio.StreamWriter) -> None:
    """Small messages are not held back; large ones fill the buffers."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
        with contextlib.suppress(OSError):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    writer.transport.set_write_buffer_limits(high=BUFFER_BYTES)
