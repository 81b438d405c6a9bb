"""A worker of the app `files`: lists files, writes reports."""

from typing import Any

import analysis

import magicflow

worker = magicflow.Worker(slots=8, worker_id="files-1")


@worker.function("files/list", description="The Python files of a module.")
def list_files(path: str) -> dict[str, list[str]]:
    return {"files": analysis.list_files(path)}


@worker.function("files/report", description="Puts the findings of a module together.")
def report(
    module: str,
    files: int,
    count: dict[str, int],
    imports: list[str],
    broken: list[str],
    shape: dict[str, Any],
) -> dict[str, Any]:
    return {
        "module": module,
        "files": files,
        **count,
        "imports": len(imports),
        "broken": len(broken),
        "functions": shape["functions"],
        "classes": shape["classes"],
    }


if __name__ == "__main__":
    worker.run()
