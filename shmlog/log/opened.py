"""Which partition directories were made here before: one that is gone must not be taken for a new one.

A file `opened/TOPIC-PARTITION` beside the directory holds the topic's id. It is written once the directory has its
first checkpoint, and again at any later start that does not find it, so it needs no sync of its own.
"""

from __future__ import annotations

from collections.abc import Collection

from shmlog.log import paths
from shmlog.log.storage import Storage


def mark_path(directory: str) -> str:
    """The file that remembers a directory."""
    parent, slash, name = directory.rpartition("/")
    return f"{parent}{slash}{paths.OPENED}/{name}"


def was_opened(storage: Storage, directory: str, topic_id: bytes) -> bool:
    """Was the directory of this topic's partition made before?"""
    path = mark_path(directory)
    return storage.exists(path) and _read(storage, path) == topic_id.hex().encode()


def remember(storage: Storage, directory: str, topic_id: bytes) -> None:
    """The directory is there. Raises OSError."""
    path = mark_path(directory)
    storage.make_dir(path.rpartition("/")[0])
    file = storage.open(path, create=True)
    try:
        file.pwrite([topic_id.hex().encode()], 0)
    finally:
        file.close()


def forget(storage: Storage, directory: str, topic_id: bytes) -> None:
    """The partition was deleted; the mark of a new topic of that name stays."""
    if was_opened(storage, directory, topic_id):
        storage.unlink(mark_path(directory))


def marks(storage: Storage, data_dir: str) -> list[str]:
    """The names of all directories that were made and not deleted."""
    path = f"{data_dir}/{paths.OPENED}"
    return storage.list(path) if storage.exists(path) else []


def keep_only(storage: Storage, data_dir: str, names: Collection[str]) -> None:
    """Forget what was deleted when nobody could take note."""
    for name in marks(storage, data_dir):
        if name not in names:
            storage.unlink(f"{data_dir}/{paths.OPENED}/{name}")


def _read(storage: Storage, path: str) -> bytes:
    file = storage.open(path, read_only=True)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()
