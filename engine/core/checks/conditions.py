"""What an expression says, as far as it can be reasoned about without data.

`expressions` hands the text to CEL, which keeps its tree to itself. This reads the same grammar
again, so that publishing can compare conditions and find the types of values. What it does not
follow becomes `Other`: unknown, never wrong.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from engine.core.references import Filter, Reader, Reference, ReferenceSyntaxError, Segment

MAX_DEPTH = 24  # brackets in brackets
MAX_SIGNS = 150  # which bounds the depth of the tree


@dataclass(frozen=True, slots=True)
class Constant:
    """None, a boolean, a number or a text; 1 is 1.0 and is not true."""

    value: Any

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Constant):
            return False
        same_kind = isinstance(self.value, bool) is isinstance(other.value, bool)
        return same_kind and bool(self.value == other.value)

    def __hash__(self) -> int:
        return hash(self.value)


@dataclass(frozen=True, slots=True)
class Read:
    """The value of a reference. Two are equal when they lead to the same place."""

    place: tuple[str, str, tuple[Segment, ...]]
    text: str

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Read) and self.place == other.place

    def __hash__(self) -> int:
        return hash(self.place[:2])


@dataclass(frozen=True, slots=True)
class Has:
    read: Read


@dataclass(frozen=True, slots=True)
class Compare:
    """`sign` is one of == != < <= > >= in."""

    sign: str
    left: Term
    right: Term


@dataclass(frozen=True, slots=True)
class And:
    left: Term
    right: Term


@dataclass(frozen=True, slots=True)
class Or:
    left: Term
    right: Term


@dataclass(frozen=True, slots=True)
class Not:
    term: Term


@dataclass(frozen=True, slots=True)
class Choose:
    """`condition ? yes : no`."""

    condition: Term
    yes: Term
    no: Term


@dataclass(frozen=True, slots=True)
class Row:
    """`[a, b]`."""

    items: tuple[Term, ...]


@dataclass(frozen=True, slots=True)
class Call:
    """`name(…)`, or `subject.name(…)` with the subject as the first argument."""

    name: str
    arguments: tuple[Term, ...]
    method: bool = False


@dataclass(frozen=True, slots=True)
class Arithmetic:
    """`sign` is one of + - * / %."""

    sign: str
    left: Term
    right: Term


@dataclass(frozen=True, slots=True)
class Other:
    """What is not followed. Equal texts mean the same; `parts` are what could be read in it."""

    text: str
    parts: tuple[Term, ...] = ()


Term = Constant | Read | Has | Compare | And | Or | Not | Choose | Row | Call | Arithmetic | Other


@lru_cache(maxsize=4_096)
def read_condition(text: str) -> Term:
    """The tree of an expression. `Other` for what is malformed or too large."""
    try:
        return _Parser(text).whole()
    except (_NotFollowed, ReferenceSyntaxError):
        return Other(_plain(text))


class _NotFollowed(Exception):
    pass


_TOKEN = re.compile(
    r"""\s*(?:
        (?P<number>(?:\d+\.\d+|\.\d+|\d+)(?:[eE][-+]?\d+)?(?![\w.]))
      | (?P<text>"[^"\\]*"|'[^'\\]*')
      | (?P<word>[A-Za-z_]\w*)
      | (?P<sign>==|!=|<=|>=|&&|\|\||[-+*/%<>!?:.,()\[\]{}])
    )""",
    re.VERBOSE,
)
_REFERENCE = re.compile(r"\s*(?=[$@])")
_WORDS = {"and": "&&", "or": "||", "not": "!"}
_CONSTANTS = {"true": True, "false": False, "null": None}
_RELATIONS = ("==", "!=", "<", "<=", ">", ">=", "in")


@dataclass(frozen=True, slots=True)
class _Token:
    kind: str  # number, text, word, sign, reference or end
    value: Any
    start: int
    end: int


class _Parser:
    """By the precedences of CEL. `_depth` and `_signs` bound the recursion."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._reader = Reader(text, _opaque_filter)
        self._depth = 0
        self._signs = 0
        self._token = self._next(0)

    def whole(self) -> Term:
        term = self._choose()
        self._expect_end()
        return term

    # Tokens.

    def _next(self, at: int) -> _Token:
        reference = _REFERENCE.match(self._text, at)
        if reference is not None:
            found, end = self._reader.read(reference.end())
            return _Token("reference", found, reference.end(), end)
        match = _TOKEN.match(self._text, at)
        if match is None or match.lastgroup is None:
            if self._text[at:].strip():
                raise _NotFollowed
            return _Token("end", "", at, at)
        kind, value, end = match.lastgroup, match.group(match.lastgroup), match.end()
        after = self._text[end : end + 1]
        if kind in ("text", "word") and after and after in "\"'":
            raise _NotFollowed  # raw and triple-quoted strings
        if value == "/" and after == "/":
            raise _NotFollowed  # a comment
        return _Token(kind, value, match.start(kind), end)

    def _take(self) -> _Token:
        token = self._token
        self._token = self._next(token.end)
        return token

    def _sign(self) -> str:
        """The sign that stands here, words for signs included; empty for anything else."""
        if self._token.kind == "sign":
            return str(self._token.value)
        if self._token.kind == "word":
            word = self._token.value
            return _WORDS.get(word, word if word == "in" else "")
        return ""

    def _accept(self, *signs: str) -> str:
        sign = self._sign()
        if sign in signs:
            self._signs += 1
            if self._signs > MAX_SIGNS:
                raise _NotFollowed
            self._take()
            return sign
        return ""

    def _expect(self, sign: str) -> None:
        if not self._accept(sign):
            raise _NotFollowed

    def _expect_end(self) -> None:
        if self._token.kind != "end":
            raise _NotFollowed

    # The grammar, weakest binding first.

    def _choose(self) -> Term:
        self._depth += 1
        if self._depth > MAX_DEPTH:
            raise _NotFollowed
        term = self._or()
        if self._accept("?"):
            yes = self._or()
            self._expect(":")
            term = Choose(term, yes, self._choose())
        self._depth -= 1
        return term

    def _or(self) -> Term:
        term = self._and()
        while self._accept("||"):
            term = Or(term, self._and())
        return term

    def _and(self) -> Term:
        term = self._relation()
        while self._accept("&&"):
            term = And(term, self._relation())
        return term

    def _relation(self) -> Term:
        term = self._binary(("+", "-"), lambda: self._binary(("*", "/", "%"), self._unary))
        while sign := self._accept(*_RELATIONS):
            right = self._binary(("+", "-"), lambda: self._binary(("*", "/", "%"), self._unary))
            term = Compare(sign, term, right)
        return term

    def _binary(self, signs: tuple[str, ...], operand: Callable[[], Term]) -> Term:
        term = operand()
        while sign := self._accept(*signs):
            term = Arithmetic(sign, term, operand())
        return term

    def _unary(self) -> Term:
        signs = []
        while sign := self._accept("!", "-"):
            signs.append(sign)
        term = self._member()
        for sign in reversed(signs):
            term = Not(term) if sign == "!" else _negative(term)
        return term

    def _member(self) -> Term:
        start = self._token.start
        term = self._primary()
        while True:
            if self._accept("."):
                name = self._take()
                if name.kind != "word":
                    raise _NotFollowed
                if self._accept("("):
                    term = Call(name.value, (term, *self._list(")")), method=True)
                else:
                    term = Other(self._since(start), (term,))
            elif self._accept("["):
                index = self._choose()
                self._expect("]")
                term = Other(self._since(start), (term, index))
            else:
                return term

    def _primary(self) -> Term:
        token = self._token
        if token.kind == "reference":
            self._take()
            return _read(token.value)
        if token.kind == "number":
            self._take()
            return Constant(_number(token.value))
        if token.kind == "text":
            self._take()
            return Constant(token.value[1:-1])
        if token.kind == "word":
            return self._named()
        if self._accept("("):
            term = self._choose()
            self._expect(")")
            return term
        if self._accept("["):
            return Row(self._list("]"))
        raise _NotFollowed

    def _named(self) -> Term:
        token = self._take()
        if token.value in _CONSTANTS:
            return Constant(_CONSTANTS[token.value])
        if not self._accept("("):
            return Other(token.value)
        arguments = self._list(")")
        if token.value == "has" and len(arguments) == 1 and isinstance(arguments[0], Read):
            return Has(arguments[0])
        name = "size" if token.value == "len" else token.value
        return Call(name, arguments)

    def _list(self, closer: str) -> tuple[Term, ...]:
        terms: list[Term] = []
        while not self._accept(closer):
            terms.append(self._choose())
            if not self._accept(","):
                self._expect(closer)
                break
        return tuple(terms)

    def _since(self, start: int) -> str:
        return _plain(self._text[start : self._token.start])


def _plain(text: str) -> str:
    """The text without the white space that means nothing."""
    return text.strip() if "'" in text or '"' in text else " ".join(text.split())


def _read(reference: Reference) -> Read:
    return Read((reference.root.value, reference.code, reference.path), reference.text)


def _number(text: str) -> int | float:
    return int(text) if text.isdigit() else float(text)


def _negative(term: Term) -> Term:
    if isinstance(term, Constant) and isinstance(term.value, int | float):
        return Constant(-term.value)
    return Arithmetic("-", Constant(0), term)


def _never(candidate: Any, scope: Any) -> bool:
    return False


def _opaque_filter(text: str, position: int) -> Filter:
    return Filter(_plain(text), _never)


def parts_of(term: Term) -> Iterator[Term]:
    """What the term is made of, one level down, in the order of the text."""
    match term:
        case And() | Or() | Compare() | Arithmetic():
            yield term.left
            yield term.right
        case Not():
            yield term.term
        case Has():
            yield term.read
        case Choose():
            yield from (term.condition, term.yes, term.no)
        case Row():
            yield from term.items
        case Call():
            yield from term.arguments
        case Other():
            yield from term.parts
        case _:
            return
