"""Owns who asks Google Cloud Storage: `storage_options`, the environment, and the token. Never shows any of it.

======================== ==================================================================================
`storage_options`        what it is
======================== ==================================================================================
`service_file`           path of a JSON file with credentials, as `GOOGLE_APPLICATION_CREDENTIALS` names one
`service_account`        the content of such a file, a dict
`token`                  an OAuth 2 access token; it is not renewed
`anonymous`              True: requests are not signed
`endpoint_url`           `http(s)://host:port` instead of Google's own
======================== ==================================================================================

What is not given is looked for as Google's own tools do: `GOOGLE_APPLICATION_CREDENTIALS`, gcloud's default
credentials, the metadata server. With `STORAGE_EMULATOR_HOST`, and no `endpoint_url`, nothing is signed.
"""

from __future__ import annotations

import asyncio
import io
import json
import os
import time
from collections.abc import Mapping
from contextlib import suppress
from typing import Any, Final
from urllib.parse import urlsplit

import aiohttp
from gcloud.aio.auth import Token
from gcloud.aio.auth.token import Type

from asynctune.errors import AuthenticationError, ConfigError, StorageError
from asynctune.storage.gcs_errors import broken

__all__ = ["Credentials", "GcsOptions"]

_KINDS: Final[Mapping[str, type]] = {
    "anonymous": bool,
    "endpoint_url": str,
    "service_account": Mapping,
    "service_file": str,
    "token": str,
}
_CREDENTIALS: Final = ("anonymous", "service_account", "service_file", "token")
_SCOPES: Final = ["https://www.googleapis.com/auth/devstorage.read_write"]
_GOOGLE: Final = "https://storage.googleapis.com"
_RENEW_AT: Final = 0.8
_YOUNG_S: Final = 60.0
_TOKEN_TIMEOUT_S: Final = 10
_CLIENT_ERRORS: Final = range(400, 500)
_BUSY: Final = 429


class GcsOptions:
    """Checked `storage_options`, with what the environment adds.

    Args:
        options: As the user gave them.
        environment: As `os.environ`.

    Raises:
        ConfigError: An option is unknown, of another type, or contradicts another; its value is not shown.
    """

    def __init__(self, options: Mapping[str, Any], environment: Mapping[str, str] | None = None) -> None:
        environment = os.environ if environment is None else environment
        for name, value in options.items():
            if name not in _KINDS:
                known = ", ".join(sorted(_KINDS))
                raise ConfigError(f"storage_options of gs:// has no {str(name)[:80]!r}; there are {known}")
            if not isinstance(value, _KINDS[name]) or value == "":
                raise ConfigError(
                    f"storage_options[{name!r}] must be a {_KINDS[name].__name__}, and not empty"
                )
        given = [name for name in _CREDENTIALS if options.get(name)]
        if len(given) > 1:
            raise ConfigError(
                f"storage_options of gs:// has {' and '.join(given)}, and one of them is enough"
            )
        emulator = environment.get("STORAGE_EMULATOR_HOST", "")
        where = "storage_options['endpoint_url']"
        endpoint = options.get("endpoint_url", "")
        if not endpoint and emulator:
            where = "STORAGE_EMULATOR_HOST"
            endpoint = emulator if "://" in emulator else f"http://{emulator}"
        self.endpoint = _checked_endpoint(endpoint or _GOOGLE, where)
        self.signed = not options.get("anonymous") and not (emulator and not options.get("endpoint_url"))
        self._token: str | None = options.get("token")
        self._file: str | None = options.get("service_file")
        self._account: Mapping[str, Any] | None = options.get("service_account")
        self._named = self._file or environment.get("GOOGLE_APPLICATION_CREDENTIALS")

    def credentials(self) -> Credentials:
        """Where tokens come from. Reads files: call it in a thread.

        Raises:
            AuthenticationError: The credentials that are named cannot be read.
        """
        if not self.signed:
            return Credentials(None, "")
        if self._token is not None:
            return Credentials(None, self._token)
        source: Any = self._named
        if self._account is not None:
            source = io.StringIO(json.dumps(dict(self._account)))
        source_of_tokens = None
        with suppress(
            OSError, ValueError, KeyError, TypeError
        ):  # their messages may show what is in the file
            source_of_tokens = Token(service_file=source, scopes=_SCOPES)
        # The client goes on to the metadata server when a file is no JSON: not what was asked for.
        if source_of_tokens is None or (source and source_of_tokens.token_type is Type.GCE_METADATA):
            raise AuthenticationError(
                "the credentials for Google Cloud Storage cannot be read",
                operation="sign in",
                hint="GOOGLE_APPLICATION_CREDENTIALS or storage_options['service_file'] names a JSON file of a "
                "service account, or of gcloud auth application-default login",
            )
        return Credentials(source_of_tokens, "")


