"""What every adapter refuses before it asks its server, so that all refuse the same."""

from __future__ import annotations

from collections.abc import Sequence

from engine.errors import Invalid
from engine.snapshots.port import KEY_LIMIT, VALUE_LIMIT, Delete, Put, Require

OPERATION_LIMIT = 100
# etcd counts the encoded request, 1.5 MiB; this leaves room for the framing of 100 operations.
COMMIT_LIMIT = 1_500_000  # bytes of all keys and values together


def check_key(key: str) -> None:
    """Raises `Invalid` for a key that no adapter could keep."""
    if not key:
        raise Invalid(
            "the key is empty", reason="KEY_EMPTY", mend="Name the key with at least one character."
        )
    check_prefix(key)


def check_prefix(prefix: str) -> None:
    if len(prefix) > KEY_LIMIT:
        raise Invalid(
            f"the key has {len(prefix)} characters, the limit is {KEY_LIMIT}: {prefix[:40]!r}…",
            reason="KEY_TOO_LONG",
            mend=f"Use a key of at most {KEY_LIMIT} characters.",
        )
    try:
        prefix.encode()
    except UnicodeEncodeError as error:
        raise Invalid(
            f"the key {prefix[:40]!r} holds a lone surrogate",
            reason="KEY_NOT_TEXT",
            mend="Use a key that can be written as UTF-8.",
        ) from error


def check_value(key: str, value: bytes) -> None:
    if len(value) > VALUE_LIMIT:
        raise Invalid(
            f"the value of {key[:40]!r} has {len(value)} bytes, the limit is {VALUE_LIMIT}",
            reason="VALUE_TOO_LARGE",
            mend="Keep the payload elsewhere and store a reference to it.",
        )


def check_commit(require: Sequence[Require], do: Sequence[Put | Delete]) -> None:
    """Raises `Invalid` unless the transaction is one that every adapter can do at once."""
    for what, count in (("operations", len(do)), ("requirements", len(require))):
        if count > OPERATION_LIMIT:
            raise Invalid(
                f"the transaction has {count} {what}, the limit is {OPERATION_LIMIT}",
                reason="TRANSACTION_TOO_LONG",
                mend=f"Split it into transactions of at most {OPERATION_LIMIT} {what}.",
            )
    size = 0
    seen: set[str] = set()
    for requirement in require:
        check_key(requirement.key)
        size += len(requirement.key.encode())
    for operation in do:
        check_key(operation.key)
        if operation.key in seen:
            raise Invalid(
                f"the transaction changes {operation.key!r} twice",
                reason="KEY_REPEATED",
                mend="Keep only the last operation on each key.",
            )
        seen.add(operation.key)
        size += len(operation.key.encode())
        if isinstance(operation, Put):
            check_value(operation.key, operation.value)
            size += len(operation.value)
    if size > COMMIT_LIMIT:
        raise Invalid(
            f"the transaction carries {size} bytes, the limit is {COMMIT_LIMIT}",
            reason="TRANSACTION_TOO_LARGE",
            mend="Split it, or keep the payloads elsewhere and store references to them.",
        )


def whole_seconds(ttl: float) -> int:
    """The time to live as etcd counts it. Raises `Invalid` unless whole and at least 1."""
    if ttl < 1 or ttl != int(ttl):
        raise Invalid(
            f"a lease cannot live {ttl} seconds",
            reason="TTL_INVALID",
            mend="Ask for a whole number of seconds, at least 1.",
        )
    return int(ttl)
