"""Where pictures go."""

from __future__ import annotations

import sys
from pathlib import Path

from cli.output import Exit, err, fail


def save_svg(file: Path, picture: str) -> None:
    """Writes the file; `-` is standard output."""
    if str(file) == "-":
        sys.stdout.write(picture)
        return
    try:
        file.write_text(picture, "utf-8")
    except OSError as error:
        fail(f"the picture cannot be written: {error}", Exit.INVALID)
    err.print(f"{file} written", highlight=False, markup=False, soft_wrap=True)
