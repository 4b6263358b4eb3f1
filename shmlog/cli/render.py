"""How results look: aligned tables, tab-separated lines, JSON. Data goes to stdout, the rest to
stderr.

One list of rows (JSON objects) serves all four outputs:

    table   header, aligned, numbers to the right; for people
    plain   one line a row, cells between tabs, no header, always the same columns; for cut and awk
    json    one document: an array of the objects, or the one object
    jsonl   one object a line

Every object has `kind` and `v`. A cell that holds nothing is `-`.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from shmlog.errors import InvalidConfig

if TYPE_CHECKING:
    from shmlog.protocol.messages import DescribeTopicAnswer

Row = Mapping[str, Any]


class Column(NamedTuple):
    """One column: its title, and what of the row stands in it; without `value`, the title's."""

    title: str
    value: Callable[[Row], Any] | None = None
    right: bool = False

    def cell(self, row: Row) -> str:
        """The text of this column in `row`."""
        return cell_text(row[self.title] if self.value is None else self.value(row))


def cell_text(value: Any) -> str:
    """A value as it stands in a table; nothing and empty lists are `-`."""
    if value is None or value == "" or value == []:
        return "-"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list | tuple):
        return ",".join(map(str, value))
    return str(value).replace("\t", " ").replace("\n", " ")


def write_rows(rows: Sequence[Row], columns: Sequence[Column], output: str) -> None:
    """A list, in the output asked for."""
    cells = [[column.cell(row) for column in columns] for row in rows]
    if output == "json":
        write_object(rows)
    elif output == "jsonl":
        for row in rows:
            write_object(row)
    elif output == "plain":
        for line in cells:
            click.echo("\t".join(line))
    elif rows:
        click.echo(table(cells, columns), nl=False)


def write_object(value: Any) -> None:
    """A JSON document on one line, with what is no ASCII kept as it is."""
    import msgspec

    click.echo(msgspec.json.encode(value))


def table(cells: Sequence[Sequence[str]], columns: Sequence[Column]) -> str:
    """Lines of equal columns under their titles."""
    lines = [[column.title.replace("_", " ") for column in columns], *cells]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    text = ""
    for line in lines:
        parts = [
            cell.rjust(width) if column.right else cell.ljust(width)
            for cell, width, column in zip(line, widths, columns, strict=True)
        ]
        text += "  ".join(parts).rstrip() + "\n"
    return text


def plural(count: int, noun: str) -> str:
    """`1 partition`, `20,000 partitions`."""
    return f"{count:,} {noun}{'' if count == 1 else 's'}"


def in_short(made: DescribeTopicAnswer) -> str:
    """A topic in a line."""
    return (
        f"topic {made.topic}: {plural(made.partition_count, 'partition')}, "
        f"{plural(made.replication_factor, 'replica')}, "
        f"durability {made.configs['durability'].value}"
    )


def confirm(question: str, *, yes: bool) -> None:
    """Ask before something that cannot be undone; in a script `--yes` has to be there.

    Raises: click.UsageError (exit 2) in a script, click.Abort if the answer is no.
    """
    if yes:
        return
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise click.UsageError(f"{question} Nothing was done; in a script, add --yes.")
    click.confirm(question, abort=True, err=True)


def pairs(given: Sequence[str], option: str) -> dict[str, str]:
    """{key: value} of repeated `key=value` options, the last one counts. Raises InvalidConfig."""
    found = {}
    for text in given:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise InvalidConfig(f"{option} {text!r}: write {option} key=value")
        found[key] = value
    return found


def integers(text: str, option: str) -> list[int]:
    """Sorted numbers of "0,2-4". Raises InvalidConfig."""
    found: set[int] = set()
    for part in text.split(","):
        first, dash, last = part.partition("-")
        if not first.isdecimal() or (dash and not last.isdecimal()):
            raise InvalidConfig(f"{option} {text!r}: write numbers and ranges such as 0,2-4")
        high = int(last) if dash else int(first)
        if not int(first) <= high < 1 << 20:
            raise InvalidConfig(f"{option} {text!r}: {part} is no range of partitions")
        found.update(range(int(first), high + 1))
    return sorted(found)
