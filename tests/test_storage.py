"""What every storage has to do, held against the one in memory and the real one; then the real one's loops."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from shmlog.log.os_storage import OsStorage
from shmlog.log.storage import MemoryStorage, Storage


@pytest.fixture(params=["memory", "os"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Storage, str]:
    """A storage and a directory in it."""
    storage: Storage = MemoryStorage() if request.param == "memory" else OsStorage()
    directory = "data" if request.param == "memory" else str(tmp_path / "data")
    storage.make_dir(directory)
    return storage, directory


def content(storage: Storage, path: str) -> bytes:
    file = storage.open(path, read_only=True)
    try:
        return file.pread(file.size(), 0)
    finally:
        file.close()


def put(storage: Storage, path: str, data: bytes) -> None:
    file = storage.open(path, create=True)
    file.pwrite([data], 0)
    file.close()


def test_buffers_of_all_kinds_are_written_one_behind_the_other(place: tuple[Storage, str]) -> None:
    storage, directory = place
    file = storage.open(f"{directory}/f", create=True)
    file.pwrite([b"ab", bytearray(b"cd"), memoryview(b"-ef-")[1:3], b""], 3)
    assert file.size() == 9
    assert file.pread(100, 0) == b"\0\0\0abcdef"
    assert file.pread(2, 4) == b"bc"
    assert file.pread(5, 9) == b""
    file.pwrite([b"XY"], 4)
    assert file.pread(9, 3) == b"aXYdef"
    file.sync()
    file.close()


def test_many_buffers_are_one_write(place: tuple[Storage, str]) -> None:
    storage, directory = place
    pieces = [b"%04d" % number for number in range(3000)]
    file = storage.open(f"{directory}/f", create=True)
    file.pwrite(pieces, 0)
    file.close()
    assert content(storage, f"{directory}/f") == b"".join(pieces)


def test_allocation_grows_with_zeros_and_keeps_what_is_there(place: tuple[Storage, str]) -> None:
    storage, directory = place
    file = storage.open(f"{directory}/f", create=True)
    file.pwrite([b"abc"], 0)
    file.allocate(2, 6)
    assert file.pread(100, 0) == b"abc\0\0\0\0\0"
    file.allocate(0, 4)
    assert file.size() == 8
    file.truncate(2)
    assert file.pread(100, 0) == b"ab"
    file.allocate(2, 2)
    assert file.pread(100, 0) == b"ab\0\0"
    file.close()


def test_a_second_handle_outlives_the_first_and_the_name(place: tuple[Storage, str]) -> None:
    storage, directory = place
    file = storage.open(f"{directory}/f", create=True)
    second = file.dup()
    file.close()
    storage.unlink(f"{directory}/f")
    second.pwrite([b"abc"], 0)
    second.sync()
    assert second.pread(3, 0) == b"abc"
    second.close()
    assert not storage.exists(f"{directory}/f")


def test_a_missing_file_is_an_error_unless_it_may_be_made(place: tuple[Storage, str]) -> None:
    storage, directory = place
    for read_only in (True, False):
        with pytest.raises(FileNotFoundError):
            storage.open(f"{directory}/f", read_only=read_only)
    put(storage, f"{directory}/f", b"x")
    storage.open(f"{directory}/f", create=True).close()
    assert content(storage, f"{directory}/f") == b"x"


def test_names(place: tuple[Storage, str]) -> None:
    storage, directory = place
    assert storage.list(directory) == []
    for name in ("b", "a"):
        put(storage, f"{directory}/{name}", name.encode())
    storage.make_dir(f"{directory}/c/d")
    storage.make_dir(f"{directory}/c/d")
    put(storage, f"{directory}/c/d/inside", b"i")
    assert storage.list(directory) == ["a", "b", "c"]
    storage.rename(f"{directory}/a", f"{directory}/b")
    assert content(storage, f"{directory}/b") == b"a"
    storage.rename(f"{directory}/c", f"{directory}/e")
    assert content(storage, f"{directory}/e/d/inside") == b"i"
    storage.sync_dir(directory)
    storage.unlink(f"{directory}/b")
    storage.unlink(f"{directory}/b")
    assert not storage.exists(f"{directory}/b")
    storage.remove_tree(f"{directory}/e")
    storage.remove_tree(f"{directory}/e")
    assert not storage.exists(f"{directory}/e/d/inside")
    assert storage.list(directory) == []


def test_a_directory_never_replaces_one_that_has_files(place: tuple[Storage, str]) -> None:
    storage, directory = place
    for name in ("one", "two"):
        storage.make_dir(f"{directory}/{name}")
        put(storage, f"{directory}/{name}/f", b"")
    with pytest.raises(OSError, match=r"not empty|exists") as raised:
        storage.rename(f"{directory}/one", f"{directory}/two")
    assert raised.value.errno in (errno.ENOTEMPTY, errno.EEXIST)


def test_files_and_directories_are_for_their_owner_only(tmp_path: Path) -> None:
    storage = OsStorage()
    storage.make_dir(str(tmp_path / "data"))
    put(storage, str(tmp_path / "data" / "f"), b"")
    assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "data" / "f").stat().st_mode & 0o777 == 0o600


def test_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "f").symlink_to(tmp_path / "target")
    with pytest.raises(OSError, match="symbolic") as raised:
        OsStorage().open(str(tmp_path / "f"), create=True)
    assert raised.value.errno == errno.ELOOP
    assert not (tmp_path / "target").exists()


@pytest.mark.parametrize("most", [1, 3, 7, 64])
def test_short_writes_and_reads_are_continued(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    pwritev, pread = os.pwritev, os.pread
    writes = []

    def few(fd: int, buffers: Sequence[Any], position: int) -> int:
        writes.append(position)
        return pwritev(fd, [b"".join(map(bytes, buffers))[:most]], position)

    def little(fd: int, size: int, position: int) -> bytes:
        return pread(fd, min(size, most), position)

    monkeypatch.setattr(os, "pwritev", few)
    monkeypatch.setattr(os, "pread", little)
    pieces = [b"abc", b"", b"defgh", b"i" * 40]
    put(OsStorage(), str(tmp_path / "f"), b"")
    file = OsStorage().open(str(tmp_path / "f"))
    file.pwrite(pieces, 5)
    assert file.pread(100, 5) == b"".join(pieces)
    file.close()
    assert len(writes) >= 48 // most


def test_after_a_kill_all_that_was_written_is_there(place: tuple[Storage, str]) -> None:
    storage, directory = place
    if not isinstance(storage, MemoryStorage):
        pytest.skip("images are of the storage in memory")
    put(storage, f"{directory}/f", b"abcd")
    lengths = set()
    for seed in range(30):
        image = storage.after_kill(random.Random(seed), in_flight=(f"{directory}/f", 4, b"efgh"))
        data = content(image, f"{directory}/f")
        assert b"abcdefgh".startswith(data)
        lengths.add(len(data))
    assert lengths == {4, 5, 6, 7, 8}


def test_after_a_power_cut_only_what_was_synced_is_sure() -> None:
    storage = MemoryStorage()
    storage.make_dir("data/d")
    storage.sync_dir("data")
    file = storage.open("data/d/f", create=True)
    file.pwrite([b"a" * 1024], 0)
    file.sync()
    names = {storage.after_power_cut(random.Random(s)).exists("data/d/f") for s in range(30)}
    assert names == {True, False}
    storage.sync_dir("data/d")
    file.pwrite([b"b" * 1024], 512)
    seen = set()
    for seed in range(60):
        data = content(storage.after_power_cut(random.Random(seed)), "data/d/f")
        assert data[:512] == b"a" * 512
        seen.add(data)
    assert len(seen) > 3
    file.sync()
    for seed in range(10):
        image = storage.after_power_cut(random.Random(seed))
        assert content(image, "data/d/f") == b"a" * 512 + b"b" * 1024
