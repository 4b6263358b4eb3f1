"""Every file name of a data directory, made and parsed here.

broker-N/
  TOPIC-PARTITION/
    00000000000000000000.log      batches, byte for byte, from base offset 0 on
    00000000000000000000.index    sparse: offset, position, running maximum of timestamps; rebuildable
    epochs                        leader epoch -> start offset
    checkpoint                    topic id, log start, high watermark, recovery point
    producers                     idempotence state as of an offset
    *.previous, *.new             the generation before; one being written
    *.log.cleaned, *.index.cleaned  what the cleaner makes of segments; removed at the next start
    BASE-END.log.swap             one of them that is about to take the place of those segments
    suspect                       damage was read: the next start looks at every checksum
    spare                         preallocated: the next segment, before its base offset is known
    *.log.corrupt, .corrupt.N     damaged segments and what lay behind them; kept
  quorum                          the metadata quorum's term, and this voter's vote in it
  opened/TOPIC-PARTITION          the topic id of a directory that was made here (see opened.py)
  deleted/TOPIC_ID-N/             on its way out
  TOPIC-PARTITION.stray.N/        not known to the metadata; kept
"""

from __future__ import annotations

import re
import zlib

METADATA_TOPIC = "__cluster_metadata"
EPOCHS = "epochs"
CHECKPOINT = "checkpoint"
PRODUCERS = "producers"
DELETED = "deleted"
QUORUM = "quorum"
SPARE = "spare"
SUSPECT = "suspect"
OPENED = "opened"
NAME_MAX = 255  # bytes of a file name (NAME_MAX of limits.h)
_SEGMENT = re.compile(r"(\d{20})\.log")
_SWAP = re.compile(r"(\d{20})-(\d{20})\.log\.swap")
CLEANED = ".cleaned"
_INDEX = re.compile(r"(\d{20})\.index")
_PARTITION = re.compile(r"([A-Za-z0-9._-]{1,249})-(\d{1,4})")


def partition_dir(topic: str, partition: int) -> str:
    """The directory of a partition."""
    return f"{topic}-{partition}"


def parse_partition_dir(name: str) -> tuple[str, int] | None:
    """(topic, partition) of a directory name; None if it is none."""
    match = _PARTITION.fullmatch(name)
    return (match[1], int(match[2])) if match else None


def segment_log(base_offset: int) -> str:
    """The file of a segment's batches."""
    return f"{base_offset:020d}.log"


def segment_index(base_offset: int) -> str:
    """The file of a segment's index."""
    return f"{base_offset:020d}.index"


def parse_segment_log(name: str) -> int | None:
    """The base offset in a segment's file name; None if it is none."""
    match = _SEGMENT.fullmatch(name)
    return int(match[1]) if match else None


def parse_segment_index(name: str) -> int | None:
    """The base offset in an index's file name; None if it is none."""
    match = _INDEX.fullmatch(name)
    return int(match[1]) if match else None


def cleaned_log(base_offset: int) -> str:
    """What the cleaner makes of segments that begin at `base_offset`."""
    return segment_log(base_offset) + CLEANED


def cleaned_index(base_offset: int) -> str:
    """Its index."""
    return segment_index(base_offset) + CLEANED


def swap_log(base_offset: int, end_offset: int) -> str:
    """The same once it is to take the place of the segments up to `end_offset`."""
    return f"{base_offset:020d}-{end_offset:020d}.log.swap"


def parse_swap_log(name: str) -> tuple[int, int] | None:
    """(base offset, end offset) of such a name; None if it is none."""
    match = _SWAP.fullmatch(name)
    return (int(match[1]), int(match[2])) if match else None


def corrupt(path: str, number: int) -> str:
    """Where a damaged segment goes; numbers go on where there is one already. Never again a segment's name."""
    return f"{path}.corrupt.{number}" if number else f"{path}.corrupt"


def deleted_dir(topic_id: bytes, partition: int) -> str:
    """Where a partition's directory goes when its topic is deleted."""
    return f"{DELETED}/{topic_id.hex()}-{partition}"


def stray_dir(directory: str, number: int) -> str:
    """Where a directory goes that the metadata does not know. Never again a partition's name."""
    parent, slash, name = directory.rpartition("/")
    suffix = f".stray.{number}"
    if len(name) + len(suffix) > NAME_MAX:
        suffix = f".{zlib.crc32(name.encode()):08x}{suffix}"
        name = name[: NAME_MAX - len(suffix)]
    return f"{parent}{slash}{name}{suffix}"
