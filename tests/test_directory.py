"""The cluster directory: its file, its registry, its memory lists, and how it is found."""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import posix_ipc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmlog import clock, directory, process, registry
from shmlog.errors import ClusterNotFound, DiskFull, InvalidConfig

NOW_NS = 1_795_341_740_021_518_000


def entry(pid: int = 1, incarnation: int = 1) -> directory.BrokerEntry:
    return directory.BrokerEntry(
        cluster="abc",
        broker=0,
        incarnation=incarnation,
        pid=pid,
        boot_id="boot",
        endpoints={"client": "ipc:///x"},
        started=NOW_NS,
    )


@pytest.fixture
def cluster(short_dir: Path) -> Path:
    directory.create_cluster(short_dir, 1)
    return short_dir


# -- cluster.toml -------------------------------------------------------------------------------


def test_a_new_cluster_is_private_and_reads_back_as_made(short_dir: Path) -> None:
    path = short_dir / "c"
    made = directory.create_cluster(
        path,
        1,
        topic={"durability": "disk", "ring.bytes": "16MiB"},
        settings={"auto_create_topics": "true"},
    )
    assert made == directory.load_cluster(path)
    assert len(made.cluster) == 22
    assert made.cluster.isalnum()
    assert made.brokers == (0,)
    assert made.topic_defaults == {"durability": "disk", "ring_bytes": 16 << 20}
    assert made.settings.auto_create_topics is True
    assert path.stat().st_mode & 0o777 == 0o700
    assert sorted(os.listdir(path)) == ["cluster.toml", "run"]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ('format = 2\ncluster = "a"\nbrokers = [0]', "format 2: this version reads 1"),
        ('cluster = "a"\nbrokers = [0]', "format None"),
        ('format = 1\nclustr = "a"\nbrokers = [0]', "unknown key 'clustr'; did you mean 'cluster'"),
        ('format = 1\ncluster = "a b"\nbrokers = [0]', "letters and digits"),
        ('format = 1\ncluster = "a"\nbrokers = [0, 0]', "each once"),
        ('format = 1\ncluster = "a"\nbrokers = []', "at least one"),
        ('format = 1\ncluster = "a"\nbrokers = [-1]', "whole numbers from 0"),
        ('format = 1\ncluster = "a"\nbrokers = [0, 1]\nvoters = [0, 1]', "1, 3 or 5 of the"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\nvoters = [1]', "1, 3 or 5 of the"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\nvoters = 0', "voters = 0: must be a list"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\n[broker.1]\ndata = "x"', "there are brokers 0"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\n[broker.0]\ndate = "x"', "did you mean 'data'"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\n[broker.0]\ndata = 1', "must be a path"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\n[broker.0]\ndata = "run"', "in use already"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\n[broker.0]\ndata = "."', "in use already"),
        ('format = 1\ncluster = "a"\nbrokers = [0, 1]\n[broker.0]\ndata = "broker-1/x"', "in use"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\nbroker = 1', r"\[broker.0\]"),
        ('format = 1\ncluster = "a"\nbrokers = [true]', "whole numbers"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\n[topic]\ndurabilty = "os"', "'durability'"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\n[topic]\nring_bytes = "300KiB"', "4 x"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\n[settings]\nfence_kill = 1', "not built"),
        ('format = 1\ncluster = "a"\nbrokers = [0]\nsettings = 1', r"\[settings\]"),
        ("format = ", "cluster.toml"),
    ],
)
def test_what_is_wrong_in_the_file_is_named(cluster: Path, text: str, says: str) -> None:
    directory.cluster_file(cluster).write_text(text)
    with pytest.raises(InvalidConfig, match=says):
        directory.load_cluster(cluster)


@settings(deadline=None, max_examples=200, derandomize=True)
@given(st.binary(max_size=200))
def test_any_bytes_in_the_file_are_a_typed_error(content: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory.cluster_file(Path(name)).write_bytes(content)
        with pytest.raises(InvalidConfig):
            directory.load_cluster(Path(name))


@pytest.mark.parametrize("mode", [0o720, 0o702, 0o777])
def test_a_directory_that_others_may_write_to_is_refused(cluster: Path, mode: int) -> None:
    cluster.chmod(mode)
    with pytest.raises(InvalidConfig, match=f"mode {mode:04o}.*chmod 700"):
        directory.load_cluster(cluster)


def test_a_directory_of_somebody_else_is_refused(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    with pytest.raises(InvalidConfig, match=f"belongs to uid {owner}"):
        directory.load_cluster(cluster)


def test_a_directory_with_other_things_in_it_is_not_made_a_cluster(short_dir: Path) -> None:
    (short_dir / "thesis.tex").touch()
    with pytest.raises(InvalidConfig, match=r"thesis\.tex"):
        directory.create_cluster(short_dir, 1)
    assert os.listdir(short_dir) == ["thesis.tex"]


def test_a_refused_cluster_leaves_no_file(short_dir: Path) -> None:
    with pytest.raises(InvalidConfig, match="4 x"):
        directory.create_cluster(short_dir / "c", 1, topic={"ring_bytes": "300KiB"})
    with pytest.raises(InvalidConfig, match="at least one"):
        directory.create_cluster(short_dir / "d", 0)
    assert not directory.cluster_file(short_dir / "c").exists()
    assert not (short_dir / "d").exists()


def test_no_cluster_is_said_so(short_dir: Path) -> None:
    with pytest.raises(ClusterNotFound, match=r"no cluster\.toml"):
        directory.load_cluster(short_dir)


def test_a_socket_path_may_have_107_bytes_and_no_more(short_dir: Path) -> None:
    for socket, name in (
        (directory.client_socket, "run/broker-0.sock"),
        (directory.peer_socket, "run/broker-0.peer.sock"),
    ):
        longest = Path("/" + "d" * (107 - len(name) - 2))
        assert len(str(socket(longest, 0))) == 107
        with pytest.raises(InvalidConfig, match=r"is 108 bytes, the system allows 107: .*--dir"):
            socket(Path(f"{longest}d"), 0)
        with pytest.raises(InvalidConfig, match="is 108 bytes"):  # two bytes for the letter
            socket(Path(f"{str(longest)[:-1]}é"), 0)


def test_a_cluster_is_not_made_where_its_longest_socket_has_no_room(short_dir: Path) -> None:
    room = 107 - len(f"{short_dir}/") - len("/run/broker-9.peer.sock")
    path = short_dir / ("d" * room)
    with pytest.raises(InvalidConfig, match=r"108 bytes.*broker-10\.peer\.sock"):
        directory.create_cluster(path, 11)
    assert not path.exists()
    directory.create_cluster(path, 10)
    moved = path.rename(f"{path}d")
    with pytest.raises(InvalidConfig, match="108 bytes"):
        directory.open_cluster(moved)


@pytest.mark.parametrize(
    ("brokers", "voters"), [(1, 1), (2, 1), (3, 3), (4, 3), (5, 5), (6, 5), (9, 5)]
)
def test_the_first_one_three_or_five_brokers_vote(
    short_dir: Path, brokers: int, voters: int
) -> None:
    made = directory.create_cluster(short_dir, brokers)
    assert made.brokers == tuple(range(brokers))
    assert made.voters == tuple(range(voters))
    file = directory.cluster_file(short_dir)
    # The file says so, lest a broker that is added later makes others vote.
    assert f"voters = {list(range(voters))}\n" in file.read_text()
    kept = [line for line in file.read_text().splitlines() if "voters" not in line]
    file.write_text("\n".join(kept))
    assert directory.load_cluster(short_dir).voters == made.voters


def test_a_data_directory_may_lie_elsewhere(short_dir: Path) -> None:
    path, disk = short_dir / "c", short_dir / "disk"
    directory.create_cluster(path, 3)
    with directory.cluster_file(path).open("a") as file:
        file.write(f'[broker.1]\ndata = "{disk}/one"\n[broker.2]\ndata = "../two"\n[broker.0]\n')
    assert directory.load_cluster(path).data_dirs == {
        0: path / "broker-0",
        1: disk / "one",
        2: short_dir / "two",
    }
    (short_dir / "two").mkdir(mode=0o777)
    (short_dir / "two").chmod(0o777)
    with pytest.raises(InvalidConfig, match="two has mode 0777"):
        directory.load_cluster(path)


# -- who lives ----------------------------------------------------------------------------------


def test_an_entry_lives_as_long_as_its_lock(cluster: Path) -> None:
    mine = registry.Registration(directory.registry_file(cluster, 0))
    mine.publish(entry(pid=os.getpid()))
    assert directory.read_brokers(cluster) == {0: entry(pid=os.getpid())}
    mine.close(remove=False)
    assert directory.read_brokers(cluster) == {}
    seen = directory.read_entries(cluster)[0]
    assert (seen.entry.pid, seen.alive, seen.died_ns) == (os.getpid(), False, None)
    mine.close()  # twice is once


def test_a_full_disk_is_said_in_one_line(cluster: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(DiskFull, match=r"broker-0.*No space left on device: make some, then start"):
        registry.Registration(directory.registry_file(cluster, 0)).publish(entry())


def test_a_clean_stop_removes_the_entry(cluster: Path) -> None:
    mine = registry.Registration(directory.registry_file(cluster, 0))
    mine.publish(entry())
    mine.close()
    assert directory.read_entries(cluster) == {}
    assert os.listdir(directory.run_dir(cluster)) == []


def test_a_living_owner_is_not_replaced_a_dead_one_is(cluster: Path) -> None:
    first, second = (registry.Registration(directory.registry_file(cluster, 0)) for _ in "12")
    first.publish(entry(incarnation=1))
    with pytest.raises(InvalidConfig, match="living process"):
        second.publish(entry(incarnation=2))
    assert directory.read_brokers(cluster)[0].incarnation == 1
    first.close(remove=False)
    second.publish(entry(incarnation=2))
    first.close()
    assert directory.read_brokers(cluster)[0].incarnation == 2
    second.close()


def test_a_registration_does_not_remove_its_successor(cluster: Path) -> None:
    first = registry.Registration(directory.registry_file(cluster, 0))
    first.publish(entry(incarnation=1))
    directory.registry_file(cluster, 0).unlink()
    second = registry.Registration(directory.registry_file(cluster, 0))
    second.publish(entry(incarnation=2))
    first.close(remove=True)
    assert directory.read_brokers(cluster)[0].incarnation == 2
    second.close()


def test_a_death_that_was_seen_is_dated(cluster: Path) -> None:
    mine = registry.Registration(directory.registry_file(cluster, 0))
    mine.publish(entry(pid=77))
    directory.stamp_death(cluster, 0)  # it lives: nothing happens
    mine.close(remove=False)
    assert directory.read_entries(cluster)[0].died_ns is None
    directory.stamp_death(cluster, 0)
    died_ns = directory.read_entries(cluster)[0].died_ns
    assert died_ns is not None
    assert abs(clock.SYSTEM_CLOCK.wall_ns() - died_ns) < 10 * clock.NS_PER_S
    with pytest.raises(ClusterNotFound, match=r"broker 0 \(pid 77\) died \d+ ms ago"):
        raise directory.nobody_lives(cluster)


def test_a_pidfd_is_taken_of_who_holds_the_lock_and_of_nobody_else(
    cluster: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """E4: the pid may be another process's by the time it is opened."""
    assert directory.watch_broker(cluster, 0) is None
    mine = registry.Registration(directory.registry_file(cluster, 0))
    mine.publish(entry(pid=os.getpid()))
    found = directory.watch_broker(cluster, 0)
    assert found is not None
    assert found[0].pid == os.getpid()
    assert not process.has_ended(found[1])
    os.close(found[1])
    open_pidfd, before = process.open_pidfd, process.open_descriptors()

    def open_late(pid: int) -> int | None:
        mine.close(remove=False)  # it dies in between
        return open_pidfd(pid)

    monkeypatch.setattr(process, "open_pidfd", open_late)
    assert directory.watch_broker(cluster, 0) is None
    assert process.open_descriptors() == before - 1  # the registration's
    assert directory.watch_broker(cluster, 0) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"kind":"broker"}', b"\xff\xfe"])
def test_half_a_registration_is_none(cluster: Path, content: bytes) -> None:
    directory.registry_file(cluster, 0).write_bytes(content)
    assert directory.read_entries(cluster) == {}


def test_kill_minus_9_frees_the_lock(cluster: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from shmlog import directory, registry\n"
        "path = Path(sys.argv[1]) / 'broker-0'; registry.lock_data_dir(path)\n"
        "print('locked', flush=True); sys.stdin.read()"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(cluster)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"locked\n"
    data_dir = directory.load_cluster(cluster).data_dirs[0]
    assert registry.data_dir_owner(data_dir) == child.pid
    with pytest.raises(InvalidConfig, match=rf"already runs on .* \(pid {child.pid}\)"):
        registry.lock_data_dir(data_dir)
    child.kill()
    child.communicate()
    os.close(registry.lock_data_dir(data_dir))
    assert registry.data_dir_owner(data_dir) is None


def test_asking_who_owns_a_directory_never_keeps_a_broker_out(cluster: Path) -> None:
    data_dir = directory.load_cluster(cluster).data_dirs[0]
    os.close(registry.lock_data_dir(data_dir))
    code = (
        "import sys; from pathlib import Path; from shmlog import registry\n"
        "path = Path(sys.argv[1]); print('asking', flush=True)\n"
        "while True: registry.data_dir_owner(path)"
    )
    asking = subprocess.Popen([sys.executable, "-c", code, str(data_dir)], stdout=subprocess.PIPE)
    try:
        assert asking.stdout is not None
        asking.stdout.readline()
        for _ in range(300):
            os.close(registry.lock_data_dir(data_dir))
    finally:
        asking.kill()
        asking.communicate()


def test_incarnations_grow_and_a_damaged_counter_is_not_guessed(short_dir: Path) -> None:
    data_dir, copy = short_dir / "data", short_dir / "copy"
    data_dir.mkdir()
    assert [registry.Starts(data_dir, copy).count() for _ in range(3)] == [1, 2, 3]
    assert (os.listdir(data_dir), copy.read_text()) == (["incarnation"], "3\n")
    for file in (data_dir / "incarnation", copy):
        for damage in ("", "-1", "3x", "9" * 16, "\0\0\0"):
            file.write_text(damage)
            with pytest.raises(InvalidConfig, match=rf"{file} is damaged"):
                registry.Starts(data_dir, copy)
        file.write_text("3")


def test_a_directory_that_counts_less_than_the_copy_was_replaced(short_dir: Path) -> None:
    counter, copy = short_dir / "incarnation", short_dir / "copy"
    assert not registry.Starts(short_dir, copy).is_replaced
    counter.write_text("7\n")  # a kill between the two, or a copy that is gone with run/
    starts = registry.Starts(short_dir, copy)
    assert (starts.is_replaced, starts.count()) == (False, 8)
    for content in ("5\n", ""):
        counter.unlink()
        if content:
            counter.write_text(content)  # put back from a backup
        starts = registry.Starts(short_dir, copy)
        assert starts.is_replaced
    assert starts.count() == 9
    assert not registry.Starts(short_dir, copy).is_replaced


def test_the_counter_is_synced_before_it_is_used(
    short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda fd: (calls.append("fsync"), fsync(fd)))
    monkeypatch.setattr(
        os, "replace", lambda a, b: (calls.append(f"replace {b.name}"), replace(a, b))
    )
    registry.Starts(short_dir, short_dir / "copy").count()
    one, other = [["fsync", f"replace {name}", "fsync"] for name in ("incarnation", "copy")]
    assert calls == one + other


# -- shared memory of the dead ------------------------------------------------------------------


def listed_memory(cluster: Path) -> str:
    name = f"/sldirtest{os.getpid()}"
    registry.MemoryList(directory.memory_list_file(cluster, 0)).append(name)
    os.close(posix_ipc.SharedMemory(name, posix_ipc.O_CREX, size=4096).fd)
    return name


def test_the_memory_of_the_dead_is_unlinked_by_list_and_nothing_else(cluster: Path) -> None:
    name = listed_memory(cluster)
    file = directory.memory_list_file(cluster, 0)
    with file.open("a") as lines:
        lines.write("/slneverexisted\n/etc/passwd\n/sl../x\nsl\n/sltorn")
    assert directory.unlink_memory_of_dead(directory.load_cluster(cluster), 0) == [
        name,
        "/slneverexisted",
        "/sltorn",
    ]
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.SharedMemory(name)
    assert file.read_bytes() == b""
    assert directory.unlink_memory_of_dead(directory.load_cluster(cluster), 0) == []


def test_the_memory_of_the_living_stays(cluster: Path) -> None:
    name = listed_memory(cluster)
    mine = registry.Registration(directory.registry_file(cluster, 0))
    mine.publish(entry())
    assert directory.unlink_memory_of_dead(directory.load_cluster(cluster), 0) == []
    os.close(posix_ipc.SharedMemory(name).fd)
    mine.close()
    assert directory.unlink_memory_of_dead(directory.load_cluster(cluster), 0) == [name]


def test_a_broker_that_starts_keeps_its_memory_before_it_is_registered(cluster: Path) -> None:
    name = listed_memory(cluster)
    data_dir = directory.load_cluster(cluster).data_dirs[0]
    fd = registry.lock_data_dir(data_dir)
    (data_dir / "lock").write_text("1\n")  # as if another process had it
    assert directory.unlink_memory_of_dead(directory.load_cluster(cluster), 0) == []
    os.close(fd)
    fd = registry.lock_data_dir(data_dir)  # its own next incarnation may clean up
    assert directory.unlink_memory_of_dead(directory.load_cluster(cluster), 0) == [name]
    os.close(fd)


def test_only_names_of_ours_are_taken_on_the_list(cluster: Path) -> None:
    listed = registry.MemoryList(directory.memory_list_file(cluster, 0))
    for name in ("/other", "sl", "/sl", "/sla/b", "/sla\n/slb", "/sl" + "a" * 29):
        with pytest.raises(ValueError, match="not a name of ours"):
            listed.append(name)
    assert listed.names() == []


# -- finding ------------------------------------------------------------------------------------


@pytest.fixture
def nowhere(short_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An environment in which nothing is named and nothing runs."""
    monkeypatch.delenv("SHMLOG_DIR", raising=False)
    monkeypatch.delenv("SHMLOG_ENDPOINT", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_dir))
    return short_dir


def test_nothing_found_says_what_was_looked_for_and_what_to_do(nowhere: Path) -> None:
    with pytest.raises(ClusterNotFound) as caught:
        directory.find_cluster()
    assert str(caught.value).splitlines() == [
        "no cluster found: SHMLOG_DIR is not set, no `shmlog dev` is running",
        "  start one:  shmlog dev          or name one:  shmlog -d DIR ...",
    ]
    assert caught.value.exit_status == 5


def test_option_then_environment_then_dev(nowhere: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with directory.register_dev(nowhere / "dev"):
        assert directory.find_cluster() == directory.Location(nowhere / "dev", None)
        monkeypatch.setenv("SHMLOG_DIR", "/env")
        assert directory.find_cluster() == directory.Location(Path("/env"), None)
        assert directory.find_cluster("/option") == directory.Location(Path("/option"), None)
        assert directory.find_cluster("ipc:///s").endpoint == "ipc:///s"
        monkeypatch.setenv("SHMLOG_ENDPOINT", "ipc:///e")
        with pytest.raises(InvalidConfig, match="both set"):
            directory.find_cluster()
        monkeypatch.delenv("SHMLOG_DIR")
        assert directory.find_cluster() == directory.Location(None, "ipc:///e")
    monkeypatch.delenv("SHMLOG_ENDPOINT")
    with pytest.raises(ClusterNotFound):
        directory.find_cluster()


def test_two_running_dev_clusters_are_an_error_and_a_dead_one_does_not_count(
    nowhere: Path,
) -> None:
    dead = nowhere / "shmlog" / "dev-1.json"
    with directory.register_dev(nowhere / "a"):
        dead.write_text('{"directory":"/gone","pid":1,"boot_id":"b","started":1}')
        assert directory.find_cluster().directory == nowhere / "a"
        other = registry.Registration(nowhere / "shmlog" / "dev-2.json")
        other.publish(directory.DevEntry(directory="/b", pid=2, boot_id="b", started=1))
        with pytest.raises(InvalidConfig, match=r"two clusters are running: .*choose with -d"):
            directory.find_cluster()
        other.close()
    with directory.register_dev(nowhere / "c"):
        assert not dead.exists()


@pytest.mark.parametrize("where", ["tcp://127.0.0.1:9092", "inproc://x"])
def test_only_ipc_endpoints_are_taken(where: str) -> None:
    with pytest.raises(InvalidConfig, match="ipc:// only"):
        directory.find_cluster(where)


def test_a_registration_place_that_others_may_write_to_is_refused(nowhere: Path) -> None:
    (nowhere / "shmlog").mkdir()
    (nowhere / "shmlog").chmod(0o777)
    with pytest.raises(InvalidConfig, match="not a directory of yours"):
        directory.find_cluster()


def test_children_do_not_inherit_a_lock(cluster: Path) -> None:
    mine = registry.Registration(directory.registry_file(cluster, 0))
    mine.publish(entry())
    child = subprocess.Popen(["cat"], stdin=subprocess.PIPE, close_fds=False)
    mine.close(remove=False)
    assert not process.is_locked(directory.registry_file(cluster, 0))
    child.communicate()
