"""Dispatchers on hosts of their own, and the cable of one is pulled: packets vanish, as they do
where hosts do, and nobody is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.system.rigs.apart import Field, separate
from tests.system.rigs.namespaces import Namespace, serve_away
from tests.system.rigs.proxy import Proxy
from tests.system.rigs.wired import WiredStack

pytestmark = [pytest.mark.timeout(240)]


async def test_every_trace_ends_when_the_cable_of_a_dispatcher_was_pulled(tmp_path: Path) -> None:
    with (
        WiredStack(tmp_path) as stack,
        Namespace(0) as near,
        Namespace(1) as far,
        # The servers listen on this host's loopback; at the end of each cable is a way to them.
        Proxy(stack.nats.port, listen=near.outside) as nats_near,
        Proxy(stack.etcd.port, listen=near.outside) as etcd_near,
        Proxy(stack.nats.port, listen=far.outside) as nats_far,
        Proxy(stack.etcd.port, listen=far.outside) as etcd_far,
    ):
        stack.serve_together(
            lambda: stack.serve_with("dispatcher"),
            lambda: serve_away(stack, near, "near", nats_near.address, etcd_near.address),
            lambda: serve_away(stack, far, "far", nats_far.address, etcd_far.address),
        )
        field = Field(stack, frozenset(("dispatcher", "near", "far")), ("dispatcher",))
        print(await separate(field, "cable pulled", far.pull, far.plug))
        for program in stack.programs.values():
            program.stop()
