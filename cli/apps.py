"""`magicflow app …`, `magicflow grant …`, `magicflow worker …`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

import magicflow
from cli.output import (
    Exit,
    JsonFlag,
    add_row,
    age,
    command,
    err,
    fail,
    out,
    say,
    show_json,
    whole_number,
)
from magicflow.v1.registry_service_pb2 import App, Balancing, Broker

app = typer.Typer(no_args_is_help=True, help="Apps and their tokens.")
grants = typer.Typer(no_args_is_help=True, help="Who may use whose functions and playbooks.")
workers = typer.Typer(no_args_is_help=True, help="Workers.")

MAX_UINT32 = (1 << 32) - 1
AppName = Annotated[str, typer.Argument(metavar="APP", help="The app's name.")]


@app.command("create")
@command
async def create(
    name: AppName,
    description: Annotated[str, typer.Option(help="For people.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """Make an app and its first token, which is shown once; `app set` gives it limits."""
    async with magicflow.Client() as client:
        token = await client.create_app(name, description)
    if as_json:
        show_json({"app": name, "token": token})
        return
    err.print(f"app [bold]{name}[/] made. Its token, shown this once:", highlight=False)
    print(token)
    err.print("Give it to workers and callers in MAGICFLOW_TOKEN.", highlight=False)


@app.command("set")
@command
async def set_app(
    name: AppName,
    description: Annotated[str | None, typer.Option(help="For people.")] = None,
    enabled: Annotated[
        bool | None, typer.Option("--on/--off", help="Whether triggers are taken.")
    ] = None,
    quota: Annotated[
        float | None, typer.Option(help="Starts per second in the whole cluster; 0: no limit.")
    ] = None,
    in_flight: Annotated[
        int | None, typer.Option(min=0, help="Traces at the same time; more wait; 0: no limit.")
    ] = None,
    require_workers: Annotated[
        bool | None,
        typer.Option(
            "--require-workers/--wait-for-workers",
            help="Refuse triggers while no worker offers a function that they need.",
        ),
    ] = None,
    broker: Annotated[
        list[str] | None,
        typer.Option(
            help="NAME=nats://host:port[,nats://…][*WEIGHT], once per broker; '' takes all away."
        ),
    ] = None,
    balancing: Annotated[
        str | None, typer.Option(help="round_robin, weight or consistent_hash.")
    ] = None,
    max_nodes: Annotated[
        int | None, typer.Option(min=0, help="Nodes of a playbook; 0: as the cluster.")
    ] = None,
    max_edges: Annotated[
        int | None, typer.Option(min=0, help="Edges of a playbook; 0: as the cluster.")
    ] = None,
    max_document: Annotated[
        int | None, typer.Option(min=0, help="Bytes of a document; 0: as the cluster.")
    ] = None,
    as_json: JsonFlag = False,
) -> None:
    """Change an app's limits and brokers; what is not named stays."""
    async with magicflow.Client() as client:
        changed = await client.change_app(
            name,
            description=description,
            enabled=enabled,
            quota=quota,
            in_flight=in_flight,
            require_workers=require_workers,
            brokers=None if broker is None else [parse_broker(b) for b in broker if b],
            balancing=balancing,
            max_nodes=max_nodes,
            max_edges=max_edges,
            max_document_bytes=max_document,
        )
    if as_json:
        show_json(changed)
        return
    say(f"{name}: {describe_app(changed)}")


def parse_broker(text: str) -> Broker:
    """`NAME=server,server*WEIGHT`."""
    name, _, rest = text.partition("=")
    servers, _, weight = rest.partition("*")
    number = whole_number(weight) if weight else 1
    if not name or not servers or number is None or number > MAX_UINT32:
        fail(
            f"{text!r} is no broker",
            Exit.INVALID,
            mend="write NAME=nats://host:port, with *WEIGHT behind it for balancing by weight",
        )
    return Broker(name=name, servers=servers.split(","), weight=number)


def describe_app(item: App) -> str:
    """Its settings in a line."""
    parts = ["on" if item.enabled else "off"]
    parts += [f"{item.quota:g} starts/s"] if item.quota else []
    parts += [f"{item.in_flight} in flight"] if item.in_flight else []
    parts += ["requires workers"] if item.require_workers else []
    parts += [f"at most {item.max_nodes} nodes"] if item.max_nodes else []
    parts += [f"at most {item.max_edges} edges"] if item.max_edges else []
    parts += [f"documents of {item.max_document_bytes} bytes"] if item.max_document_bytes else []
    if item.brokers:
        balancing = Balancing.Name(item.balancing).removeprefix("BALANCING_").lower()
        names = ", ".join(broker.name for broker in item.brokers)
        parts.append(f"brokers {names} by {balancing}")
    return ", ".join(parts)


