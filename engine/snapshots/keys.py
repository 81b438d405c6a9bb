"""Names in the space where the services agree, in one place."""

from __future__ import annotations

ROOT = "/flow/"
PARTITIONS = "/flow/partition/"
STANDBYS = "/flow/standby/"
DISPATCHERS = "/flow/dispatcher/"
INSTANCES = "/flow/instance/"
WORKERS = "/flow/worker/"
PLAYBOOKS = "/flow/playbook/"
NAMES = "/flow/name/"
APPS = "/flow/app/"
SNAPSHOTS = "/flow/snapshot/"
REVOKED = "/flow/revoked/"
FUNCTIONS = "/flow/function/"
PROJECTIONS = "/flow/projection/"
GRANTS = "/flow/grant/"
CLUSTER = "/flow/cluster"
LEADER = "/flow/leader"
REPORT = "/flow/report"


def partition(number: int) -> str:
    return f"{PARTITIONS}{number}"


def standby(number: int) -> str:
    """Holds the name of the instance that has read the partition and is ready to own it."""
    return f"{STANDBYS}{number}"


def snapshot(playbook_id: int, snapshot_id: int) -> str:
    return f"{SNAPSHOTS}{playbook_id}/{snapshot_id}"


def active(playbook_id: int) -> str:
    """Holds `version_<snapshot id>`."""
    return f"{PLAYBOOKS}{playbook_id}"


def name(full_name: str) -> str:
    """Holds the playbook's number."""
    return f"{NAMES}{full_name}"


def app(app_name: str) -> str:
    return f"{APPS}{app_name}"


def worker(worker_id: str) -> str:
    return f"{WORKERS}{worker_id}"


def revoked(token_id: str) -> str:
    return f"{REVOKED}{token_id}"


def function(full_name: str) -> str:
    return f"{FUNCTIONS}{full_name}"


def grant(grantee: str, target: str) -> str:
    """There while the app may call the other app's `target` (`app/name` or `app/*`)."""
    return f"{GRANTS}{grantee}/{target}"


def projection(partition_number: int) -> str:
    return f"{PROJECTIONS}{partition_number}"
