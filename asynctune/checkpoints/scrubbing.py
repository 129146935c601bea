"""Owns the leaving out of credentials from text that somebody else wrote: a command's output, a syncer's error.

What is secret in such a text cannot be known, so more is left out rather than less: values of environment variables
and options whose names say so, what URLs hold before the host and behind the path, and what looks like a key. Pure,
but for `secret_values`, which reads the mapping that it is given.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Final

__all__ = ["printable_end", "scrubbed", "secret_options", "secret_values"]

_LEFT_OUT: Final = "[...]"
_LEAST_SECRET: Final = 6  # shorter ones are words that a message may need
_NAME: Final = (
    r"[\w-]*(?:secret|token|passw(?:or)?d|passphrase|credential|signature|authorization|"
    r"(?:api|access|account|private|shared|session|encryption|sse-c|customer)[_-]?key|sas[_-]?url)[\w-]*"
)
_SECRET_NAME: Final = re.compile(_NAME, re.IGNORECASE)
_RULES: Final = (
    (re.compile(r"\b(bearer|basic|aws4-hmac-sha256)\s+\S+", re.IGNORECASE), rf"\1 {_LEFT_OUT}"),
    (re.compile(r"(://)[^\s'\"]*@"), r"\1"),
    (re.compile(r"(://[^\s'\"?#]*)[?#][^\s'\"]*"), rf"\1?{_LEFT_OUT}"),
    (re.compile(rf"(--{_NAME})(\s+|=)(\"[^\"]*\"|'[^']*'|\S+)", re.IGNORECASE), rf"\1\2{_LEFT_OUT}"),
    (
        re.compile(rf"\b({_NAME})([\"']?\s*[=:]\s*)(\"[^\"]*\"|'[^']*'|[^\s,;&]+)", re.IGNORECASE),
        rf"\1\2{_LEFT_OUT}",
    ),
    (re.compile(r"\b(?:AKIA|ASIA)[A-Z0-9]{8,}"), _LEFT_OUT),
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
    for pattern, replacement in _RULES:
        text = pattern.sub(replacement, text)
    return text


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
        if _SECRET_NAME.fullmatch(name) and not value.startswith(("/", "~"))
    )


def secret_options(arguments: Iterable[str]) -> frozenset[str]:
    """Values of options whose names say that they are secret, as `--name value` or `--name=value`."""
    found, is_next = set(), False
    for argument in arguments:
        name, equals, value = argument.lstrip("-").partition("=")
        if is_next:
            found.add(argument)
        is_next = False
        if _SECRET_NAME.fullmatch(name):
            if equals:
                found.add(value)
            else:
                is_next = argument.startswith("-")
    return frozenset(found)
