"""The bus over NATS JetStream: logs, queues, notes."""

from engine.bus.jetstream.bus import JetStreamBus, connect
from engine.bus.jetstream.logs import JetStreamLog

__all__ = ["JetStreamBus", "JetStreamLog", "connect"]
