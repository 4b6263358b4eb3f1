"""fsck on the files of a real broker: clean, then damaged in each way, and never changed."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from pathlib import Path

import msgspec
import pytest

import shmlog
from shmlog import directory, launch, registry
from shmlog.cli import main as cli
from shmlog.log import checkpoint, paths
from shmlog.log.os_storage import OsStorage
from shmlog.log.verify import Verification, verify

pytestmark = pytest.mark.process
RECORDS, RECORD_BYTES = 8, 20_000


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cluster that was stopped: eight records of one partition in several segments."""
    made = Path(tempfile.mkdtemp(prefix="slt-", dir="/tmp"))
    settings = {"segment_bytes": "64KiB", "ring_bytes": 0}
    directory.create_cluster(made, 1, topic=settings)
    supervisor = launch.Background(made)
    try:
        supervisor.wait_ready()
        with shmlog.connect(made) as client:
            client.admin.create_topic("t")
            for number in range(RECORDS):
                client.produce("t", bytes([number + 1]) * RECORD_BYTES)
    finally:
        supervisor.stop()
        kept = tmp_path_factory.mktemp("fsck") / "stopped"
        shutil.copytree(made, kept)
        shutil.rmtree(made)
    return kept


@pytest.fixture
def cluster(stopped: Path, tmp_path: Path) -> Path:
    return shutil.copytree(stopped, tmp_path / "c")


def partition(cluster: Path) -> Path:
    return cluster / "broker-0" / "t-0"


def segments(cluster: Path) -> list[Path]:
    return sorted(partition(cluster).glob("*.log"))


def verified(cluster: Path) -> Verification:
    return verify(OsStorage(), str(partition(cluster)))


def flip(file: Path, position: int) -> None:
    content = bytearray(file.read_bytes())
    content[position] ^= 4
    file.write_bytes(content)


def test_a_clean_partition_is_counted_and_has_nothing_wrong(cluster: Path) -> None:
    found = verified(cluster)
    assert (found.records, found.end_offset, found.log_start) == (RECORDS, RECORDS, 0)
    assert found.segments == len(segments(cluster)) >= 2
    assert found.size_bytes > RECORDS * RECORD_BYTES
    assert (found.damage, found.notes) == ([], [])


@pytest.mark.parametrize("which", [0, -1])
@pytest.mark.parametrize("position", [8, 16, 40, 64, 100, 1000, 20_000])
def test_one_flipped_bit_anywhere_is_damage(cluster: Path, which: int, position: int) -> None:
    file = segments(cluster)[which]
    flip(file, position)
    (damage,) = [text for text in verified(cluster).damage if "missing" not in text]
    assert file.name in damage


def test_a_lost_segment_is_damage(cluster: Path) -> None:
    segments(cluster)[1].unlink()
    assert any("no segment holds them" in text for text in verified(cluster).damage)


def test_a_lost_end_is_damage_if_it_was_synced(cluster: Path) -> None:
    segments(cluster)[-1].unlink()
    assert any("were synced and are missing" in text for text in verified(cluster).damage)


def test_half_a_batch_behind_all_that_was_synced_is_a_torn_tail(cluster: Path) -> None:
    last = segments(cluster)[-1]
    used = len(last.read_bytes().rstrip(b"\0"))
    with last.open("r+b") as file:
        first_bytes = file.read(500)
        file.seek(-(-used // 8) * 8)
        file.write(first_bytes)
    found = verified(cluster)
    assert found.damage == []
    assert any(text.startswith("torn tail") for text in found.notes)


def test_a_damaged_index_is_a_note(cluster: Path) -> None:
    index = sorted(partition(cluster).glob("*.index"))[0]
    flip(index, len(index.read_bytes()) - 1)
    found = verified(cluster)
    assert found.damage == []
    assert any(str(index) in text for text in found.notes)


def everything(cluster: Path) -> dict[str, tuple[bytes, int]]:
    return {
        str(file): (file.read_bytes(), file.stat().st_mtime_ns)
        for file in cluster.rglob("*")
        if file.is_file()
    }


def test_the_command_reports_and_changes_nothing(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.execute(["fsck", str(cluster), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["damaged"] == 0
    flip(segments(cluster)[0], 1000)
    before = everything(cluster)
    assert cli.execute(["fsck", str(cluster), "--json"]) == 7
    out, err = capsys.readouterr()
    report = json.loads(out)
    assert (report["kind"], report["v"], report["damaged"]) == ("fsck", 1, 1)
    assert {p["partition"] for p in report["partitions"]} >= {"t-0", "__cluster_metadata-0"}
    assert "damaged: " in err
    assert everything(cluster) == before


def test_a_locked_data_directory_is_refused(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    fd = registry.lock_data_dir(directory.load_cluster(cluster).data_dirs[0])
    try:
        assert cli.execute(["fsck", str(cluster)]) == 2
        assert f"pid {os.getpid()}" in capsys.readouterr().err
    finally:
        os.close(fd)


def test_damage_wholly_below_the_log_start_is_a_note(cluster: Path) -> None:
    path = str(partition(cluster) / paths.CHECKPOINT)
    known = checkpoint.read(OsStorage(), path, checkpoint.Checkpoint)
    assert known is not None
    with open(segments(cluster)[0], "r+b") as file:
        file.seek(5000)
        file.write(b"!")
    for log_start in (0, 1):
        value = msgspec.structs.replace(known, log_start=log_start)
        checkpoint.write(OsStorage(), path, value)
        found = verified(cluster)
        assert bool(found.damage) == (log_start == 0)
        assert any("below the log start" in note for note in found.notes) == (log_start == 1)


def test_a_partition_that_is_gone_is_damage(
    cluster: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    data_dir = cluster / "broker-0"
    shutil.rmtree(data_dir / "t-0")
    for path in (data_dir / "__cluster_metadata-0").iterdir():
        path.unlink()
    assert cli.execute(["fsck", str(cluster), "--json"]) == 7
    out, err = capsys.readouterr()
    found = {p["partition"]: p["damage"] for p in json.loads(out)["partitions"] if p["damage"]}
    assert found.keys() == {"t-0", "__cluster_metadata-0"}
    assert "put it back from a copy" in err
