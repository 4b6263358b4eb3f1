"""`shmlog topic`: list, create, describe, alter, trim and delete topics.

What a topic is like is one JSON object, `{"kind": "topic", "v": 1, ...}`: `describe` gives all
of it, `list` the part that the metadata holds. Removing data asks on a terminal and wants
`--yes` in a script.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import click
import msgspec

from shmlog.cli.connect import open_admin
from shmlog.cli.render import Column, confirm, in_short, pairs, plural, write_object, write_rows
from shmlog.cli.settings import Settings
from shmlog.client.consumer import Consumer
from shmlog.client.positions import parse
from shmlog.errors import InvalidConfig, LeaderUnavailable, TopicExists, UnknownTopic
from shmlog.protocol.messages import DescribeTopicAnswer, TopicInfo
from shmlog.settings import TOPIC_SETTINGS, check_all, format_size, resolve

DURABILITY = click.option(
    "--durability",
    type=click.Choice(["os", "disk"]),
    help="A batch is stored when written, or synced.",
)
SET = click.option("--set", "given", multiple=True, metavar="KEY=VALUE", help="A setting.")
DRY_RUN = click.option("--dry-run", is_flag=True, help="Show what would go, and change nothing.")
YES = click.option("--yes", is_flag=True, help="Do not ask.")

LIST_COLUMNS = (
    Column("topic"),
    Column("partitions", lambda row: row["partition_count"], right=True),
    Column("replicas", lambda row: row["replication_factor"], right=True),
    Column("without_leader", lambda row: sum(p["leader"] < 0 for p in row["partitions"]), True),
)
SETTING_COLUMNS = (Column("setting"), Column("value"), Column("source"))
PARTITION_COLUMNS = (
    Column("partition", right=True),
    Column("leader", right=True),
    Column("leader_epoch", right=True),
    Column("replicas"),
    Column("isr"),
    Column("log_start", right=True),
    Column("high_watermark", right=True),
    Column("end_offset", right=True),
    Column("size", lambda row: _size(row.get("size")), right=True),
    Column("oldest_goes", lambda row: _time(row.get("oldest_goes_at"))),
)


@click.group()
def topic() -> None:
    """Look at topics, make, change and remove them."""


@topic.command("list")
@click.pass_obj
def list_topics(settings: Settings) -> None:
    """List the topics."""
    with open_admin(settings) as admin:
        topics = sorted(admin.metadata().topics, key=lambda t: t.topic)
    write_rows([_listed(t) for t in topics], LIST_COLUMNS, settings.output)
    if not topics and settings.output == "table":
        settings.say("no topics; make one:  shmlog topic create NAME")


def _listed(info: TopicInfo) -> dict[str, Any]:
    partitions = msgspec.to_builtins(info.partitions)
    return {
        "kind": "topic",
        "v": 1,
        "topic": info.topic,
        "topic_id": info.topic_id,
        "partition_count": len(partitions),
        "replication_factor": max((len(p["replicas"]) for p in partitions), default=0),
        "partitions": partitions,
    }


@topic.command()
@click.argument("name")
@click.option("-p", "--partitions", type=int, default=1, show_default=True, help="How many.")
@click.option("-r", "--replicas", type=int, help="Copies of each partition.  [default: at most 3]")
@DURABILITY
@SET
@click.option("--if-not-exists", is_flag=True, help="A topic that is there already is fine.")
@click.pass_obj
def create(
    settings: Settings,
    name: str,
    partitions: int,
    replicas: int | None,
    durability: str | None,
    given: tuple[str, ...],
    if_not_exists: bool,
) -> None:
    """Make a topic."""
    configs = _configs(given, durability=durability)
    with open_admin(settings) as admin:
        try:
            answer = admin.create_topic(name, partitions, replicas, configs)
        except TopicExists:
            # The name may also be refused because it is too much like another one.
            if not (if_not_exists and name in admin.list_topics()):
                raise
            settings.say(f"topic {name} is there already")
            return
        if not answer.ready:
            raise LeaderUnavailable(f"topic {name} was created; not every partition has a leader")
        made = admin.describe_topic(name)
    settings.say(f"created {in_short(made)}")
    if settings.wants_json:
        write_object(_described(made))


def _configs(given: tuple[str, ...], **named: str | None) -> dict[str, Any]:
    """Settings under their native names, checked here so that a mistake needs no cluster."""
    configs: dict[str, str] = pairs(given, "--set")
    configs.update({key: value for key, value in named.items() if value is not None})
    return check_all(configs, TOPIC_SETTINGS)


@topic.command()
@click.argument("name")
@click.pass_obj
def describe(settings: Settings, name: str) -> None:
    """Show a topic: settings, leaders, offsets. In a pipe: partitions only; --json has all."""
    with open_admin(settings) as admin:
        found = _described(admin.describe_topic(name))
    if settings.wants_json:
        write_object(found)
        return
    if settings.output == "table":
        partitions = plural(found["partition_count"], "partition")
        replicas = plural(found["replication_factor"], "replica")
        click.echo(f"{name}  {found['topic_id']}  {partitions}  {replicas}\n")
        configs = [{"setting": key, **found["configs"][key]} for key in sorted(found["configs"])]
        write_rows(configs, SETTING_COLUMNS, "table")
        click.echo()
    write_rows(found["partitions"], PARTITION_COLUMNS, settings.output)
    for partition in found["partitions"] if settings.output == "table" else ():
        if "lost" in partition:
            first, end = partition["lost"]
            known = f"; offsets up to {end - 1} had been written" if end > first else ""
            click.echo(
                f"\npartition {partition['partition']}: a replica that was not in sync was elected; what "
                f"was acked from offset {first} on may be lost{known}"
            )


def _size(size: int | None) -> str | None:
    return None if size is None else format_size(size)


def _time(time_ns: int | None) -> str | None:
    """To the second, in UTC."""
    if time_ns is None:
        return None
    return datetime.fromtimestamp(time_ns // 10**9, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _described(answer: DescribeTopicAnswer) -> dict[str, Any]:
    fields: dict[str, Any] = msgspec.to_builtins(answer, enc_hook=int)
    del fields["id"], fields["error"]
    return {"kind": "topic", "v": 1, **fields}


@topic.command()
@click.argument("name")
@click.option("-p", "--partitions", type=int, help="Raise their number to this.")
@DURABILITY
@SET
@click.option("--unset", multiple=True, metavar="KEY", help="Back to the default.")
@click.pass_obj
def alter(
    settings: Settings,
    name: str,
    partitions: int | None,
    durability: str | None,
    given: tuple[str, ...],
    unset: tuple[str, ...],
) -> None:
    """Change settings, or add partitions."""
    configs = _configs(given, durability=durability)
    removed = [resolve(key, TOPIC_SETTINGS).native for key in unset]
    if not configs and not removed and partitions is None:
        raise click.UsageError("nothing to change: give --set, --unset, --durability or -p")
    if both := sorted(configs.keys() & set(removed)):
        raise InvalidConfig(f"{both[0]} is set and unset at once")
    with open_admin(settings) as admin:
        if configs or removed:
            admin.alter_topic(name, set=configs, delete=removed)
        if partitions is not None:
            admin.add_partitions(name, partitions)
        changed = admin.describe_topic(name)
    settings.say(f"altered {in_short(changed)}")
    if settings.wants_json:
        write_object(_described(changed))


@topic.command()
@click.argument("name")
@click.option("-p", "--partition", type=click.IntRange(min=0), required=True, help="Which one.")
@click.option("-o", "--offset", "position", required=True, help="The first offset to keep.")
@DRY_RUN
@YES
@click.pass_obj
def trim(
    settings: Settings, name: str, partition: int, position: str, dry_run: bool, yes: bool
) -> None:
    """Drop the records of a partition below an offset."""
    wanted = parse(position)
    with open_admin(settings) as admin:
        found = admin.describe_topic(name)
        if partition >= found.partition_count:
            count = plural(found.partition_count, "partition")
            raise UnknownTopic(f"topic {name} has {count}, not number {partition}", hint="")
        ends = found.partitions[partition]
        if ends.end_offset < 0:
            raise LeaderUnavailable(f"{name}-{partition} has no leader now")
        with Consumer(name, where=settings.where, partitions=[partition], start=wanted) as there:
            offset = there.position(there.assignment[0])
        before = ends.log_start
        gone = max(0, min(offset, ends.high_watermark) - before)
        after = max(offset, before)
        records = plural(gone, "record")
        change = f"{name}-{partition}: log start {before:,} -> {after:,}"
        if dry_run:
            click.echo(f"{change}, {records} would be dropped; nothing was done", err=True)
        else:
            confirm(f"{change}: drop {records} for good?", yes=yes)
            admin.delete_records([(name, partition, offset)])
            settings.say(f"{change}, {records} dropped")
    if settings.wants_json:
        write_object(
            {
                "kind": "trim",
                "v": 1,
                "topic": name,
                "partition": partition,
                "log_start": before if dry_run else after,
                "records": gone,
                "dry_run": dry_run,
            }
        )


@topic.command()
@click.argument("name")
@DRY_RUN
@YES
@click.pass_obj
def delete(settings: Settings, name: str, dry_run: bool, yes: bool) -> None:
    """Remove a topic and its data."""
    with open_admin(settings) as admin:
        found = admin.describe_topic(name)
        told = [p for p in found.partitions if p.end_offset >= 0]
        records = sum(p.high_watermark - p.log_start for p in told)
        held = f"{plural(found.partition_count, 'partition')}, {plural(records, 'record')}"
        if untold := found.partition_count - len(told):
            held += f" and what {plural(untold, 'partition')} without a leader holds"
        if dry_run:
            click.echo(f"topic {name} ({held}) would be deleted; nothing was done", err=True)
            return
        confirm(f"delete topic {name} ({held}) for good?", yes=yes)
        admin.delete_topic(name)
    settings.say(f"deleted topic {name}: {held}")
