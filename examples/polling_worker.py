"""A worker without a worker SDK, in calls that every language with gRPC has: docs/sdk/protocol.md.

python examples/polling_worker.py 127.0.0.1:7233 [TOKEN]
"""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import threading
import time

import grpc
from google.protobuf.duration_pb2 import Duration

from magicflow.v1 import dispatch_service_pb2 as pb
from magicflow.v1.dispatch_service_pb2_grpc import DispatchServiceStub
from magicflow.v1.error_pb2 import Failure
from magicflow.v1.payload_pb2 import Payload
from magicflow.v1.task_pb2 import Task, TaskId, TaskResult
from magicflow.v1.worker_pb2 import Function, WorkerHeartbeat, WorkerHello

FUNCTIONS = {"shop/upper": lambda value: value["text"].upper()}
PATIENCE = 30.0  # seconds for one call
AGAIN = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Session:
    """One after the other, until SIGTERM: open, poll, run, complete; meanwhile, signs of life."""

    def __init__(self, address: str, token: str) -> None:
        self.dispatch = DispatchServiceStub(grpc.insecure_channel(address))
        self.metadata = (("authorization", f"Bearer {token}"),) if token else ()
        self.running: list[TaskId] = []
        self.beats = 0
        self.id = ""
        self.stopping = threading.Event()

    def open(self) -> None:
        """Returns once there is a session. It is told what runs still, so that nobody else gets
        that."""
        hello = WorkerHello(
            functions=[Function(name=name) for name in FUNCTIONS], slots=1, resumed=self.running
        )
        response = self.call(self.dispatch.Poll, pb.PollRequest(hello=hello))
        while not response.HasField("welcome"):
            response = self.call(self.dispatch.Poll, pb.PollRequest(hello=hello))
        self.interval = response.welcome.heartbeat_interval.ToSeconds()
        self.beats = 0
        self.id = response.welcome.session

    def beat(self) -> None:
        while not self.stopping.wait(self.interval):
            self.beats += 1
            heart = WorkerHeartbeat(number=self.beats, running=self.running)
            request = pb.HeartbeatRequest(session=self.id, heartbeat=heart)
            with contextlib.suppress(grpc.RpcError):  # the main thread hears it, too
                self.dispatch.Heartbeat(request, timeout=PATIENCE, metadata=self.metadata)

    def work(self) -> None:
        request = pb.PollRequest(session=self.id, max_tasks=1, wait=Duration(seconds=2))
        for task in self.call(self.dispatch.Poll, request).tasks:
            self.running = [task.id]
            done = pb.CompleteRequest(results=[run(task)])
            while self.running:  # a result is kept until there is a receipt for it
                done.session = self.id
                if self.call(self.dispatch.Complete, done).receipts:
                    self.running = []

    def call(self, method, request):  # type: ignore[no-untyped-def]
        """An empty answer where the call has to be made again."""
        try:
            return method(request, timeout=PATIENCE, metadata=self.metadata)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:  # the session is over
                self.open()
            elif error.code() in AGAIN:
                time.sleep(0.5)
            else:
                raise
        return pb.PollResponse() if isinstance(request, pb.PollRequest) else pb.CompleteResponse()


def run(task: Task) -> TaskResult:
    result = TaskResult(id=task.id, epoch=task.epoch, mac=task.mac)
    result.began_at.GetCurrentTime()
    try:
        output = FUNCTIONS[task.function](json.loads(task.input.data))
        result.output.CopyFrom(Payload(data=json.dumps(output).encode()))
    except Exception as error:
        result.failure.CopyFrom(
            Failure(code="FUNCTION_ERROR", message=str(error)[:1_000], retryable=True)
        )
    result.ended_at.GetCurrentTime()
    return result


def main(address: str, token: str = "") -> None:
    session = Session(address, token)
    signal.signal(signal.SIGTERM, lambda *_: session.stopping.set())
    session.open()
    threading.Thread(target=session.beat, daemon=True).start()
    while not session.stopping.is_set():
        session.work()


if __name__ == "__main__":
    main(*sys.argv[1:])
