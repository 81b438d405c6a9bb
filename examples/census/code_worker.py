"""A worker of the app `code`: looks into Python files."""

from typing import Any

import analysis

import magicflow

worker = magicflow.Worker(slots=8, worker_id="code-1")


@worker.function("code/count", description="Lines and bytes of files.")
def count(files: list[str]) -> dict[str, int]:
    return analysis.count(files)


@worker.function("code/imports", description="What files import.")
def imports(files: list[str]) -> dict[str, Any]:
    try:
        return analysis.imports(files)
    except analysis.DoesNotParse as error:
        raise magicflow.TaskError(
            "DOES_NOT_PARSE", str(error), retryable=False, details={"broken": error.broken}
        ) from error


@worker.function("code/unparsed", description="What the files import that do parse.")
def unparsed(files: list[str], error: dict[str, Any], ctx: magicflow.Context) -> dict[str, Any]:
    ctx.log.info("%s", error["message"])
    return analysis.imports(files, tolerant=True)


@worker.function("code/complexity", description="Functions, classes and branches.")
def complexity(files: list[str]) -> dict[str, Any]:
    return analysis.complexity(files)


if __name__ == "__main__":
    worker.run()
