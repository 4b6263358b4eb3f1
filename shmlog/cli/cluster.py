"""`shmlog cluster`: who leads what, since when, and how it came to be."""

from __future__ import annotations

import datetime
from typing import Any

import click
import msgspec

from shmlog.cli.connect import open_admin
from shmlog.cli.render import Column, plural, write_object, write_rows
from shmlog.cli.settings import Settings
from shmlog.client.admin import Admin
from shmlog.clock import NS_PER_S
from shmlog.errors import UnknownTopic
from shmlog.protocol.messages import METADATA_RECORDS_MAX

PARTLY_DONE = 6
PARTITION = click.option(
    "-p", "--partition", type=click.IntRange(min=0), required=True, help="Which one."
)

BROKER_COLUMNS = (
    Column("broker", right=True),
    Column("state", lambda row: _state(row)),
    Column("pid", lambda row: row["pid"] or None, right=True),
    Column("incarnation", lambda row: row["incarnation"] or None, right=True),
    Column("leaders", right=True),
    Column("replicas", right=True),
    Column("role", lambda row: row["role"]),
    Column("endpoint"),
)
LEADER_COLUMNS = (
    Column("topic"),
    Column("partition", right=True),
    Column("leader", right=True),
    Column("preferred", right=True),
    Column("leader_epoch", right=True),
    Column("replicas"),
    Column("isr"),
)
EPOCH_COLUMNS = (
    Column("leader_epoch", right=True),
    Column("start_offset", right=True),
    Column("end_offset", right=True),
)
LOG_COLUMNS = (
    Column("offset", right=True),
    Column("time", lambda row: _time_text(row["time_ns"])),
    Column("term", right=True),
    Column("record", lambda row: row["record"]),
    Column("summary"),
)


def _state(row: Any) -> str:
    if row["fenced"]:
        return f"fenced: {row['reason']}" if row["reason"] else "fenced"
    return "alive" if row["alive"] else "unknown"


def _time_text(time_ns: int) -> str:
    moment = datetime.datetime.fromtimestamp(time_ns // NS_PER_S, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % NS_PER_S // 1000:06}Z"


@click.group()
def cluster() -> None:
    """Look at brokers and leaders, and move leaders."""


@cluster.command()
@click.pass_obj
def info(settings: Settings) -> None:
    """Show brokers, controller and what partitions lack."""
    with open_admin(settings) as admin:
        answer = admin.describe_cluster()
    found: dict[str, Any] = msgspec.to_builtins(answer)
    del found["id"], found["error"]
    if settings.wants_json:
        write_object({"kind": "cluster", "v": 1, **found})
        return
    if settings.output == "table":
        facts = {name: value for name, value in found.items() if name != "brokers"}
        for name, value in facts.items():
            text = ",".join(map(str, value)) if isinstance(value, list) else value
            click.echo(f"{name.replace('_', ' '):27}{text}")
        click.echo()
    rows = [{**b, "role": _role(b["broker"], found)} for b in found["brokers"]]
    write_rows(rows, BROKER_COLUMNS, settings.output)


def _role(broker: int, found: dict[str, Any]) -> str:
    if broker == found["controller"]:
        return "controller"
    return "voter" if broker in found["voters"] else "observer"


@cluster.command()
@click.argument("topics", nargs=-1, metavar="[TOPIC]...")
@click.pass_obj
def leaders(settings: Settings, topics: tuple[str, ...]) -> None:
    """Show who leads each partition, and who should: its preferred leader."""
    with open_admin(settings) as admin:
        found = admin.metadata(list(topics) or None).topics
    for topic in found:
        if topic.error:
            raise UnknownTopic(f"no topic {topic.topic!r}", topic=topic.topic)
    rows = [
        {
            "kind": "leader",
            "v": 1,
            "topic": topic.topic,
            "partition": p.partition,
            "leader": p.leader,
            "preferred": p.replicas[0],
            "leader_epoch": p.leader_epoch,
            "replicas": p.replicas,
            "isr": p.isr,
        }
        for topic in sorted(found, key=lambda t: t.topic)
        for p in topic.partitions
    ]
    write_rows(rows, LEADER_COLUMNS, settings.output)


@cluster.command()
@click.argument("topic")
@PARTITION
@click.pass_obj
def elect(settings: Settings, topic: str, partition: int) -> None:
    """Give a partition to its preferred leader now."""
    with open_admin(settings) as admin:
        moved = admin.elect(topic, partition)
        leader = _leader(admin, topic, partition)
    how = "leads now" if moved else "is the preferred leader and leads already"
    settings.say(f"{topic}-{partition}: broker {leader} {how}")
    if settings.wants_json:
        place = {"topic": topic, "partition": partition, "leader": leader}
        write_object({"kind": "elect", "v": 1, **place, "moved": moved})


def _leader(admin: Admin, topic: str, partition: int) -> int:
    [info] = admin.metadata([topic]).topics
    return info.partitions[partition].leader


@cluster.command()
@click.pass_obj
def rebalance(settings: Settings) -> int:
    """Give every partition to its preferred leader; exit 6 if one is not in sync."""
    with open_admin(settings) as admin:
        found = admin.rebalance()
    rows = [
        {"kind": "rebalance", "v": 1, "topic": tp.topic, "partition": tp.partition, "moved": moved}
        for tp, moved in sorted(found.items())
    ]
    if settings.wants_json:
        write_rows(rows, (), settings.output)
    left = [str(tp) for tp, moved in sorted(found.items()) if not moved]
    settings.say(f"{plural(len(found) - len(left), 'partition')} moved")
    for name in left:
        click.echo(f"{name}: left alone, its preferred leader is not in sync", err=True)
    return PARTLY_DONE if left else 0


@cluster.command()
@click.argument("topic")
@PARTITION
@click.pass_obj
def epochs(settings: Settings, topic: str, partition: int) -> None:
    """Show a partition's leader epochs, and the offsets where they begin."""
    with open_admin(settings) as admin:
        answer = admin.epochs(topic, partition)
    ends = [*(start for _, start in answer.entries), answer.end_offset][1:]
    rows = [
        {
            "kind": "epoch",
            "v": 1,
            "topic": topic,
            "partition": partition,
            "leader_epoch": epoch,
            "start_offset": start,
            "end_offset": end,
        }
        for (epoch, start), end in zip(answer.entries, ends, strict=True)
    ]
    write_rows(rows, EPOCH_COLUMNS, settings.output)


@cluster.command()
@click.option(
    "-o", "--offset", "first", type=int, default=0, help="From this record on; -10: the last ten."
)
@click.option("-n", "--count", type=click.IntRange(min=0), help="At most so many records.")
@click.pass_obj
def log(settings: Settings, first: int, count: int | None) -> None:
    """Show the metadata log: what was changed, and when."""
    rows: list[dict[str, Any]] = []
    with open_admin(settings) as admin:
        if first < 0:
            first = max(0, admin.metadata_log(max_records=1).end_offset + first)
        while count is None or len(rows) < count:
            wanted = METADATA_RECORDS_MAX if count is None else count - len(rows)
            answer = admin.metadata_log(first, min(wanted, METADATA_RECORDS_MAX))
            for record in answer.records:
                rows.append(
                    {
                        "kind": "metadata_record",
                        "v": 1,
                        "offset": record.offset,
                        "term": record.term,
                        "time_ns": int(record.time_ns),
                        "record": record.kind,
                        "summary": record.summary,
                        "data": record.data,
                    }
                )
            first = answer.next_offset
            if first >= answer.end_offset:
                break
    write_rows(rows, LOG_COLUMNS, settings.output)
