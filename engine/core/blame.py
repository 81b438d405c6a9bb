"""Which part of an expression an error comes from.

A compiled expression can be written as bytes: the tree of its parts in Protocol Buffers (CEL's
`CheckedExpr`) with the place of each in the text. Put in the place of the whole, a part can be
evaluated alone. The one to blame is the innermost that fails with the same words, while what it
is made of does not.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

Fields = list[tuple[int, int | bytes]]

MOST_MACROS = 3  # parts with a macro in them that are evaluated: each may cost as much as the whole
_VALUE, _EXPR, _SOURCE = 2, 4, 5  # of Any, and of CheckedExpr
_ID, _SELECT, _CALL, _LIST, _STRUCT, _MACRO = 2, 5, 6, 7, 8, 9  # of Expr
_POSITIONS = 4  # of SourceInfo


@dataclass(frozen=True, slots=True)
class Part:
    """`alone` are the parts that can be evaluated outside of it, `inside` those of a macro, which
    need its variable. `function` is CEL's name of what is called, such as `_+_`."""

    number: int
    function: str
    raw: bytes
    alone: tuple[Part, ...]
    inside: tuple[Part, ...] = ()
    loops: bool = False  # it has a macro in it


def blame(compiled: bytes, function: str, fails: Callable[[bytes], bool], most: int) -> int | None:
    """The position in the compiled text, from 0; None where it cannot be said for what it may
    cost. `fails` says whether a compiled part fails as the whole did, and is asked `most` times
    at the most; `function` is the one that the error names, if any."""
    envelope = _fields(compiled)
    checked = _fields(next(_messages(envelope, _VALUE), b""))
    whole = _part(next(_messages(checked, _EXPR), b""))
    places = _places(next(_messages(checked, _SOURCE), b""))
    found, left, macros = whole, most, MOST_MACROS
    while True:
        for part in found.alone:
            left -= 1
            macros -= part.loops
            if left < 0 or macros < 0:
                return None
            if fails(_compiled(envelope, checked, part)):
                found = part
                break
        else:
            break
    if found.inside and function:
        named = [part for part in _all(found) if part.function == function]
        if len(named) != 1:
            return None
        found = named[0]
    return places.get(found.number)


def _all(part: Part) -> Iterator[Part]:
    for inner in (*part.alone, *part.inside):
        yield inner
        yield from _all(inner)


def _part(raw: bytes) -> Part:
    fields = _fields(raw)
    number = next((value for key, value in fields if key == _ID and isinstance(value, int)), 0)
    for key, value in fields:
        if key not in (_SELECT, _CALL, _LIST, _STRUCT, _MACRO) or not isinstance(value, bytes):
            continue
        inner = _fields(value)
        if key == _CALL:
            name = next(_messages(inner, 2), b"").decode()
            return _made(number, name, raw, _parts(inner, 1, 3))
        if key == _MACRO:
            return Part(number, "", raw, _parts(inner, 2), _parts(inner, 5, 6, 7), loops=True)
        if key == _STRUCT:
            entries = (_fields(entry) for entry in _messages(inner, 2))
            return _made(number, "", raw, tuple(p for e in entries for p in _parts(e, 3, 4)))
        return _made(number, "", raw, _parts(inner, 1))
    return _made(number, "", raw, ())


def _made(number: int, function: str, raw: bytes, alone: tuple[Part, ...]) -> Part:
    return Part(number, function, raw, alone, loops=any(part.loops for part in alone))


def _parts(fields: Fields, *keys: int) -> tuple[Part, ...]:
    return tuple(_part(raw) for key in keys for raw in _messages(fields, key))


def _places(source: bytes) -> dict[int, int]:
    """Of parts, by number."""
    entries = (dict(_fields(entry)) for entry in _messages(_fields(source), _POSITIONS))
    pairs = ((entry.get(1, 0), entry.get(2, 0)) for entry in entries)
    return {n: at for n, at in pairs if isinstance(n, int) and isinstance(at, int)}


def _compiled(envelope: Fields, checked: Fields, part: Part) -> bytes:
    inner = b"".join(_written(k, part.raw if k == _EXPR else v) for k, v in checked)
    return b"".join(_written(k, inner if k == _VALUE else v) for k, v in envelope)


# Protocol Buffers, as far as it goes here.


def _messages(fields: Fields, number: int) -> Iterator[bytes]:
    return (value for key, value in fields if key == number and isinstance(value, bytes))


def _fields(data: bytes) -> Fields:
    """Integers, and the bytes of everything that has a length; numbers of a fixed size, which are
    constants, are left out."""
    found: Fields = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        kind = key & 7
        if kind == 0:
            value, at = _varint(data, at)
            found.append((key >> 3, value))
        elif kind == 2:
            length, at = _varint(data, at)
            found.append((key >> 3, data[at : at + length]))
            at += length
        else:
            at += 8 if kind == 1 else 4
    return found


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at


def _written(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    return _number(number << 3 | 2) + _number(len(value)) + value


def _number(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    found.append(value)
    return bytes(found)
