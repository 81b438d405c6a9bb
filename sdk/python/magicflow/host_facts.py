"""Where this process runs, from the standard library alone."""

from __future__ import annotations

import os
import platform
import socket
from pathlib import Path

from magicflow.v1.worker_pb2 import HostFacts


def host_facts() -> HostFacts:
    """Facts as of now; what a platform does not tell stays zero."""
    facts = HostFacts(
        host=socket.gethostname(),
        pid=os.getpid(),
        os=f"{platform.system()} {platform.release()}",
        cpus=os.cpu_count() or 0,
    )
    page = os.sysconf("SC_PAGE_SIZE") if hasattr(os, "sysconf") else 0
    if page and "SC_PHYS_PAGES" in os.sysconf_names:
        facts.memory_bytes = page * os.sysconf("SC_PHYS_PAGES")
    try:
        facts.resident_bytes = page * int(Path("/proc/self/statm").read_text().split()[1])
    except OSError:
        facts.resident_bytes = 0
    if hasattr(os, "getloadavg"):
        facts.load = os.getloadavg()[0]
    return facts
