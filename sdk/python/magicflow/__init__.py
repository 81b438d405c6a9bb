"""magicflow for Python: workers that offer functions, clients that start traces.

A worker::

    import magicflow

    worker = magicflow.Worker()

    @worker.function("shop/price")
    def price(sku: str, qty: int = 1) -> dict:
        return {"total": 250 * qty, "sku": sku}

    worker.run()

A client::

    with magicflow.SyncClient() as client:
        print(client.run("shop/order", {"sku": "a1", "qty": 4}))
"""

from magicflow.client import Client, TraceHandle
from magicflow.connection import Tls
from magicflow.context import Context, current_context
from magicflow.errors import (
    AlreadyExists,
    Conflict,
    DeadlineExceeded,
    Denied,
    Exhausted,
    Internal,
    Invalid,
    MagicflowError,
    NotFound,
    TaskError,
    TraceFailed,
    Unauthenticated,
    Unavailable,
    Unimplemented,
    Violation,
    WrongState,
)
from magicflow.playbook import Node, Playbook, Retry
from magicflow.sync_client import SyncClient, SyncTraceHandle
from magicflow.worker import Worker

__all__ = [
    "AlreadyExists",
    "Client",
    "Conflict",
    "Context",
    "DeadlineExceeded",
    "Denied",
    "Exhausted",
    "Internal",
    "Invalid",
    "MagicflowError",
    "Node",
    "NotFound",
    "Playbook",
    "Retry",
    "SyncClient",
    "SyncTraceHandle",
    "TaskError",
    "Tls",
    "TraceFailed",
    "TraceHandle",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "Violation",
    "Worker",
    "WrongState",
    "current_context",
]
