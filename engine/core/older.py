"""The older dialect of conditions: what it wrote, and what is written instead.

Its functions turned both sides into text or numbers first, so that `gt('abc', -1)` was true; an
expression here never guesses, and says what to write.
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
    "getKey": 'a["key"]',
    "getIndex": "a[0]",
    "in": "x in [1, 2]",
    "iif": "condition ? a : b",
    "abs": "math.abs(x)",
    "max": "math.greatest(a, b)",
    "min": "math.least(a, b)",
    "round": "math.round(x)",
    "truncate": "math.trunc(x)",
    "mod": "a % b",
    "concat": "a + b",
}
SIGNS = {
    "=~": 'a.matches("pattern")',
    "!~": '!a.matches("pattern")',
    "**": "a * a",
    "<<": "math.bitShiftLeft(a, b)",
    ">>": "math.bitShiftRight(a, b)",
    "??": "has($.a.b) ? $.a.b : other",
    "<>": "!=",
}
SINGLE = {
    "=": "==",
    "&": "&&, or math.bitAnd(a, b) for bits",
    "|": "||, or math.bitOr(a, b) for bits",
    "^": "math.bitXor(a, b)",
    "~": "math.bitNot(a)",
}
WORDS = {"AND": "and", "OR": "or", "NOT": "not", "TRUE": "true", "FALSE": "false"}

_STRING = re.compile(r"'(?:\\.|[^'\\])*'|\"(?:\\.|[^\"\\])*\"")
_CALL = re.compile(r"(?<![.\w])(" + "|".join(FUNCTIONS) + r")\s*\(")
_SINGLE = re.compile(r"(?<![=!<>&|^~])([=&|^~])(?![=&|~])")
_WORD = re.compile(r"(?<![.\w$])(" + "|".join(WORDS) + r")\b")
_TUPLE = re.compile(r"\bin\s*\([^()]*,")


def replacement(text: str) -> str:
    """What to write instead of what the older dialect wrote, as a sentence; empty when the text
    has nothing of it."""
    bare = _STRING.sub(lambda found: "'" * len(found.group()), text)
    if _TUPLE.search(bare) and not _CALL.match(bare):
        return "a list stands in brackets: x in [1, 2]"
    for written, better in (
        *((found.group(1) + "()", FUNCTIONS[found.group(1)]) for found in _CALL.finditer(bare)),
        *((sign, better) for sign, better in SIGNS.items() if sign in bare),
        *((found.group(1), WORDS[found.group(1)]) for found in _WORD.finditer(bare)),
        *((found.group(1), SINGLE[found.group(1)]) for found in _SINGLE.finditer(bare)),
    ):
        return f"instead of {written} write {better}"
    return ""
