"""`shmlog status`: who lives, who supervises, and which partitions have no leader."""

from __future__ import annotations

import json
from typing import Any

import click
import msgspec
from msgspec import Struct

from shmlog import control, directory
from shmlog.client.admin import Admin
from shmlog.errors import RetriableError


class BrokerHealth(Struct, frozen=True, kw_only=True):
    """One broker; `pid` and `restarts` are None where nobody knows them (an endpoint, no
    supervisor)."""

    broker: int
    state: str
    pid: int | None
    incarnation: int
    restarts: int | None


class Health(Struct, frozen=True, kw_only=True):
    """The object that `shmlog status --json` prints."""

    kind: str = "status"
    v: int = 1
    cluster: str
    directory: str | None
    supervisor: int | None
    brokers: list[BrokerHealth]
    topics: int
    partitions: int
    leaderless: list[str]

    @property
    def healthy(self) -> bool:
        """Every broker serves and every partition has a leader."""
        return not self.leaderless and all(b.state == control.State.READY for b in self.brokers)


def ask(where: str | None, timeout_s: float) -> Health:
    """Ask the cluster. Raises ClusterNotFound if nobody answers for it, RequestTimedOut."""
    location = directory.find_cluster(where)
    path = location.directory
    supervisor = directory.read_supervisor(path) if path is not None else None
    with Admin(where, timeout=timeout_s) as admin:
        answer = admin.metadata()
    entries = directory.read_brokers(path) if path is not None else {}
    supervised = _supervised(supervisor, timeout_s)
    brokers = []
    for info in answer.brokers:
        known, entry = supervised.get(info.broker), entries.get(info.broker)
        alive = control.State.READY if info.alive else control.State.STOPPED
        brokers.append(
            BrokerHealth(
                broker=info.broker,
                state=known.state if known else alive,
                pid=entry.pid if entry else None,
                incarnation=info.incarnation,
                restarts=known.restarts if known else None,
            )
        )
    partitions = [(t.topic, p) for t in answer.topics for p in t.partitions]
    return Health(
        cluster=answer.cluster,
        directory=str(path) if path is not None else None,
        supervisor=supervisor.pid if supervisor else None,
        brokers=brokers,
        topics=len(answer.topics),
        partitions=len(partitions),
        leaderless=[f"{topic}-{p.partition}" for topic, p in partitions if p.leader < 0],
    )


def _supervised(
    supervisor: directory.SupervisorEntry | None, timeout_s: float
) -> dict[int, control.BrokerStatus]:
    if supervisor is None:
        return {}
    try:
        answer = control.ask(supervisor, "status", timeout_s)
    except RetriableError:
        return {}  # it is ending; the brokers' own word counts
    return {status.broker: status for status in answer.brokers}


def print_health(health: Health, output: str) -> None:
    """On standard output, in the form asked for."""
    if output in ("json", "jsonl"):
        indent = 2 if output == "json" else None
        click.echo(json.dumps(msgspec.to_builtins(health), indent=indent))
        return
    rows = [[b.broker, b.state, b.pid, b.incarnation, b.restarts] for b in health.brokers]
    if output == "plain":
        for row in rows:
            click.echo("\t".join(map(_cell, row)))
        return
    click.echo(f"cluster     {health.cluster}")
    click.echo(f"directory   {_cell(health.directory)}")
    click.echo(f"supervisor  {'pid ' + str(health.supervisor) if health.supervisor else 'none'}")
    for b in health.brokers:
        restarts = f"   restarts {b.restarts}" if b.restarts else ""
        click.echo(
            f"broker {b.broker}    {b.state}   pid {_cell(b.pid)}   "
            f"incarnation {b.incarnation}{restarts}"
        )
    click.echo(f"topics      {health.topics}, partitions {health.partitions}")
    if health.leaderless:
        click.echo(f"no leader   {', '.join(health.leaderless)}")


def _cell(value: Any) -> str:
    return "-" if value is None else str(value)
