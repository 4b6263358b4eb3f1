"""`shmlog group`: what groups there are, how far they have read, and where they are to go on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click
import msgspec

from shmlog.cli.connect import open_admin
from shmlog.cli.render import Column, confirm, plural, table, write_object, write_rows
from shmlog.cli.settings import Settings
from shmlog.protocol.group_messages import ResetResult

LIST_COLUMNS = (
    Column("group"),
    Column("state"),
    Column("members", right=True),
    Column("coordinator", right=True),
)
MEMBER_COLUMNS = (
    Column("member"),
    Column("instance"),
    Column("client"),
    Column("pid", lambda row: row["pid"] or None, right=True),
    Column("state", lambda row: "stalled" if row["stalled"] else row["state"]),
    Column("partitions", lambda row: sum(len(t["partitions"]) for t in row["assigned"]), True),
)
LAG_COLUMNS = (
    Column("topic"),
    Column("partition", right=True),
    Column("owner"),
    Column("committed", lambda row: row["committed"] if row["committed"] >= 0 else None, True),
    Column("high_watermark", right=True),
    Column("lag", lambda row: f"{row['lag']}{'' if row['committed'] >= 0 else '*'}", right=True),
    Column("lost", lambda row: row["lost"] or None, right=True),
)
RESET_COLUMNS = (
    Column("topic"),
    Column("partition", right=True),
    Column("before", lambda row: row["before"] if row["before"] >= 0 else None, right=True),
    Column("after", right=True),
)


@click.group()
def group() -> None:
    """Look at consumer groups, set where they go on, forget them."""


@group.command("list")
@click.pass_obj
def list_groups(settings: Settings) -> None:
    """List the groups."""
    with open_admin(settings) as admin:
        found = admin.list_groups()
    rows = [{"kind": "group", "v": 1, **msgspec.to_builtins(one)} for one in found]
    write_rows(rows, LIST_COLUMNS, settings.output)
    if not rows and settings.output == "table":
        settings.say("no groups; make one:  shmlog consume TOPIC -g NAME")


@group.command()
@click.argument("name")
@click.pass_obj
def describe(settings: Settings, name: str) -> None:
    """Show a group: members, and the lag of each partition (* = nothing is committed).

    In a pipe: partitions only; --json has all.
    """
    with open_admin(settings) as admin:
        found: dict[str, Any] = msgspec.to_builtins(admin.describe_group(name))
    if settings.wants_json:
        write_object({"kind": "group", "v": 1, **found})
        return
    if settings.output == "table":
        lag = sum(p["lag"] for p in found["partitions"])
        members = plural(len(found["members"]), "member")
        click.echo(f"{name}  {found['state']}  {members}  lag {lag:,}\n")
        write_rows(found["members"], MEMBER_COLUMNS, "table")
        if found["members"]:
            click.echo()
    write_rows(found["partitions"], LAG_COLUMNS, settings.output)
    for move in found["moves"] if settings.output == "table" else ():
        click.echo(
            f"\n{move['topic']}-{move['partition']} moves from {move['source']} to {move['target']}, "
            f"for {move['age_ms']:,} ms by now"
        )


@group.command()
@click.argument("name")
@click.option(
    "--to", "position", metavar="POS", help="earliest, latest, 123, @-1h, as of consume -o."
)
@click.option("--shift", type=int, metavar="N", help="By so many records; back: -10.")
@click.option("--topic", "topics", multiple=True, help="Only this one; may be given several times.")
@click.option("--dry-run", is_flag=True, help="Show old and new offsets, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def reset(
    settings: Settings,
    name: str,
    position: str | None,
    shift: int | None,
    topics: tuple[str, ...],
    dry_run: bool,
    yes: bool,
) -> None:
    """Set where a group without members goes on."""
    if (position is None) == (shift is None):
        raise click.UsageError("say --to POS or --shift N")
    with open_admin(settings) as admin:
        found = admin.reset_group(name, position, shift=shift, topics=topics, dry_run=True)
        if not dry_run:
            if not yes:
                cells = [[c.cell(row) for c in RESET_COLUMNS] for row in _rows(name, found, False)]
                click.echo(table(cells, RESET_COLUMNS), nl=False, err=True)
            confirm(f"set {plural(len(found), 'offset')} of group {name}?", yes=yes)
            found = admin.reset_group(name, position, shift=shift, topics=topics)
    write_rows(_rows(name, found, dry_run), RESET_COLUMNS, settings.output)
    settings.say("nothing was changed" if dry_run else f"group {name} goes on there")


def _rows(name: str, found: Sequence[ResetResult], dry_run: bool) -> list[dict[str, Any]]:
    head = {"kind": "group_reset", "v": 1, "group": name}
    return [{**head, **msgspec.to_builtins(one), "dry_run": dry_run} for one in found]


@group.command()
@click.argument("name")
@click.option("--topic", default="", help="Only the offsets of this topic.")
@click.option("--dry-run", is_flag=True, help="Show what would go, and change nothing.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.pass_obj
def delete(settings: Settings, name: str, topic: str, dry_run: bool, yes: bool) -> None:
    """Forget a group without members, and its offsets."""
    with open_admin(settings) as admin:
        offsets = [
            p
            for p in admin.describe_group(name).partitions
            if p.committed >= 0 and topic in ("", p.topic)
        ]
        what = f"group {name}" + (f", topic {topic}" if topic else "")
        what += f" ({plural(len(offsets), 'offset')})"
        if dry_run:
            click.echo(f"{what} would be forgotten; nothing was done", err=True)
            return
        confirm(f"forget {what} for good?", yes=yes)
        admin.delete_group(name, topic)
    settings.say(f"forgot {what}")
