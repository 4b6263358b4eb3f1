"""What the last uptime of a data directory left: its boot id, and whether it stopped cleanly.

`uptime.json` is written durably at each start, with `clean` false, before anything is appended, and again at
the end of a clean stop, after everything is synced. So `clean` implies that all was flushed, and another boot
id means that what was not synced may be gone.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from shmlog.registry import write_durably


class Uptime(msgspec.Struct, frozen=True):
    incarnation: int
    boot_id: str
    clean: bool


def read(data_dir: Path) -> Uptime | None:
    """The last uptime; None if there was none, or its file is damaged (then nothing is assumed)."""
    try:
        return msgspec.json.decode((data_dir / "uptime.json").read_bytes(), type=Uptime)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def write(data_dir: Path, uptime: Uptime) -> None:
    write_durably(data_dir / "uptime.json", msgspec.json.encode(uptime) + b"\n")
