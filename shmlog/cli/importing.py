"""`shmlog import`: the records of a file into a topic; run again after an interruption, it goes on.

What `export` has written comes back as it was: keys, values, headers, timestamps. Of any other JSON Lines file each
line is a value; of any other CSV each row is, as a JSON object. `--key` and `--time` name fields of such objects.
Partitions are chosen by key, as by any producer, unless those of the file are to be kept.
"""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import click
import msgspec

from shmlog.cli import csv_text, record_json, resume
from shmlog.cli.bytes_text import Octets, int64, parse_iso
from shmlog.cli.interrupts import Interrupts
from shmlog.cli.settings import Settings
from shmlog.client.producer import Producer
from shmlog.errors import InvalidConfig, SerializationError

FLUSH_RECORDS = 20_000
CELL_BYTES_MAX = 64 << 20  # over any record; Python's own limit is 128 KiB


class Read(NamedTuple):
    """A record of the file, and where the file goes on behind it."""

    key: Octets
    value: Octets
    timestamp: int | None
    headers: list[tuple[str, Octets]]
    partition: int | None
    end: int


class Fields(NamedTuple):
    """Which fields of an object are key and time; `keep`: partitions as the file says."""

    key: str | None
    time: str | None
    keep: bool


@click.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False))
@click.argument("topic")
@click.option("--key", metavar="FIELD", help="The field of each object that is the record's key.")
@click.option(
    "--time",
    metavar="FIELD",
    help="The field that is its time: ns since 1970, or 2026-11-22T10:00:00Z.",
)
@click.option(
    "--keep-partitions", "keep", is_flag=True, help="Into the partitions that FILE names."
)
@click.pass_obj
def import_(
    settings: Settings, file: str, topic: str, key: str | None, time: str | None, keep: bool
) -> None:
    """Send the records of FILE (.jsonl or .csv) to TOPIC.

    How far it came stands in FILE.TOPIC.progress; a run after an interruption goes on there. One that was killed may
    repeat up to 20,000 records.
    """
    path = Path(file)
    beside = path.with_name(f"{path.name}.{topic}.progress")
    progress = resume.read(beside, resume.Imported) or resume.Imported(topic=topic)
    before = progress.records
    with Producer(where=settings.where) as producer, Interrupts() as interrupts:

        def flush(end: int, count: int) -> None:
            producer.flush()
            progress.size, progress.records = end, progress.records + count
            resume.write(beside, progress)

        count, end = 0, progress.size
        try:
            for record in _records(path, progress.size, Fields(key, time, keep)):
                with interrupts.held():
                    producer.send(
                        topic,
                        record.value,
                        key=record.key,
                        headers=record.headers or None,
                        timestamp=record.timestamp,
                        partition=record.partition,
                    )
                    count, end = count + 1, record.end
                    if count >= FLUSH_RECORDS:
                        flush(end, count)
                        count = 0
        finally:
            flush(end, count)
    settings.say(f"{progress.records - before:,} records of {file} sent to {topic}")


def _records(path: Path, start: int, fields: Fields) -> Iterator[Read]:
    if path.suffix == ".jsonl":
        return _of_json(path, start, fields)
    if path.suffix == ".csv":
        return _of_csv(path, start, fields)
    raise InvalidConfig(f"{path}: name it .jsonl or .csv")


def _of_json(path: Path, start: int, fields: Fields) -> Iterator[Read]:
    with open(path, "rb") as lines:
        ours = b'"kind":"record"' in lines.readline()
        _check(fields, ours=ours)
        lines.seek(start)
        place = start
        for number, line in enumerate(lines, 1):
            place += len(line)
            text = line.rstrip(b"\r\n")
            if not text:
                continue
            try:
                if ours:
                    key, value, timestamp, headers, partition = record_json.decode_placed(text)
                    kept = partition if fields.keep else None
                    yield Read(key, value, timestamp, headers, kept, place)
                else:
                    yield _of_object(text, msgspec.json.decode(text), fields, place)
            except (ValueError, msgspec.MsgspecError, UnicodeDecodeError) as error:
                raise SerializationError(
                    f"{path}, line {number} from byte {start} on: {error}"
                ) from None


def _check(fields: Fields, *, ours: bool) -> None:
    if ours and (fields.key or fields.time):
        raise InvalidConfig("export has written this file: its records have their keys and times")
    if fields.keep and not ours:
        raise InvalidConfig("--keep-partitions is for files that export has written")


def _of_object(text: bytes, read: Any, fields: Fields, end: int) -> Read:
    """A record whose value is an object, with key and time out of its fields."""
    key = timestamp = None
    if fields.key is not None:
        found = _field(read, fields.key)
        key = None if found is None else found.encode() if isinstance(found, str) else _json(found)
    if fields.time is not None:
        found = _field(read, fields.time)
        timestamp = int64(found) if isinstance(found, int) else parse_iso(str(found))
    return Read(key, text, timestamp, [], None, end)


def _field(read: Any, name: str) -> Any:
    if not isinstance(read, dict) or name not in read:
        raise ValueError(f"no field {name!r}")
    return read[name]


def _json(value: Any) -> bytes:
    return msgspec.json.encode(value)


class _Lines:
    """A file's lines as text, and how many bytes of it were read."""

    def __init__(self, lines: Iterable[bytes], place: int) -> None:
        self._lines = iter(lines)
        self.place = place

    def __iter__(self) -> _Lines:
        return self

    def __next__(self) -> str:
        line = next(self._lines)
        self.place += len(line)
        return line.decode()


def _of_csv(path: Path, start: int, fields: Fields) -> Iterator[Read]:
    csv.field_size_limit(CELL_BYTES_MAX)
    with open(path, "rb") as raw:
        head = _Lines(raw, 0)
        names = next(csv.reader(head), [])
        begin = max(start, head.place)
        raw.seek(begin)
        lines = _Lines(raw, begin)
        ours = tuple(names) == csv_text.COLUMNS
        _check(fields, ours=ours)
        try:
            for row in csv.reader(lines):
                if not row:
                    continue
                if len(row) != len(names):
                    raise ValueError(f"{len(row)} cells, the first line names {len(names)}")
                cells = dict(zip(names, row, strict=True))
                if ours:
                    key, value, timestamp, headers, partition = csv_text.record_of(cells)
                    kept = partition if fields.keep else None
                    yield Read(key, value, timestamp, headers, kept, lines.place)
                else:
                    yield _of_object(_json(cells), _numbers(cells, fields), fields, lines.place)
        except (ValueError, csv.Error, msgspec.MsgspecError) as error:
            raise SerializationError(f"{path}, before byte {lines.place}: {error}") from None


def _numbers(cells: dict[str, str], fields: Fields) -> dict[str, Any]:
    """The same, with a time in digits as the number that it is."""
    time = cells.get(fields.time or "")
    if time is not None and time.isascii() and time.isdigit():
        return {**cells, str(fields.time): int(time)}
    return cells
