"""`shmlog fsck`: check the files of a cluster directory without a broker."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click

from shmlog import directory, process, registry
from shmlog.cli.render import Column, write_object, write_rows
from shmlog.cli.settings import Settings
from shmlog.errors import InvalidConfig
from shmlog.log import opened
from shmlog.log.os_storage import OsStorage
from shmlog.log.paths import parse_partition_dir
from shmlog.log.verify import verify

DAMAGED = 7
NUMBERS = ("segments", "batches", "records", "gaps", "bytes", "log_start", "end_offset")
COLUMNS = (
    Column("partition"),
    *(Column(title, right=True) for title in NUMBERS),
    Column("state", lambda row: "damaged" if row["damage"] else "ok"),
)


@click.command()
@click.argument("path", metavar="[DIR]", required=False, type=click.Path(path_type=Path))
@click.pass_obj
def fsck(settings: Settings, path: Path | None) -> int:
    """Check every file of a stopped cluster: CRCs, offsets, epochs, index. Changes nothing.

    Exit 7 if something is damaged, or a partition is missing. What the next start repairs by itself
    (a torn tail, an index) and what lies wholly below the log start is noted and is no damage.
    """
    if path is None:
        named = settings.dir or os.environ.get("SHMLOG_DIR")
        if not named:
            raise click.UsageError("no directory: name one, as DIR, with -d DIR or in SHMLOG_DIR")
        path = Path(named)
    cluster = directory.load_cluster(path)
    supervisor = directory.read_supervisor(path)
    if supervisor is not None:
        raise InvalidConfig(f"a supervisor runs on {cluster.path} (pid {supervisor.pid}): stop it")
    rows: list[dict[str, Any]] = []
    with ExitStack() as locks:
        for broker, data_dir in cluster.data_dirs.items():
            if (data_dir / "lock").exists():  # else no broker has ever started here
                _keep_out(locks, data_dir)
                rows += _verified(broker, data_dir)
                rows += _missing(broker, data_dir)
    damaged = sum(bool(row["damage"]) for row in rows)
    if settings.output == "json":
        found = {"cluster": cluster.cluster, "damaged": damaged, "partitions": rows}
        write_object({"kind": "fsck", "v": 1, **found})
    else:
        write_rows([{"kind": "fsck", "v": 1, **row} for row in rows], COLUMNS, settings.output)
    for row in rows:
        for text in row["damage"]:
            click.echo(f"damaged: {text}", err=True)
        for text in row["notes"]:
            settings.say(f"note: {text}")
    settings.say(f"{len(rows)} partitions checked, {damaged} damaged")
    return DAMAGED if damaged else 0


def _keep_out(locks: ExitStack, data_dir: Path) -> None:
    """Hold the lock of the data, so that no broker starts meanwhile; its file stays as it is."""
    owner = registry.data_dir_owner(data_dir)
    fd = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    locks.callback(os.close, fd)
    if owner is not None or not process.lock_exclusive(fd):
        raise InvalidConfig(f"a broker runs on {data_dir} (pid {owner}): stop it first")


def _missing(broker: int, data_dir: Path) -> Iterator[dict[str, Any]]:
    """Partitions that were here at an earlier start: no directory, or nothing in it."""
    storage = OsStorage()
    for name in opened.marks(storage, str(data_dir)):
        directory = data_dir / name
        if directory.is_dir() and any(directory.iterdir()):
            continue
        text = (
            f"{directory} is missing: put it back from a copy, or remove "
            f"{opened.mark_path(str(directory))} to begin with an empty one"
        )
        numbers = dict.fromkeys(NUMBERS, 0)
        yield {"broker": broker, "partition": name, **numbers, "damage": [text], "notes": []}


def _verified(broker: int, data_dir: Path) -> Iterator[dict[str, Any]]:
    storage = OsStorage()
    for name in storage.list(str(data_dir)):
        if parse_partition_dir(name) is None or not (data_dir / name).is_dir():
            continue
        if not any((data_dir / name).iterdir()):
            continue  # see _missing
        found = verify(storage, str(data_dir / name))
        yield {
            "broker": broker,
            "partition": name,
            "segments": found.segments,
            "batches": found.batches,
            "records": found.records,
            "gaps": found.gaps,
            "bytes": found.size_bytes,
            "log_start": found.log_start,
            "end_offset": found.end_offset,
            "damage": found.damage,
            "notes": found.notes,
        }
