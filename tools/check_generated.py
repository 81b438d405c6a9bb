"""Fails if generating anew would change a committed stub."""

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = (Path("sdk/python/magicflow/v1"), Path("engine/snapshots/etcd"))
SOURCES = ("proto", "tools", "buf.yaml", "buf.gen.yaml", *map(str, FOLDERS))


def stubs(root: Path) -> dict[str, bytes]:
    """Generated files by name."""
    return {
        str(file.relative_to(root)): file.read_bytes()
        for folder in FOLDERS
        for file in sorted((root / folder).glob("*_pb2*"))
    }


def main() -> int:
    committed = stubs(ROOT)
    with tempfile.TemporaryDirectory() as scratch:
        copy = Path(scratch)
        for name in SOURCES:
            source, target = ROOT / name, copy / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if source.is_dir():
                shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"))
            else:
                shutil.copy(source, target)
        for folder in FOLDERS:
            for file in (copy / folder).glob("*_pb2*"):
                file.unlink()
        subprocess.run(["buf", "generate"], cwd=copy, check=True)
        subprocess.run(
            ["sh", "engine/snapshots/etcd/generate.sh", sys.executable], cwd=copy, check=True
        )
        fresh = stubs(copy)
    changed = sorted(n for n in committed.keys() | fresh.keys() if committed.get(n) != fresh.get(n))
    for name in changed:
        print(f"differs from its source: {name}; run `make generate` and commit", file=sys.stderr)
    if not changed:
        print(f"{len(fresh)} generated files are as their sources say")
    return 1 if changed else 0


if __name__ == "__main__":
    sys.exit(main())