def _checked_endpoint(endpoint: str, where: str) -> str:
    try:
        parts = urlsplit(endpoint)
        fine = parts.scheme in ("http", "https") and parts.hostname and (parts.port or True)
    except ValueError:
        fine = False
        parts = urlsplit("")
    if not fine or "@" in parts.netloc or parts.query or parts.fragment or parts.path.strip("/"):
        raise ConfigError(f"{where} must be http://host:port or https://host:port, without anything else")
    return f"{parts.scheme}://{parts.netloc}"


class Credentials:
    """The token that signs requests, renewed when it grows old. Safe under cancellation: each caller renews itself.

    Args:
        source: Gets tokens; `None`: there is the fixed one alone, or none.
        fixed: A token that is not renewed; may be empty.
    """

    def __init__(self, source: Token | None, fixed: str) -> None:
        self._source = source
        self._token = fixed
        self._got_at = -_YOUNG_S
        self._renew_at = 0.0
        self._turn = asyncio.Lock()

    async def get(self) -> str:
        """A token; empty where requests are not signed.

        Raises:
            AuthenticationError: It was refused.
            StorageError: Who gives them does not answer; retryable.
        """
        if self._source is None or (self._token and time.monotonic() < self._renew_at):
            return self._token
        async with self._turn:
            if not self._token or time.monotonic() >= self._renew_at:
                await self._renew(self._source)
            return self._token

    def refused(self) -> bool:
        """A request was answered with 401: whether another one, with a new token, may help."""
        if self._source is None or time.monotonic() - self._got_at < _YOUNG_S:
            return False
        self._token = ""
        return True

    async def aclose(self) -> None:
        """Close the connection to who gives the tokens."""
        if self._source is not None:
            await self._source.close()

    async def _renew(self, source: Token) -> None:
        failure: StorageError | None = None
        answer = None
        try:
            answer = await source.refresh(timeout=_TOKEN_TIMEOUT_S)
        except aiohttp.ClientResponseError as error:
            if error.status in _CLIENT_ERRORS and error.status != _BUSY:
                failure = _no_token(f"the request for a token is answered {error.status}")
            else:
                failure = broken("sign in", None, error)
        except (aiohttp.ClientError, OSError, TimeoutError) as error:
            failure = broken("sign in", None, error)
        except Exception as error:  # noqa: BLE001 - the client raises what it likes, with secrets in it
            failure = _no_token(f"no token can be made of the credentials ({type(error).__name__})")
        if failure is not None or answer is None:
            raise failure or _no_token("there is no answer")
        now = time.monotonic()
        self._token, self._got_at = answer.value, now
        self._renew_at = now + _RENEW_AT * answer.expires_in


def _no_token(what: str) -> AuthenticationError:
    return AuthenticationError(
        f"sign in to Google Cloud Storage: {what}",
        operation="sign in",
        hint="check GOOGLE_APPLICATION_CREDENTIALS or storage_options, or sign in again",
    )
