"""`shmlog status`: who lives, who supervises, and which partitions have no leader."""

from __future__ import annotations

from typing import Any

import click

from shmlog import control, directory
from shmlog.cli.connect import open_admin
from shmlog.cli.render import Column, cell_text, plural, write_object, write_rows
from shmlog.cli.run import found_directory
from shmlog.cli.settings import Settings
from shmlog.errors import ClusterNotFound, RetriableError

TIMEOUT_S = 10.0
UNAVAILABLE = 5
HEAD = ("cluster directory supervisor topics partitions leaderless under_minimum not_full").split()
COLUMNS = (
    Column("broker", right=True),
    Column("state", lambda row: "fenced" if row["fenced"] else row["state"]),
    Column("pid", right=True),
    Column("incarnation", right=True),
    Column("restarts", right=True),
    Column("leaders", right=True),
    Column("controller", lambda row: "controller" if row["controller"] else ""),
)


@click.command()
@click.option("--pid", "broker", type=int, metavar="BROKER", help="Print a broker's pid, no more.")
@click.pass_obj
def status(settings: Settings, broker: int | None) -> int:
    """Health check: exit 5 if no broker answers, nobody controls, or a partition has no leader.

    In a pipe: brokers only; --json has all.
    """
    if broker is not None:
        living = directory.read_brokers(found_directory(settings))
        if broker not in living:
            raise ClusterNotFound(f"broker {broker} is not running")
        click.echo(living[broker].pid)
        return 0
    health = _ask(settings)
    if health["directory"] is not None and health["supervisor"] is None:
        click.echo("warning: no supervisor lives: a broker that dies stays dead", err=True)
    if settings.wants_json:
        write_object(health)
    else:
        _print(health, settings.output)
    if health["under_minimum"]:
        count = plural(health["under_minimum"], "partition")
        click.echo(f"warning: {count} under min_insync_replicas: acks=all is refused", err=True)
    if not health["has_controller"]:
        click.echo(
            "no controller: a majority of the voters does not answer; nothing is acked", err=True
        )
    return UNAVAILABLE if health["leaderless"] or not health["has_controller"] else 0


def _ask(settings: Settings) -> dict[str, Any]:
    """What --json prints. A broker's `pid` and `restarts` are None where nobody knows them: at an
    endpoint, without a supervisor. Raises ClusterNotFound, RequestTimedOut."""
    path = directory.find_cluster(settings.where).directory
    supervisor = None if path is None else directory.read_supervisor(path)
    with open_admin(settings, TIMEOUT_S) as admin:
        topics = admin.metadata().topics
        answer = admin.describe_cluster()
    entries = {} if path is None else directory.read_brokers(path)
    timeout_s = settings.timeout_s or TIMEOUT_S
    supervised = {} if supervisor is None else _supervised(supervisor, timeout_s)
    brokers = []
    for info in answer.brokers:
        known, entry = supervised.get(info.broker), entries.get(info.broker)
        lives = info.alive and (path is None or entry is not None)
        alive = control.State.READY if lives else control.State.STOPPED
        brokers.append(
            {
                "broker": info.broker,
                "state": known.state if known else alive,
                "pid": entry.pid if entry else None,
                "incarnation": info.incarnation,
                "restarts": known.restarts if known else None,
                "leaders": info.leaders,
                "controller": info.broker == answer.controller,
                "fenced": info.fenced,
                "reason": info.reason,
            }
        )
    partitions = [(t.topic, p) for t in topics for p in t.partitions]
    return {
        "kind": "status",
        "v": 1,
        "cluster": answer.cluster,
        "directory": None if path is None else str(path),
        "supervisor": supervisor.pid if supervisor else None,
        "has_controller": answer.controller >= 0,
        "brokers": brokers,
        "topics": len(topics),
        "partitions": len(partitions),
        "leaderless": [f"{topic}-{p.partition}" for topic, p in partitions if p.leader < 0],
        "under_minimum": answer.partitions_under_minimum,
        "not_full": answer.partitions_not_full,
    }


def _supervised(
    supervisor: directory.SupervisorEntry, timeout_s: float
) -> dict[int, control.BrokerStatus]:
    try:
        answer = control.ask(supervisor, "status", timeout_s)
    except RetriableError:
        return {}  # it is ending; the brokers' own word counts
    return {status.broker: status for status in answer.brokers}


def _print(health: dict[str, Any], output: str) -> None:
    if output == "table":
        for name in HEAD:
            click.echo(f"{name.replace('_', ' '):15}{cell_text(health[name])}")
        click.echo()
    write_rows(health["brokers"], COLUMNS, output)
