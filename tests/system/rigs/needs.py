"""What a rig needs of the machine. Missing, it fails with a sentence that says how to get it; it
never skips."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

PACKAGES = {  # program to the Debian package that has it
    "ip": "iproute2",
    "mkfs.ext4": "e2fsprogs",
    "mount": "mount",
    "umount": "mount",
    "nsenter": "util-linux",
    "faketime": "faketime",
}


def program(name: str) -> str:
    """The path of a program. Errors: `AssertionError` that names its package."""
    found = shutil.which(name) or shutil.which(name, path="/usr/sbin:/sbin")
    assert found is not None, (
        f"there is no {name}: install the Debian package {PACKAGES[name]} "
        f"(apt-get install {PACKAGES[name]})"
    )
    return found


def library(pattern: str, package: str) -> Path:
    """A shared library under /usr/lib. Errors: `AssertionError`."""
    found = next(Path("/usr/lib").glob(pattern), None)
    assert found is not None, (
        f"there is no /usr/lib/{pattern}: install the Debian package {package} "
        f"(apt-get install {package})"
    )
    return found


def root(what: str) -> None:
    """Errors: `AssertionError` for everybody but root."""
    assert os.geteuid() == 0, f"{what} needs root: run these tests as root"


def run(command: Sequence[str]) -> None:
    """Runs a program to its end. Errors: `AssertionError` with what it printed."""
    path = program(command[0])
    done = subprocess.run([path, *command[1:]], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.strip() or done.stdout}"