@app.command("list")
@command
async def list_apps(as_json: JsonFlag = False) -> None:
    """All apps."""
    async with magicflow.Client() as client:
        found = await client.apps()
    if as_json:
        show_json(found)
        return
    table = Table("app", "settings", "description")
    for item in found:
        add_row(table, item.name, describe_app(item), item.description)
    out.print(table)


@app.command("token")
@command
async def token(
    name: AppName,
    subject: Annotated[str, typer.Option(help="Who will hold it.")] = "cli",
    scopes: Annotated[str, typer.Option(help="Of trigger, work, operate, admin.")] = "trigger,work",
    days: Annotated[float, typer.Option(min=0.01, help="How long it is good.")] = 90.0,
    as_json: JsonFlag = False,
) -> None:
    """Make another token for an app."""
    async with magicflow.Client() as client:
        text, made = await client.create_token(
            name, subject, [s.strip() for s in scopes.split(",") if s.strip()], days * 86_400
        )
    if as_json:
        show_json({"text": text, "token": made})
    else:
        print(text)


@app.command("admin-token")
@command
async def admin_token(
    keys: Annotated[Path, typer.Option(help="The folder of the cluster's signing keys.")],
    days: Annotated[float, typer.Option(min=0.01, help="How long it is good.")] = 1.0,
) -> None:
    """Make a token for everything, out of the cluster's own keys: the first one of a cluster."""
    from engine.security.keys import FileKeys
    from engine.security.tokens import EVERY_APP, SCOPES, Tokens

    tokens = Tokens(FileKeys.open(keys, create=False), lambda _: False)
    text, _ = tokens.make(EVERY_APP, "admin", SCOPES, days * 86_400)
    print(text)


@app.command("tokens")
@command
async def tokens(name: AppName, as_json: JsonFlag = False) -> None:
    """The tokens of an app."""
    async with magicflow.Client() as client:
        found = await client.tokens(name)
    if as_json:
        show_json(found)
        return
    table = Table("id", "subject", "scopes", "expires", "revoked")
    table.columns[0].overflow = "fold"
    table.columns[0].no_wrap = True
    for item in found:
        names = [magicflow_scope(scope) for scope in item.scopes]
        add_row(
            table,
            item.id,
            item.subject,
            ", ".join(names),
            item.expires_at.ToDatetime().isoformat(" ", "seconds"),
            "yes" if item.HasField("revoked_at") else "",
        )
    out.print(table)


def magicflow_scope(number: int) -> str:
    from magicflow.v1.registry_service_pb2 import Scope

    return Scope.Name(number).removeprefix("SCOPE_").lower()  # type: ignore[arg-type]


@app.command("revoke")
@command
async def revoke(token_id: Annotated[str, typer.Argument(help="The token's id.")]) -> None:
    """Make a token worthless, everywhere, within a second."""
    async with magicflow.Client() as client:
        await client.revoke_token(token_id)
    say(f"token {token_id} revoked")


Target = Annotated[str, typer.Argument(help="app/name, or app/* for all of the app.")]
Grantee = Annotated[str, typer.Argument(help="The app that may use it.")]


@grants.command("create")
@command
async def create_grant(target: Target, grantee: Grantee) -> None:
    """Let another app use a function or playbook."""
    async with magicflow.Client() as client:
        await client.grant(target, grantee)
    say(f"{grantee} may use {target}")


@grants.command("revoke")
@command
async def revoke_grant(target: Target, grantee: Grantee) -> None:
    """Take a grant back."""
    async with magicflow.Client() as client:
        await client.revoke_grant(target, grantee)
    say(f"{grantee} may no longer use {target}")


@grants.command("list")
@command
async def list_grants(name: AppName, as_json: JsonFlag = False) -> None:
    """The grants that an app gave or holds."""
    async with magicflow.Client() as client:
        found = await client.grants(name)
    if as_json:
        show_json(found)
        return
    table = Table("target", "may be used by")
    for item in found:
        add_row(table, item.target, item.grantee)
    out.print(table)


@workers.command("list")
@command
async def list_workers(
    name: Annotated[str, typer.Argument(metavar="[APP]", help="Only this app's.")] = "",
    as_json: JsonFlag = False,
) -> None:
    """The workers that are connected now."""
    import time

    async with magicflow.Client() as client:
        found = await client.workers(name)
    if as_json:
        show_json(found)
        return
    table = Table("worker", "app", "functions", "slots", "host", "sdk", "connected", "")
    table.columns[0].overflow = "fold"
    for item in found:
        connected = time.time() * 1_000 - item.connected_at.ToMilliseconds()
        add_row(
            table,
            item.worker_id,
            item.app,
            ", ".join(function.name for function in item.functions),
            str(item.slots),
            f"{item.host.host}:{item.host.pid}",
            item.sdk,
            f"{age(max(0, connected))} ago",
            "draining" if item.draining else "",
        )
    out.print(table)
