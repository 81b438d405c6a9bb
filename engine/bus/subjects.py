"""Names on the bus, in one place."""

from __future__ import annotations

TRIGGER_STREAM = "FLOW_TRIGGER"
TASK_STREAM = "FLOW_TASK"
DEAD_STREAM = "FLOW_DEAD"
CANCEL = "flow.cancel"
PROJECTED = "flow.projected"
LOAD = "flow.load"
EVERY_DONE = "flow.done.*"
EVERY_BEGAN = "flow.began.*"


def log_stream(partition: int) -> str:
    return f"FLOW_LOG_{partition}"


def log_subject(partition: int) -> str:
    return f"flow.log.{partition}"


def checkpoint_stream(partition: int) -> str:
    return f"FLOW_CHECKPOINT_{partition}"


def checkpoint_subject(partition: int) -> str:
    return f"flow.checkpoint.{partition}"


def trigger_subject(partition: int, priority: int) -> str:
    return f"flow.trigger.{partition}.{priority}"


def task_subject(app: str, function: str, priority: int) -> str:
    return f"flow.task.{app}.{function}.{priority}"


def stream_of(subject: str) -> str:
    """The queue that a trigger's or a task's subject belongs to."""
    return TRIGGER_STREAM if subject.startswith("flow.trigger.") else TASK_STREAM


def dead_subject(origin: str) -> str:
    """Where a frame is put aside that came from `origin`."""
    return f"flow.dead.{origin.removeprefix('flow.')}"


def function_of(task_subject: str) -> str:
    """`app/name`."""
    _, _, app, name, *_ = task_subject.split(".")
    return f"{app}/{name}"


def done_subject(partition: int) -> str:
    """Ends of traces: frames of (trace, outcome). Waiters listen to all partitions at once."""
    return f"flow.done.{partition}"


def began_subject(partition: int) -> str:
    """Begins of attempts: frames of (trace, node, attempt, worker, time)."""
    return f"flow.began.{partition}"
