"""fsck: what reads a cluster directory without a broker."""

from __future__ import annotations

import os
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from shmlog.cli.settings import Settings
from shmlog.errors import InvalidConfig

if TYPE_CHECKING:
    from shmlog.log.verify import Verification

DAMAGED = 7


@click.command()
@click.argument("path", metavar="DIR", type=click.Path(path_type=Path))
@click.pass_obj
def fsck(settings: Settings, path: Path) -> int:
    """Check every file of a stopped cluster: CRCs, offsets, epochs, index. Changes nothing.

    Exit 7 if something is damaged. What the next start repairs by itself (a torn tail, an index) is
    noted and is no damage.
    """
    from shmlog import directory

    cluster = directory.load_cluster(path)
    supervisor = directory.read_supervisor(path)
    if supervisor is not None:
        raise InvalidConfig(f"a supervisor runs on {cluster.path} (pid {supervisor.pid}): stop it")
    found: list[tuple[int, Verification]] = []
    with ExitStack() as locks:
        for broker in cluster.brokers:
            data_dir = directory.data_dir(path, broker)
            if (data_dir / "lock").exists():  # else no broker has ever started here
                _keep_out(locks, data_dir)
                found += [(broker, partition) for partition in _verify_all(data_dir)]
    _print(found, cluster.cluster, settings)
    return DAMAGED if any(partition.damage for _, partition in found) else 0


def _keep_out(locks: ExitStack, data_dir: Path) -> None:
    """Hold the lock of the data, so that no broker starts meanwhile; its file stays as it is."""
    from shmlog import process, registry

    owner = registry.data_dir_owner(data_dir)
    fd = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    locks.callback(os.close, fd)
    if owner is not None or not process.lock_exclusive(fd):
        raise InvalidConfig(f"a broker runs on {data_dir} (pid {owner}): stop it first")


def _verify_all(data_dir: Path) -> list[Verification]:
    from shmlog.log.os_storage import OsStorage
    from shmlog.log.paths import parse_partition_dir
    from shmlog.log.verify import verify

    storage = OsStorage()
    return [
        verify(storage, str(data_dir / name))
        for name in storage.list(str(data_dir))
        if parse_partition_dir(name) is not None and (data_dir / name).is_dir()
    ]


def _row(broker: int, partition: Verification) -> dict[str, Any]:
    return {
        "broker": broker,
        "partition": os.path.basename(partition.directory),
        "segments": partition.segments,
        "batches": partition.batches,
        "records": partition.records,
        "bytes": partition.size_bytes,
        "log_start": partition.log_start,
        "end_offset": partition.end_offset,
        "damage": partition.damage,
        "notes": partition.notes,
    }


def _print(found: list[tuple[int, Verification]], cluster: str, settings: Settings) -> None:
    from shmlog.cli.render import Column, write_object, write_rows

    rows = [_row(broker, partition) for broker, partition in found]
    damaged = sum(bool(row["damage"]) for row in rows)
    if settings.output == "json":
        write_object(
            {"kind": "fsck", "v": 1, "cluster": cluster, "damaged": damaged, "partitions": rows}
        )
    else:
        titles = ("partition", "segments", "batches", "records", "bytes", "log_start", "end_offset")
        columns = [Column(title, right=title != "partition") for title in titles]
        columns.append(Column("state", lambda row: "damaged" if row["damage"] else "ok"))
        lines = [{"kind": "fsck", "v": 1, **row} for row in rows]
        write_rows(lines, columns, settings.output)
    for row in rows:
        for text in row["damage"]:
            click.echo(f"damaged: {text}", err=True)
        for text in row["notes"]:
            settings.say(f"note: {text}")
    settings.say(f"{len(rows)} partitions checked, {damaged} damaged")
