"""Compares the contracts with those of the last release (the newest tag `v…` on this history)."""

import subprocess
import sys


def main() -> int:
    found = subprocess.run(
        ["git", "describe", "--tags", "--match", "v*", "--abbrev=0"],
        capture_output=True,
        text=True,
        check=False,
    )
    if found.returncode != 0:
        print("contracts: no release yet, so there is nothing that could break")
        return 0
    tag = found.stdout.strip()
    against = f".git#tag={tag},subdir=proto"
    done = subprocess.run(["buf", "breaking", "proto", "--against", against], check=False)
    print(f"contracts: compared with {tag}")
    return done.returncode


if __name__ == "__main__":
    sys.exit(main())
