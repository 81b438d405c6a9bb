"""Disks of a test's own: a small one that can be full, and one whose power can be cut."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import Self

from tests.system.rigs import needs

# Small tables, no blocks kept for root, who the servers run as.
FEW_INODES = ("-N", "8192", "-m", "0", "-J", "size=16")


class Memory:
    """A file system in memory that takes up to `size` bytes, mounted on `directory`."""

    def __init__(self, directory: Path, size: int) -> None:
        needs.root("a mount")
        self.directory = directory
        self._size = size

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        size = f"size={self._size}"
        needs.run(["mount", "-t", "tmpfs", "-o", size, "tmpfs", str(self.directory)])
        return self

    def __exit__(self, *_: object) -> None:
        unmount(self.directory)


class LoopDisk:
    """An ext4 file system in an image file, mounted by loop. What is in the image is what the
    kernel has written to the device; the rest is in memory and dies with the power.

    The image is sparse: it takes what was written. It must be large, for JetStream sets room aside
    for streams (4 GiB for triggers) and starts none where the disk could not hold it."""

    def __init__(self, directory: Path, size: int = 16 << 30) -> None:
        needs.root("a loop mount")
        self.image = directory / "disk.img"
        self.directory = directory / "disk"
        self._size = size
        self._ballast = self.directory / "ballast"

    def __enter__(self) -> Self:
        self.directory.mkdir(parents=True, exist_ok=True)
        if not self.image.exists():
            with self.image.open("wb") as image:
                image.truncate(self._size)
            needs.run(["mkfs.ext4", "-q", "-F", *FEW_INODES, str(self.image)])
        needs.run(["mount", "-o", "loop", str(self.image), str(self.directory)])
        return self

    def __exit__(self, *_: object) -> None:
        unmount(self.directory)

    @property
    def free(self) -> int:
        return shutil.disk_usage(self.directory).free

    def fill(self, leave: int) -> None:
        """Somebody else's file takes everything but `leave` bytes."""
        taken = self._ballast.stat().st_size if self._ballast.exists() else 0
        with self._ballast.open("ab") as ballast:
            os.posix_fallocate(ballast.fileno(), taken, self.free - leave)

    def make_room(self) -> None:
        self._ballast.unlink(missing_ok=True)

    def copy_as_the_power_fails(self, directory: Path) -> LoopDisk:
        """A disk with what this one would hold after a power cut at this moment. Nothing is
        flushed; whoever writes should stand still, or the copy is of several moments."""
        directory.mkdir(parents=True, exist_ok=True)
        copy = LoopDisk(directory, self._size)
        subprocess.run(["cp", "--sparse=always", str(self.image), str(copy.image)], check=True)
        return copy


def unmount(directory: Path) -> None:
    """Also when a process that is about to end has a file open there."""
    try:
        needs.run(["umount", str(directory)])
    except AssertionError:
        needs.run(["umount", "--lazy", str(directory)])
