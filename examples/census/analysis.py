"""What the census finds out, as plain functions: used by the workers, and by the direct
computation that checks them."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

LIBRARY = Path(sysconfig.get_path("stdlib"))
# `test` is the interpreter's own test suite: half of all lines, and not everywhere installed.
SKIPPED = {"site-packages", "dist-packages", "__pycache__", "test"}


class DoesNotParse(Exception):
    """Some files are no Python of this version; `broken` names them."""

    def __init__(self, broken: list[str]) -> None:
        super().__init__(f"{len(broken)} files do not parse: {', '.join(broken[:3])}")
        self.broken = broken


def modules() -> list[tuple[str, str]]:
    """(name, path) of every package and module of the standard library installed here."""
    found = []
    for path in sorted(LIBRARY.iterdir()):
        if path.suffix == ".py":
            found.append((path.stem, str(path)))
        elif path.is_dir() and path.name not in SKIPPED and any(path.rglob("*.py")):
            found.append((path.name, str(path)))
    return found


def list_files(path: str) -> list[str]:
    """The Python files of a module or package, sorted."""
    place = Path(path)
    files = [place] if place.is_file() else sorted(place.rglob("*.py"))
    inside = (file for file in files if not SKIPPED & set(file.relative_to(LIBRARY).parts))
    return [str(file) for file in inside]


def count(files: list[str]) -> dict[str, int]:
    """Lines and bytes of files."""
    contents = [Path(file).read_bytes() for file in files]
    return {
        "lines": sum(content.count(b"\n") for content in contents),
        "bytes": sum(map(len, contents)),
    }


def _parse(file: str) -> ast.Module | None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            return ast.parse(Path(file).read_bytes())
        except (SyntaxError, ValueError):
            return None


def imports(files: list[str], *, tolerant: bool = False) -> dict[str, Any]:
    """Names that the files import, and the files that do not parse.

    Errors: `DoesNotParse`, unless tolerant.
    """
    names: set[str] = set()
    broken = []
    for file in files:
        tree = _parse(file)
        if tree is None:
            broken.append(file)
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                names.update(alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                names.add(node.module.partition(".")[0])
    if broken and not tolerant:
        raise DoesNotParse(broken)
    return {"names": sorted(names), "broken": broken}


def complexity(files: list[str]) -> dict[str, Any]:
    """Functions and classes, and the kinds of statements."""
    kinds: Counter[str] = Counter()
    for file in files:
        tree = _parse(file)
        if tree is not None:
            kinds.update(type(node).__name__ for node in ast.walk(tree))
    return {
        "functions": kinds["FunctionDef"] + kinds["AsyncFunctionDef"],
        "classes": kinds["ClassDef"],
        "branches": kinds["If"] + kinds["For"] + kinds["While"] + kinds["Try"],
    }


def census(path: str) -> dict[str, Any]:
    """The whole report of one module, computed here and now."""
    files = list_files(path)
    counted = count(files)
    found = imports(files, tolerant=True)
    deep = complexity(files) if counted["lines"] > 1_000 else {"functions": None, "classes": None}
    return {
        "files": len(files),
        **counted,
        "imports": len(found["names"]),
        "broken": len(found["broken"]),
        "functions": deep["functions"],
        "classes": deep["classes"],
    }
