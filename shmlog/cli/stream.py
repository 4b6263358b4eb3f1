"""`shmlog produce` and `shmlog consume`: records in, records out.

Both read or write as the data comes: what is typed is sent at once, what arrives is shown at
once. Formats are those of `formats`; `--json` stands for `-f json`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING

import click

from shmlog.cli.render import integers, pairs, say
from shmlog.errors import InvalidConfig, ShmlogError

if TYPE_CHECKING:
    from shmlog.cli.main import Settings
    from shmlog.cli.sending import Account, Sender

CHUNK_BYTES = 1 << 18
RECORD_BYTES_MAX = 1 << 20  # of a topic that is made by its first record
PARTLY_DONE = 6

FORMAT = click.option(
    "-f", "--format", "text", metavar="FMT", help=r"value, json, raw, hex, or such as '%k\t%v\n'."
)


@click.command()
@click.argument("topic")
@click.argument("files", nargs=-1, type=click.Path(exists=True, dir_okay=False, allow_dash=True))
@FORMAT
@click.option("-k", "--key", help="The key of every record.")
@click.option("-p", "--partition", type=click.IntRange(min=0), help="Send all to this one.")
@click.option("-H", "--header", "headers", multiple=True, metavar="K=V", help="On every record.")
@click.option("-z", "--compression", default="none", metavar="CODEC", help="Such as lz4 or zstd.")
@click.option("--acks", type=click.Choice(["all", "1", "0"]), default="all", show_default=True)
@click.option("--rate", type=click.FloatRange(min=0, min_open=True), help="Records a second.")
@click.pass_obj
def produce(
    settings: Settings,
    topic: str,
    files: tuple[str, ...],
    text: str | None,
    key: str | None,
    partition: int | None,
    headers: tuple[str, ...],
    compression: str,
    acks: str,
    rate: float | None,
) -> int:
    """Write records from FILES or standard input, one a line."""
    from shmlog.cli.parsing import Parser
    from shmlog.cli.sending import Fixed, Sender
    from shmlog.client.producer import Producer

    text = _format_of(text, settings)
    Parser(text).check_free(key=key is not None, partition=partition is not None)
    fixed = Fixed(
        key=None if key is None else key.encode(),
        partition=partition,
        headers=[(name, value.encode()) for name, value in pairs(headers, "-H").items()],
    )
    record_bytes_max = _record_bytes_max(settings, topic)
    with Producer(where=settings.where, acks=acks, compression=compression) as producer:
        limit = record_bytes_max or RECORD_BYTES_MAX
        sender = Sender(producer, topic, fixed, rate=rate, record_bytes_max=limit)
        account, trouble = _send_all(sender, files or ("-",), text, settings)
    if record_bytes_max is None and account.queued > account.failed:
        _say_created(settings, topic)
    if account.queued or trouble is None:
        say(account.text(topic), quiet=settings.quiet)
    return _end(account, trouble)


def _format_of(text: str | None, settings: Settings) -> str:
    if text is not None:
        return text
    return "json" if settings.output in ("json", "jsonl") else "value"


def _record_bytes_max(settings: Settings, topic: str) -> int | None:
    """The topic's largest batch; None if there is no such topic (yet)."""
    from shmlog.client.admin import Admin

    with Admin(settings.where) as admin:
        [info] = admin.metadata([topic]).topics
    return None if info.error else info.max_message_bytes


def _say_created(settings: Settings, topic: str) -> None:
    from shmlog.cli.admin import in_short
    from shmlog.client.admin import Admin

    with Admin(settings.where) as admin:
        say(f"created {in_short(admin.describe_topic(topic))}", quiet=settings.quiet)


def _send_all(
    sender: Sender, files: tuple[str, ...], text: str, settings: Settings
) -> tuple[Account, ShmlogError | KeyboardInterrupt | None]:
    """Send every file's records until one of them fails; the account, and what went wrong here."""
    from shmlog.cli.parsing import read_rows

    trouble: ShmlogError | KeyboardInterrupt | None = None
    try:
        with ExitStack() as stack:
            bar = _Progress(files, settings, stack)
            for name in files:
                source = stack.enter_context(click.open_file(name, "rb"))
                if not all(map(sender.send, read_rows(_chunks(source, bar), text))):
                    break
    except (ShmlogError, KeyboardInterrupt) as error:
        trouble = error
    return sender.finish(), trouble


class _Progress:
    """A bar on a terminal, for inputs whose size is known."""

    def __init__(self, files: tuple[str, ...], settings: Settings, stack: ExitStack) -> None:
        self._bar = None
        if not settings.quiet and sys.stderr.isatty() and "-" not in files:
            size = sum(os.path.getsize(name) for name in files)
            self._bar = stack.enter_context(click.progressbar(length=size, file=sys.stderr))

    def advance(self, size: int) -> None:
        """So many bytes more have been read."""
        if self._bar is not None:
            self._bar.update(size)


def _chunks(source: IO[bytes], bar: _Progress) -> Iterator[bytes]:
    # One read each: what a pipe holds now, not what it will hold when the chunk is full.
    read = getattr(source, "read1", source.read)
    while chunk := read(CHUNK_BYTES):
        bar.advance(len(chunk))
        yield chunk


def _end(account: Account, trouble: ShmlogError | KeyboardInterrupt | None) -> int:
    """The exit status. Raises what ended the sending if nothing else failed."""
    if account.failed:
        assert account.cause is not None
        say(f"first failure: {account.cause}")
        return PARTLY_DONE if account.queued > account.failed else account.cause.exit_status
    if trouble is not None:
        raise trouble
    return 0


@click.command()
@click.argument("topics", nargs=-1, required=True, metavar="TOPIC...")
@click.option(
    "-o",
    "--offset",
    "position",
    default="earliest",
    metavar="POS",
    help="earliest, latest, 123, +10, -10, @2026-11-22T10:00:00Z, @-1h, or A:B.",
)
@click.option("-n", "--count", type=click.IntRange(min=0), help="Stop after so many records.")
@click.option("-e", "--end", "to_end", is_flag=True, help="Stop at the ends as of now.")
@FORMAT
@click.option("-p", "--partitions", metavar="LIST", help="Such as 0,2-4.")
@click.option("--grep", metavar="RE", help="Only records whose key or value matches.")
@click.pass_obj
def consume(
    settings: Settings,
    topics: tuple[str, ...],
    position: str,
    count: int | None,
    to_end: bool,
    text: str | None,
    partitions: str | None,
    grep: str | None,
) -> int:
    """Read records of TOPICs (names or patterns such as 'orders.*') and go on following."""
    from shmlog.cli.printing import Printer
    from shmlog.cli.receiving import Selection, receive
    from shmlog.client.positions import parse_range

    printer = Printer(_format_of(text, settings), terminal=sys.stdout.isatty())
    start, stop = parse_range(position)
    selection = Selection(count, None if grep is None else _expression(grep))
    chosen = None if partitions is None else integers(partitions, "-p")
    receive(
        where=settings.where,
        topics=topics,
        partitions=chosen,
        start=start,
        stop=stop,
        to_end=to_end,
        selection=selection,
        printer=printer,
    )
    return 0


def _expression(grep: str) -> re.Pattern[bytes]:
    try:
        return re.compile(os.fsencode(grep))
    except re.error as error:
        raise InvalidConfig(f"--grep {grep!r}: {error}") from None
