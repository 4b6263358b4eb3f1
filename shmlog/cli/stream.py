"""`shmlog produce` and `shmlog consume`: records in, records out.

Both read or write as the data comes: what is typed is sent at once, what arrives is shown at
once. Formats are those of `formats`; `--json` stands for `-f json`.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, nullcontext
from typing import IO, TYPE_CHECKING

import click

from shmlog.cli.render import in_short, integers, pairs
from shmlog.cli.settings import Settings
from shmlog.errors import InvalidConfig, ShmlogError

if TYPE_CHECKING:
    from click._termui_impl import ProgressBar

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
    from shmlog.client.admin import Admin
    from shmlog.client.producer import Producer

    text = _format_of(text, settings)
    letters = Parser(text).letters
    for given, letter, option in ((key, "k", "-k"), (partition, "p", "-p")):
        if given is not None and letter in letters:
            raise InvalidConfig(f"format {text!r} brings %{letter}: leave out {option}")
    fixed = Fixed(
        key=None if key is None else key.encode(),
        partition=partition,
        headers=[(name, value.encode()) for name, value in pairs(headers, "-H").items()],
    )
    with Admin(settings.where) as admin:
        [info] = admin.metadata([topic]).topics
        limit = RECORD_BYTES_MAX if info.error else info.max_message_bytes
        with Producer(where=settings.where, acks=acks, compression=compression) as producer:
            sender = Sender(producer, topic, fixed, rate=rate, record_bytes_max=limit)
            account, trouble = _send_all(sender, files or ("-",), text, settings)
        if info.error and account.queued > account.failed:
            settings.say(f"created {in_short(admin.describe_topic(topic))}")
    if account.queued or trouble is None:
        settings.say(account.text(topic))
    if account.failed:
        assert account.cause is not None
        click.echo(f"first failure: {account.cause}", err=True)
        return PARTLY_DONE if account.queued > account.failed else account.cause.exit_status
    if trouble is not None:
        raise trouble
    return 0


def _format_of(text: str | None, settings: Settings) -> str:
    if text is not None:
        return text
    return "json" if settings.wants_json else "value"


def _send_all(
    sender: Sender, files: Sequence[str], text: str, settings: Settings
) -> tuple[Account, ShmlogError | KeyboardInterrupt | None]:
    """Send every file's records until one of them fails; the account, and what went wrong here."""
    from shmlog.cli.parsing import read_rows

    trouble: ShmlogError | KeyboardInterrupt | None = None
    try:
        with ExitStack() as stack:
            bar = None
            if not settings.quiet and sys.stderr.isatty() and "-" not in files:
                size = sum(os.path.getsize(name) for name in files)
                bar = stack.enter_context(click.progressbar(length=size, file=sys.stderr))
            for name in files:
                source = stack.enter_context(click.open_file(name, "rb"))
                if not all(map(sender.send, read_rows(_chunks(source, bar), text))):
                    break
    except (ShmlogError, KeyboardInterrupt) as error:
        trouble = error
    return sender.finish(), trouble


def _chunks(source: IO[bytes], bar: ProgressBar[int] | None) -> Iterator[bytes]:
    # One read each: what a pipe holds now, not what it will hold when the chunk is full.
    read = getattr(source, "read1", source.read)
    while chunk := read(CHUNK_BYTES):
        if bar is not None:
            bar.update(len(chunk))
        yield chunk


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
) -> None:
    """Read records of TOPICs (names or patterns such as 'orders.*') and go on following."""
    from shmlog.cli.printing import Printer
    from shmlog.cli.receiving import Selection, receive
    from shmlog.client.admin import Admin
    from shmlog.client.consumer import Consumer
    from shmlog.client.positions import EARLIEST, LATEST, parse_range

    printer = Printer(_format_of(text, settings), terminal=sys.stdout.isatty())
    start, stop = parse_range(position)
    chosen = None if partitions is None else integers(partitions, "-p")
    try:
        selection = Selection(count, None if grep is None else re.compile(os.fsencode(grep)))
    except re.error as error:
        raise InvalidConfig(f"--grep {grep!r}: {error}") from None
    with (
        Admin(settings.where) if printer.wants_ends else nullcontext() as admin,
        Consumer(
            *topics,
            where=settings.where,
            partitions=chosen,
            start=start or EARLIEST,
            stop=LATEST if to_end and stop is None else stop,
        ) as consumer,
    ):
        limit = stop if to_end else None
        receive(consumer, admin, limit=limit, selection=selection, printer=printer)
