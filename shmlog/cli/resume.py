"""Where an export or import goes on: a small file beside the data, replaced in one step.

It is written after what it speaks of: an export's file holds at least `size` bytes then, an import's records are
acked. So after a kill at any moment nothing is left out. An export cuts its file to `size` before it goes on, so
nothing is doubled either; an import may repeat what was sent after the file was last written.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeVar

import msgspec

from shmlog.errors import InvalidConfig

T = TypeVar("T", bound="Progress")


class Progress(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What both have: `size` bytes of the file are done."""

    size: int = 0


class Exported(Progress, kw_only=True):
    """`next`: by partition, the offset to go on at. `topic_id`: of the topic that was exported."""

    topic: str
    topic_id: str
    next: dict[int, int] = {}


class Imported(Progress, kw_only=True):
    """`records` were made of these bytes."""

    topic: str
    records: int = 0


def read(file: Path, kind: type[T]) -> T | None:
    """What stands there, None if there is no such file. Raises InvalidConfig: it is something else."""
    try:
        return msgspec.json.decode(file.read_bytes(), type=kind)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise InvalidConfig(f"{file} does not say where to go on: {error}; remove it") from None


def write(file: Path, progress: Progress) -> None:
    """Replace it."""
    draft = file.with_name(file.name + ".new")
    draft.write_bytes(msgspec.json.encode(progress) + b"\n")
    os.replace(draft, file)
