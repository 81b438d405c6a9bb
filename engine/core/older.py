"""The older dialect of conditions: what it wrote, and what is written instead.

Its functions turned both sides into text or numbers first, so that `gt('abc', -1)` was true; an
expression here never guesses, and says what to write. The older system had two engines for it:
one with six functions, and one with those of a spreadsheet, in any case of letters.
"""

from __future__ import annotations

import re

FUNCTIONS = {
    "equals": "a == b",
    "gt": "a > b",
    "gte": "a >= b",
    "lt": "a < b",
    "lte": "a <= b",
    "contains": 'a.contains("text"), or x in list',
    "getkey": 'a["key"]',
    "getindex": "a[0]",
    "in": "x in [1, 2]",
    "if": "condition ? a : b",
    "iif": "condition ? a : b",
    "len": "len(x)",
    "length": "len(x)",
    "count": "len(x)",
    "abs": "math.abs(x)",
    "max": "math.greatest(a, b)",
    "min": "math.least(a, b)",
    "round": "math.round(double(x))",
    "floor": "math.floor(double(x))",
    "ceil": "math.ceil(double(x))",
    "ceiling": "math.ceil(double(x))",
    "trunc": "math.trunc(double(x))",
    "truncate": "math.trunc(double(x))",
    "sign": "math.sign(x)",
    "sqrt": "math.sqrt(x)",
    "mod": "a % b",
    "ieeeremainder": "a % b",
    "concat": "a + b",
    "pow": "x * x, as often as it takes",
    "power": "x * x, as often as it takes",
    "sum": "a + b; what sums a list is a function of yours",
    "avg": "(a + b) / 2.0; what looks at a list is a function of yours",
    "average": "(a + b) / 2.0; what looks at a list is a function of yours",
    "and": "a and b",
    "or": "a or b",
    "not": "not a",
    "date": 'timestamp("2026-01-31T00:00:00Z")',
    "lower": "a.lowerAscii()",
    "upper": "a.upperAscii()",
}
NO_MORE = (
    *("exp", "log", "log10", "ln", "sin", "cos", "tan", "cot", "asin", "acos", "atan", "atan2"),
    *("sinh", "cosh", "tanh", "degrees", "radians", "rand", "random", "median", "now"),
)
SIGNS = {
    "=~": 'a.matches("pattern")',
    "!~": '!a.matches("pattern")',
    "**": "a * a, or a function of yours",
    "<<": "math.bitShiftLeft(a, b)",
    ">>": "math.bitShiftRight(a, b)",
    "??": "has($.a.b) ? $.a.b : other",
    "<>": "!=",
    "π": "3.141592653589793",
}
SINGLE = {
    "=": "==",
    "&": "&&, or math.bitAnd(a, b) for bits",
    "|": "||, or math.bitOr(a, b) for bits",
    "^": "math.bitXor(a, b)",
    "~": "math.bitNot(a)",
}
WORDS = {
    "and": "and",
    "or": "or",
    "not": "not",
    "in": "in",
    "true": "true",
    "false": "false",
    "null": "null",
    "xor": "a != b, or math.bitXor(a, b) for bits",
    "pi": "3.141592653589793",
    "context": "a reference: $$$, $$ or $.<node>",
}
_VALID = ("and", "or", "not", "in", "true", "false", "null", "len")  # as they are written now

_STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"")
_CALL = re.compile(rf"(?<![.\w$@])({'|'.join((*FUNCTIONS, *NO_MORE))})\s*\(", re.IGNORECASE)
_SINGLE = re.compile(r"(?<![=!<>&|^~])([=&|^~])(?![=&|~])")
_WORD = re.compile(rf"(?<![.\w$@])({'|'.join(WORDS)})\b(?!\s*\()", re.IGNORECASE)
_TUPLE = re.compile(r"\bin\s*\([^()]*,", re.IGNORECASE)
_DATE = re.compile(r"#[^#]*#")
_PARAMETER = re.compile(r"\[(param\d+)\]")
_HEX = re.compile(r"(?<!\w)0X([0-9A-Fa-f]+)")


def replacement(text: str) -> str:
    """What to write instead of what the older dialect wrote, as a sentence; empty when the text
    has nothing of it."""
    bare = _STRING.sub(lambda found: "'" * len(found.group()), text)
    if _TUPLE.search(bare) and not _CALL.match(bare):
        return "a list stands in brackets: x in [1, 2]"
    for written, better in _found(bare):
        if not better:
            return f"nothing replaces {written}: let a function of yours compute it"
        return f"instead of {written} write {better}"
    return ""


def _found(bare: str) -> list[tuple[str, str]]:
    """What was written and what is written instead, the surest first."""
    calls = [(name, FUNCTIONS.get(name.lower(), "")) for name in _CALL.findall(bare)]
    words = [(word, WORDS[word.lower()]) for word in _WORD.findall(bare)]
    return [
        *((f"{name}()", better) for name, better in calls if name not in _VALID or name == "in"),
        *((date, 'timestamp("2026-01-31T00:00:00Z")') for date in _DATE.findall(bare)),
        *((f"[{name}]", "the reference itself, $.a.b") for name in _PARAMETER.findall(bare)),
        *((f"0X{digits}", f"0x{digits}") for digits in _HEX.findall(bare)),
        *((sign, better) for sign, better in SIGNS.items() if sign in bare),
        *((word, better) for word, better in words if word not in _VALID),
        *((sign, SINGLE[sign]) for sign in _SINGLE.findall(bare)),
    ]
