"""The command line."""

from __future__ import annotations

import os

os.environ.setdefault("GRPC_VERBOSITY", "ERROR")  # grpc prints its own lines otherwise

import typer

from cli import apps, cluster, dead, doctor, playbooks, scenario, servers, steering, traces

app = typer.Typer(
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    help="magicflow: draw a graph of functions, freeze it, switch it live, trigger it, trust it.",
    epilog="Server and token come from MAGICFLOW_ADDRESS and MAGICFLOW_TOKEN.",
)
app.command("dev")(servers.dev)
app.command("serve")(servers.serve)
app.add_typer(apps.app, name="app")
app.add_typer(apps.grants, name="grant")
app.add_typer(playbooks.app, name="playbook")
app.command("trigger")(traces.trigger)
app.add_typer(steering.app, name="trace")  # traces.app, with the verbs that steer
app.add_typer(apps.workers, name="worker")
app.add_typer(scenario.app, name="scenario")
app.command("cluster")(cluster.cluster)
app.add_typer(dead.app, name="dead")
app.command("doctor")(doctor.doctor)


def run() -> None:
    """The entry point."""
    try:
        import uvloop

        uvloop.install()
    except ImportError:
        pass
    app()


if __name__ == "__main__":
    run()
