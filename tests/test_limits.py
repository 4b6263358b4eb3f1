"""Absurd numbers, long lists, scarce descriptors, sessions that do not read: refused or bounded, never fatal."""

from __future__ import annotations

import errno
import fcntl
import os
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from log_support import batch
from memory_broker import MemoryBroker

from node.handlers import table
from node.io import wire as wires
from node.io.workers import is_no_space
from shmlog import directory, process, registry
from shmlog.cli import main as cli
from shmlog.clock import NS_PER_S, ManualClock
from shmlog.errors import InvalidConfig
from shmlog.log import producers
from shmlog.log.producers import ProducerStates
from shmlog.protocol import header
from shmlog.records.builder import build
from shmlog.records.parts import seal
from shmlog.settings import (
    CLUSTER_SETTINGS,
    TOPIC_SETTINGS,
    Setting,
    TopicConfig,
    check_all,
    parse_duration_ns,
    parse_size,
)

ABSURD: list[Any] = ["9" * 30, "9" * 400, "9" * 5000, 10**30, 10**400, 10**5000, "9" * 400 + "d"]
ABSURD += ["9" * 19 + "TB", "9" * 19 + "d", 1e300, float("inf"), float("nan"), None, ["os"], {}]


@pytest.fixture
def broker(tmp_path: Path) -> MemoryBroker:
    made = MemoryBroker(tmp_path)
    made.create("t")
    return made


# -- settings ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", ABSURD, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize(
    "setting", [*TOPIC_SETTINGS.values(), *CLUSTER_SETTINGS.values()], ids=lambda s: s.native
)
def test_no_setting_takes_an_absurd_value(setting: Setting, value: Any) -> None:
    with pytest.raises(InvalidConfig) as raised:
        setting.check(value)
    assert len(str(raised.value)) < 300


@pytest.mark.parametrize("text", ["9" * 400, "9" * 19 + "TB", "9" * 19 + "d", "9" * 400 + "d"])
def test_sizes_and_durations_fit_int64(text: str) -> None:
    for parse in (parse_size, parse_duration_ns):
        with pytest.raises(InvalidConfig):
            parse(text)


def test_a_broker_answers_40_to_an_absurd_value(broker: MemoryBroker) -> None:
    for value in ("9" * 30, "9" * 400, "9" * 400 + "d"):
        for key in ("segment_bytes", "sync_interval", "message_timestamp_after_max"):
            reply, _ = broker.ask({"op": "alter_topic", "topic": "t", "set": {key: value}})
            assert reply["error"] == 40, (key, value)
    assert broker.produce("t", b"v")["error"] == 0


def test_cluster_toml_with_absurd_numbers_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "c"
    directory.create_cluster(path, 1)
    file = directory.cluster_file(path)
    plain = file.read_text()
    for extra in (
        f"[topic]\nsegment_bytes = {'9' * 5000}\n",
        f'[topic]\nring_bytes="{"9" * 400}"\n',
    ):
        file.write_text(plain + extra)
        with pytest.raises(InvalidConfig, match=r"cluster\.toml"):
            directory.load_cluster(path)


def test_ring_bytes_are_rounded_up_to_whole_pages(broker: MemoryBroker) -> None:
    assert TopicConfig(ring_bytes=5_000_000).ring_bytes == 5_001_216
    assert TopicConfig(ring_bytes=0).ring_bytes == 0
    broker.create("odd", ring_bytes="5MB")
    for value in (b"1", b"2"):
        assert broker.produce("odd", value)["error"] == 0
        broker.turn()
    assert broker.context.partitions["odd", 0].window.state == "ring"
    assert check_all({"ring_bytes": "5MB"}, TOPIC_SETTINGS) == {"ring_bytes": 5_000_000}


# -- handlers ------------------------------------------------------------------------------------------


def failing(error: Exception) -> Any:
    def handler(*_: object, **__: object) -> None:
        raise error

    return handler


def test_a_bug_in_a_handler_is_answered_and_a_failing_disk_ends_the_broker(
    broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch
) -> None:
    kind = next(t for t, handler in table._BY_TYPE.items() if handler.__name__ == "describe_topic")
    monkeypatch.setitem(table._BY_TYPE, kind, failing(OverflowError("a bug")))
    reply, _ = broker.ask({"op": "describe_topic", "topic": "t"})
    assert reply["error"] == -1
    monkeypatch.setitem(table._BY_TYPE, kind, failing(OSError(errno.EIO, "disk")))
    broker.post({"op": "describe_topic", "topic": "t"})
    with pytest.raises(OSError, match="disk"):
        broker.turn()


