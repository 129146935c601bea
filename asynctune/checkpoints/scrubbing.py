"""Owns the leaving out of credentials from text that somebody else wrote: a command's output, a syncer's error.

What is secret in such a text cannot be known, so more is left out rather than less: values of environment variables
and options whose names say so, what URLs hold before the host and behind the path, and what looks like a key. Pure,
but for `secret_values`, which reads the mapping that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["printable_end", "scrubbed", "scrubbed_end", "secret_options", "secret_values"]

_LEFT_OUT: Final = "[...]"
_LEAST_SECRET: Final = 6  # shorter ones are words that a message may need
# No rule looks back or ahead without a bound: a text of somebody else's must not take the event loop's time.
_SECRET_NAME: Final = re.compile(
    r"secret|token|passw(?:or)?d|passphrase|credential|signature|authorization|"
    r"(?:api|access|account|private|shared|session|encryption|sse-c|customer)[_-]?key|sas[_-]?url",
    re.IGNORECASE,
)
_URL: Final = re.compile(r"://([^\s'\"]++)")
_QUERY: Final = re.compile(r"[?#]")
_QUOTED: Final = r"\"[^\"]{0,1024}+\"|'[^']{0,1024}+'|"
_NAMED: Final = (
    (re.compile(r"(?<![\w-])--([\w-]++)(?:\s{1,3}|=)"), re.compile(rf"{_QUOTED}\S++")),
    (re.compile(r"(?<![\w-])([\w-]++)[\"']?\s{0,3}[=:]\s{0,3}"), re.compile(rf"{_QUOTED}[^\s,;&]++")),
)
_RULES: Final = (
    (re.compile(r"\b(bearer|basic|aws4-hmac-sha256)\s{1,3}\S++", re.IGNORECASE), rf"\1 {_LEFT_OUT}"),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{8,}+"), _LEFT_OUT),
)
# Escape sequences of terminals, and what else no line of a log should hold.
_CONTROL: Final = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b.|[\x00-\x08\x0b-\x1f\x7f]")


def scrubbed(text: str, secrets: Iterable[str] = ()) -> str:
    """The text without what may be a credential.

    Args:
        text: Somebody else's.
        secrets: Values that are left out wherever they stand; short ones are passed over.
    """
    for secret in sorted(secrets, key=len, reverse=True):
        if len(secret) >= _LEAST_SECRET:
            text = text.replace(secret, _LEFT_OUT)
    text = _URL.sub(_without_user, text)
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    for name, value in _NAMED:
        text = _without_values(name, value, text)
    return text


def _without_user(url: re.Match[str]) -> str:
    rest = url[1].rpartition("@")[2]
    query = _QUERY.search(rest)
    return f"://{rest}" if query is None else f"://{rest[: query.start()]}?{_LEFT_OUT}"


def _without_values(name: re.Pattern[str], value: re.Pattern[str], text: str) -> str:
    """What follows a name that says that it is secret is left out."""
    parts, at = [], 0
    for found in name.finditer(text):
        if (
            found.start() >= at
            and _SECRET_NAME.search(found[1])
            and (secret := value.match(text, found.end()))
        ):
            parts += [text[at : found.end()], _LEFT_OUT]
            at = secret.end()
    return "".join([*parts, text[at:]])


def scrubbed_end(text: str, most: int, secrets: Iterable[str] = ()) -> str:
    """The last `most` characters at most of a text of any length, scrubbed and fit to be printed."""
    long = printable_end(text, 8 * most)
    if len(long) == 8 * most:
        # its first line, or word, may be the end of a secret, which is not found there
        body = long.removeprefix("... ")
        long = body.partition("\n")[2] or body.partition(" ")[2]
    return printable_end(scrubbed(long, secrets), most)


def printable_end(text: str, most: int) -> str:
    """The last `most` characters at most, without control characters; of a line drawn again and again, the last."""
    lines = [line.rstrip("\r").rpartition("\r")[2] for line in text.split("\n")]
    text = "\n".join(_CONTROL.sub("", line).rstrip() for line in lines).strip()
    return text if len(text) <= most else f"... {text[4 - most :]}"


def secret_values(environ: Mapping[str, str]) -> frozenset[str]:
    """Values of variables whose names say that they are secret; paths are not, they lead to secrets."""
    return frozenset(
        value
        for name, value in environ.items()
        if _SECRET_NAME.search(name) and not value.startswith(("/", "~"))
    )


def secret_options(arguments: Iterable[str]) -> frozenset[str]:
    """Values of options whose names say that they are secret, as `--name value` or `--name=value`."""
    found, is_next = set(), False
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if is_next:
            found.add(argument)
        is_next = False
        if _SECRET_NAME.search(name):
            if equals:
                found.add(value)
            else:
                is_next = argument.startswith("-")
    return frozenset(found)
