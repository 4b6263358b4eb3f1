"""`shmlog export`: a topic's records into a file, JSON Lines or CSV by its suffix; run again, it goes on.

The file holds what `consume -f json` prints (or the rows of csv_text.py). Beside it lies FILE.progress: up to which
offset, and how long the file was then. A run that was killed is cut back to that length and goes on there. Nothing is
synced: after a power cut a file that is shorter than its note is refused.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO

import click

from shmlog.cli import csv_text, record_json, resume
from shmlog.cli.connect import open_admin
from shmlog.cli.consume import columns_of
from shmlog.cli.printing import Columns
from shmlog.cli.render import integers
from shmlog.cli.settings import Settings
from shmlog.client import consumer as client
from shmlog.client.admin import Admin
from shmlog.client.positions import EARLIEST, LATEST, parse_range
from shmlog.errors import InvalidConfig, from_wire
from shmlog.ids import TopicPartition

PROGRESS_BYTES = 8 << 20  # of the file, between two notes of how far it is


@click.command()
@click.argument("topic")
@click.option("--to", "target", required=True, metavar="FILE", help="FILE.jsonl or FILE.csv.")
@click.option(
    "-o",
    "--offset",
    "position",
    metavar="POS",
    help="Where a new file begins: earliest, @-1h, A:B ... (as of consume).",
)
@click.option("-p", "--partitions", metavar="LIST", help="Such as 0,2-4.")
@click.pass_obj
def export(
    settings: Settings, topic: str, target: str, position: str | None, partitions: str | None
) -> None:
    """Write what TOPIC holds now into a file; run again, what has come since is added."""
    file = Path(target)
    encode = _encoder(file)
    with open_admin(settings) as admin:
        progress, begins = _progress(admin, topic, file, position)
    start, stop = parse_range(position)
    chosen = None if partitions is None else integers(partitions, "-p")
    with client.Consumer(
        topic,
        where=settings.where,
        partitions=chosen,
        start=start or EARLIEST,
        stop=stop or LATEST,
    ) as consumer:
        for tp in consumer.assignment:
            if tp.partition in progress.next:
                consumer.seek(tp, progress.next[tp.partition])
        with _opened(file, progress.size) as out:
            if begins and file.suffix == ".csv":
                out.write((",".join(csv_text.COLUMNS) + "\r\n").encode())
            count = _write(consumer, out, encode, file, progress)
    settings.say(f"{count:,} records of {topic} written to {file}")


def _encoder(file: Path) -> Callable[[Columns], bytes]:
    if file.suffix == ".jsonl":
        return lambda columns: b"".join(line + b"\n" for line in record_json.encode_lines(columns))
    if file.suffix == ".csv":
        return _csv
    raise InvalidConfig(f"{file}: name it .jsonl or .csv")


def _csv(columns: Columns) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerows(csv_text.rows_of(columns))
    return text.getvalue().encode()


def _progress(
    admin: Admin, topic: str, file: Path, position: str | None
) -> tuple[resume.Exported, bool]:
    """How far the file is, and does it begin now?"""
    info = next(t for t in admin.metadata([topic]).topics if t.topic == topic)
    if info.error:
        raise from_wire(info.error, f"no topic {topic!r}", topic=topic)
    found = resume.read(_beside(file), resume.Exported)
    if found is None:
        if file.exists():
            raise InvalidConfig(
                f"{file} exists, and there is no {_beside(file)} to say how far it is: choose another name"
            )
        return resume.Exported(topic=topic, topic_id=info.topic_id), True
    if (found.topic, found.topic_id) != (topic, info.topic_id):
        raise InvalidConfig(
            f"{file} holds topic {found.topic!r}, id {found.topic_id}; this one is {topic!r}, id "
            f"{info.topic_id}: choose another name"
        )
    if position is not None:
        raise InvalidConfig(f"{file} goes on where it ended: -o is for a new one")
    if not file.exists() or file.stat().st_size < found.size:
        raise InvalidConfig(f"{file} is shorter than {_beside(file)} says: choose another name")
    return found, False


def _beside(file: Path) -> Path:
    return file.with_name(file.name + ".progress")


def _opened(file: Path, size: int) -> BinaryIO:
    out = open(file, "ab")  # noqa: SIM115 - the caller closes it
    out.truncate(size)
    return out


def _write(
    consumer: client.Consumer,
    out: BinaryIO,
    encode: Callable[[Columns], bytes],
    file: Path,
    progress: resume.Exported,
) -> int:
    count, noted = 0, progress.size

    def note() -> None:
        out.flush()
        progress.size = out.tell()
        resume.write(_beside(file), progress)

    try:
        for batch in consumer.batches():
            out.write(encode(columns_of(batch, None)))
            progress.next[batch.partition] = batch.end_offset
            count += len(batch)
            if out.tell() - noted > PROGRESS_BYTES:
                note()
                noted = progress.size
        for tp in consumer.assignment:
            progress.next.setdefault(tp.partition, consumer.position(TopicPartition(*tp)))
    finally:
        note()
    return count