def test_a_bug_in_a_plan_is_answered(broker: MemoryBroker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.core.cluster.topics.alter_topic", failing(TypeError("a bug")))
    reply, _ = broker.ask({"op": "alter_topic", "topic": "t", "set": {"ring_bytes": 0}})
    assert reply["error"] == -1
    broker.create("u")


def test_a_topic_named_often_is_answered_once(broker: MemoryBroker) -> None:
    reply, _ = broker.ask({"op": "metadata", "topics": ["t"] * 600 + ["no"]})
    assert [t["topic"] for t in reply["topics"]] == ["t", "no"]
    reply, _ = broker.ask({"op": "metadata", "topics": [f"t{i}" for i in range(3000)]})
    assert reply["error"] == 42


def test_a_batch_that_nobody_could_open_is_refused(broker: MemoryBroker) -> None:
    data = bytearray(build([b"abc", b"defg"], timestamps=1))
    data[132:136] = struct.pack("<i", 0x7FFFFFFF)
    seal(data)
    entry = {"topic": "t", "partition": 0}
    message = {"op": "produce", "mode": "fast", "partitions": [entry]}
    reply, _ = broker.ask(message, bytes(data))
    assert reply["partitions"][0]["error"] == 87
    data[-1] ^= 1  # damaged on its way: send it again
    reply, _ = broker.ask(message, bytes(data))
    assert reply["partitions"][0]["error"] == 2


def test_only_so_many_producers_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(producers, "PRODUCERS_MAX", 3)
    states = ProducerStates()
    for producer_id in (1, 2, 3, 1, 4):
        known = states.snapshot(0).producers.get(producer_id)
        one = batch(
            0,
            producer_id=producer_id,
            producer_epoch=0,
            sequence=0 if known is None else 1,
        )[0]
        states.apply(one, 0, 0, 0)
    assert sorted(states.snapshot(0).producers) == [1, 3, 4]


# -- descriptors ---------------------------------------------------------------------------------------


def test_partitions_beyond_the_descriptors_are_refused_with_37(tmp_path: Path) -> None:
    broker = MemoryBroker(tmp_path, files_max=41)
    assert broker.metadata.replicas_max == 5
    broker.create("t")
    for message in (
        {"op": "create_topic", "topic": "big", "partition_count": 5},
        {"op": "add_partitions", "topic": "t", "partition_count": 6},
    ):
        reply, _ = broker.ask(message)
        assert reply["error"] == 37
        assert "at most 5; its limit of open files" in reply["message"]
    broker.create("small", partitions=4)


def test_a_log_that_finds_no_descriptor_is_opened_later(broker: MemoryBroker) -> None:
    make_dir, errors = broker.storage.make_dir, [OSError(errno.EMFILE, "too many")]

    def few(path: str) -> None:
        if path == "data/u-0" and errors:
            raise errors.pop()
        make_dir(path)

    broker.storage.make_dir = few  # type: ignore[method-assign]
    wanted = broker.post({"op": "create_topic", "topic": "u"})
    for _ in range(3):
        broker.turn()
    assert broker.answer(wanted) is None
    broker.clock.advance(2 * 10**9)
    for _ in range(3):
        broker.turn()
    assert broker.answer(wanted) is not None
    assert is_no_space(OSError(errno.ENFILE, ""))


def test_a_start_without_space_serves_what_can_be_opened(tmp_path: Path) -> None:
    storage = MemoryBroker(tmp_path).storage
    first = MemoryBroker(tmp_path, storage=storage, incarnation=2)
    first.create("t", partitions=2)
    first.produce("t", b"v", partition=1)
    storage.remove_tree("data/t-0")
    storage.unlink("data/opened/t-0")  # as if it had never been opened
    storage.dirs.discard("data/t-0")
    make_dir = storage.make_dir

    def no_space(path: str) -> None:
        if path == "data/t-0":
            raise OSError(errno.ENOSPC, "full")
        make_dir(path)

    storage.make_dir = no_space  # type: ignore[method-assign]
    second = MemoryBroker(tmp_path, storage=storage, incarnation=3)
    assert second.values("t", 1) == [b"v"]
    assert second.fetch("t", 0, 0)[0]["error"] == 5
    assert second.ask({"op": "delete_topic", "topic": "t"})[0]["error"] == 0


def test_what_is_here_and_cannot_be_opened_yet_is_not_left_out_of_a_registration(
    tmp_path: Path,
) -> None:
    first = MemoryBroker(tmp_path)
    first.create("t")
    first.produce("t", b"v")
    storage, full = first.storage, True

    def no_room(kind: str, path: str) -> None:
        if full and path.startswith("data/t-0"):
            raise OSError(errno.ENOSPC, "full", path)

    storage.on_operation = no_room
    second = MemoryBroker(tmp_path, storage=storage, incarnation=2, is_awaited=False)
    for _ in range(20):
        second.clock.advance(NS_PER_S)
        second.turn()
    assert not second.standing.is_registered, "left out it would count as lost"
    full = False
    second.clock.advance(NS_PER_S)
    second.until(lambda: second.standing.is_registered)
    second.until(lambda: second.values("t") == [b"v"])


class _Socket:
    def __init__(self) -> None:
        self.calls: list[str] = []

    def unbind(self, _: str) -> None:
        self.calls.append("unbind")


def test_files_of_logs_do_not_count_as_connections(monkeypatch: pytest.MonkeyPatch) -> None:
    wire = object.__new__(wires.ZmqWire)
    socket = _Socket()
    wire._socket, wire._endpoint, wire._bound = socket, "ipc:///nowhere", True
    wire._descriptors_max, wire._log_files = 1024, lambda: 600
    monkeypatch.setattr(process, "open_descriptors", lambda: 700)
    wire.guard_descriptors()
    assert socket.calls == []
    monkeypatch.setattr(process, "open_descriptors", lambda: 900)
    wire.guard_descriptors()
    assert socket.calls == ["unbind"]


def test_a_broker_says_how_many_partitions_its_limit_allows(tmp_path: Path) -> None:
    first = MemoryBroker(tmp_path)
    assert first.metadata.replicas_max == 2000
    first.create("more", partitions=20)
    second = MemoryBroker(tmp_path, storage=first.storage, incarnation=2, files_max=768)
    assert second.metadata.replicas_max == 109
    with pytest.raises(InvalidConfig, match="may have 19 open files"):
        MemoryBroker(tmp_path, storage=second.storage, incarnation=3, files_max=19)


# -- sessions ------------------------------------------------------------------------------------------


class _Router:
    """A peer that reads or does not."""

    def __init__(self) -> None:
        self.reads = False
        self.sent: list[list[bytes]] = []
        self.waiting: list[list[bytes]] = []

    def getsockopt(self, _: int) -> int:
        return 1 if self.waiting else 0

    def recv(self, _: int, copy: bool) -> SimpleNamespace:
        return SimpleNamespace(bytes=self.waiting[0].pop(0))

    def recv_multipart(self, _: int) -> list[bytes]:
        return self.waiting.pop(0)

    def send_multipart(self, frames: list[bytes], _: int) -> None:
        if not self.reads:
            raise wires.zmq.Again
        self.sent.append(frames)


@pytest.mark.parametrize("envelope", [[], [b""]])
def test_a_session_that_was_cut_off_is_told_and_served_once_it_reads(envelope: list[bytes]) -> None:
    wire, router = object.__new__(wires.ZmqWire), _Router()
    wire._socket, wire._backlog, wire._backlog_bytes, wire._cut_off = router, {}, {}, {}
    wire._moved_ns, wire._clock = {}, ManualClock()
    for _ in range(2):
        wire.send(b"c", [bytes(wires.BACKLOG_BYTES_MAX)])
    assert list(wire._cut_off) == [b"c"]
    request = [*envelope, b'{"op":"hello","id":1}']
    router.waiting.append([b"c", *request])
    assert wire.receive()[:2] == (b"c", [])
    router.reads = True
    router.waiting.append([b"c", *request])
    assert wire.receive()[:2] == (b"c", request)
    wire.send(b"c", [b"answer"])
    (client, *notice), answer = router.sent
    assert (client, answer) == (b"c", [b"c", b"answer"])
    assert notice[:-1] == envelope
    assert header.decode(notice[-1], dict)["error"] == 1000


# -- files ---------------------------------------------------------------------------------------------


def test_a_shared_lock_of_another_program_is_said_and_does_not_spin(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(registry, "LOCK_ATTEMPTS", 3)
    os.close(registry.lock_data_dir(tmp_path))
    with open(tmp_path / "lock") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        with pytest.raises(InvalidConfig, match="another program"):
            registry.lock_data_dir(tmp_path)
    os.close(registry.lock_data_dir(tmp_path))


def test_output_that_cannot_be_written_is_one_line_and_exit_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli.main, "main", failing(OSError(errno.ENOSPC, "No space left")))
    monkeypatch.setattr(cli, "_forget_output", lambda: None)
    assert cli.execute([]) == 1
    assert capsys.readouterr().err == "error: [Errno 28] No space left\n"
