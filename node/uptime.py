"""What the last uptime of a data directory left: its boot id, and whether it stopped cleanly.

`uptime.json` is written durably at each start, with `clean` false, before anything is appended, and again at
the end of a clean stop, after everything is synced. So `clean` implies that all was flushed, and another boot
id means that what was not synced may be gone. `replaced` says that the directory is not the one of the last start
(registry.Starts): it may lack anything that was promised.

All three are evidence about the logs (docs/rules.md, lossy), so they stand until the logs were judged by
them: until recovery is done and registered, the file says of the last uptime what it said before.
"""

from __future__ import annotations

from pathlib import Path

import msgspec

from shmlog.log import paths
from shmlog.log.storage import Storage
from shmlog.registry import write_durably


class Uptime(msgspec.Struct, frozen=True):
    incarnation: int
    boot_id: str
    clean: bool
    replaced: bool = False


def read(data_dir: Path) -> Uptime | None:
    """The last uptime; None if there was none, or its file is damaged (then nothing is assumed)."""
    try:
        return msgspec.json.decode((data_dir / "uptime.json").read_bytes(), type=Uptime)
    except (FileNotFoundError, msgspec.MsgspecError, UnicodeDecodeError):
        return None


def before(last: Uptime | None, storage: Storage, data_dir: str, boot_id: str) -> Uptime | None:
    """What the logs are to be judged by: `last`, or this boot where there are none.

    A first start that was killed before it wrote its uptime leaves none, and has opened no log either (the
    metadata log comes first): what the next one makes is not of another boot.
    """
    metadata_dir = f"{data_dir}/{paths.partition_dir(paths.METADATA_TOPIC, 0)}"
    if last is None and not storage.exists(metadata_dir):
        return Uptime(0, boot_id, clean=False)
    return last


def at_start(last: Uptime | None, incarnation: int, *, replaced: bool) -> Uptime:
    """What to write before anything is opened: not clean, and the logs are as the last boot left them."""
    return Uptime(incarnation, "" if last is None else last.boot_id, clean=False, replaced=replaced)


def after_stop(
    last: Uptime | None, incarnation: int, boot_id: str, *, replaced: bool, recovered: bool
) -> Uptime:
    """What to write once all is synced and closed. Logs that were never opened are no cleaner than before."""
    if recovered:
        return Uptime(incarnation, boot_id, clean=True)
    before = at_start(last, incarnation, replaced=replaced)
    return msgspec.structs.replace(before, clean=last is not None and last.clean)


def write(data_dir: Path, uptime: Uptime) -> None:
    write_durably(data_dir / "uptime.json", msgspec.json.encode(uptime) + b"\n")
