"""`shmlog status`: who lives, who supervises, and which partitions have no leader."""

from __future__ import annotations

from typing import Any

import click

from shmlog import control, directory
from shmlog.cli.render import Column, cell_text, write_object, write_rows
from shmlog.cli.run import found_directory
from shmlog.cli.settings import Settings
from shmlog.client.admin import Admin
from shmlog.errors import ClusterNotFound, RetriableError

TIMEOUT_S = 10.0
UNAVAILABLE = 5
COLUMNS = (
    Column("broker", right=True),
    Column("state"),
    Column("pid", right=True),
    Column("incarnation", right=True),
    Column("restarts", right=True),
)


@click.command()
@click.option("--pid", "broker", type=int, metavar="BROKER", help="Print a broker's pid, no more.")
@click.pass_obj
def status(settings: Settings, broker: int | None) -> int:
    """Health check: exit 5 if no cluster runs or a partition has no leader.

    In a pipe: brokers only; --json has all.
    """
    if broker is not None:
        living = directory.read_brokers(found_directory(settings))
        if broker not in living:
            raise ClusterNotFound(f"broker {broker} is not running")
        click.echo(living[broker].pid)
        return 0
    health = _ask(settings.where, settings.timeout_s or TIMEOUT_S)
    if health["directory"] is not None and health["supervisor"] is None:
        click.echo("warning: no supervisor lives: a broker that dies stays dead", err=True)
    if settings.wants_json:
        write_object(health)
    else:
        _print(health, settings.output)
    ready = all(b["state"] == control.State.READY for b in health["brokers"])
    return 0 if ready and not health["leaderless"] else UNAVAILABLE


def _ask(where: str | None, timeout_s: float) -> dict[str, Any]:
    """What --json prints. A broker's `pid` and `restarts` are None where nobody knows them: at an
    endpoint, without a supervisor. Raises ClusterNotFound, RequestTimedOut."""
    path = directory.find_cluster(where).directory
    supervisor = None if path is None else directory.read_supervisor(path)
    with Admin(where, timeout=timeout_s) as admin:
        answer = admin.metadata()
    entries = {} if path is None else directory.read_brokers(path)
    supervised = {} if supervisor is None else _supervised(supervisor, timeout_s)
    brokers = []
    for info in answer.brokers:
        known, entry = supervised.get(info.broker), entries.get(info.broker)
        alive = control.State.READY if info.alive else control.State.STOPPED
        brokers.append(
            {
                "broker": info.broker,
                "state": known.state if known else alive,
                "pid": entry.pid if entry else None,
                "incarnation": info.incarnation,
                "restarts": known.restarts if known else None,
            }
        )
    partitions = [(t.topic, p) for t in answer.topics for p in t.partitions]
    return {
        "kind": "status",
        "v": 1,
        "cluster": answer.cluster,
        "directory": None if path is None else str(path),
        "supervisor": supervisor.pid if supervisor else None,
        "brokers": brokers,
        "topics": len(answer.topics),
        "partitions": len(partitions),
        "leaderless": [f"{topic}-{p.partition}" for topic, p in partitions if p.leader < 0],
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
        for name in ("cluster", "directory", "supervisor", "topics", "partitions", "leaderless"):
            click.echo(f"{name:12}{cell_text(health[name])}")
        click.echo()
    write_rows(health["brokers"], COLUMNS, output)
