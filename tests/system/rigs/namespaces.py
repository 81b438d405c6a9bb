"""Network namespaces: hosts of their own, each on a cable that can be pulled."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Self

from tests.servers import free_port
from tests.system.rigs import needs
from tests.system.rigs.wired import WiredStack
from tests.system.stack import Program


class Namespace:
    """A network of two: `outside` is this host's address on the cable, `inside` the other's."""

    def __init__(self, number: int) -> None:
        needs.root("a network namespace")
        needs.program("ip")
        place = os.getpid() % 16_384 * 4 + number
        self.name = f"magicflow-{place}"
        self._cable = f"mf{place}"
        network = f"10.213.{place // 64 % 256}"
        self.outside = f"{network}.{place % 64 * 4 + 1}"
        self.inside = f"{network}.{place % 64 * 4 + 2}"

    def __enter__(self) -> Self:
        needs.run(["ip", "netns", "add", self.name])
        try:
            self._lay_cable()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        needs.run(["ip", "netns", "delete", self.name])

    def pull(self) -> None:
        """No packet passes, and nobody is told."""
        needs.run(["ip", "link", "set", self._cable, "down"])

    def plug(self) -> None:
        needs.run(["ip", "link", "set", self._cable, "up"])

    def _lay_cable(self) -> None:
        cable, name = self._cable, self.name
        there = ["ip", "-n", name]
        peer = ["type", "veth", "peer", "name", "eth0", "netns", name]
        needs.run(["ip", "link", "add", cable, *peer])
        needs.run(["ip", "address", "add", f"{self.outside}/30", "dev", cable])
        needs.run(["ip", "link", "set", cable, "up"])
        needs.run([*there, "address", "add", f"{self.inside}/30", "dev", "eth0"])
        needs.run([*there, "link", "set", "eth0", "up"])
        needs.run([*there, "link", "set", "lo", "up"])


class Away(Program):
    """A service in a namespace. It asks for tokens, as it can be reached from other hosts."""

    def __init__(self, namespace: Namespace, directory: Path, settings: dict[str, str]) -> None:
        super().__init__(directory, ["serve", "dispatcher"], free_port(), settings)
        self._namespace = namespace
        self.address = f"{namespace.inside}:{self.port}"

    def command(self) -> Sequence[str]:
        return [needs.program("ip"), "netns", "exec", self._namespace.name, *super().command()]

    def ready(self) -> bool:
        with socket.create_connection((self._namespace.inside, self.port), timeout=0.5):
            return True


def serve_away(stack: WiredStack, namespace: Namespace, name: str, nats: str, etcd: str) -> None:
    """A dispatcher in the namespace."""
    settings = stack.settings(name, nats=f"nats://{nats}", etcd=etcd, auth="required")
    del settings["MAGICFLOW_NATS_MONITOR"]  # no cable leads there
    program = Away(namespace, stack.folder(name), settings)
    stack.programs[name] = program
    program.start()
