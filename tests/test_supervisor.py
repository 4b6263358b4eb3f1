"""The supervisor with a stand-in for the broker: real processes, real deaths."""

from __future__ import annotations

import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import posix_ipc
import pytest
import zmq

from node import children
from node.supervisor import Supervisor
from shmlog import control, directory, process, registry
from shmlog.clock import NS_PER_S
from shmlog.errors import InvalidConfig, InvalidRequest

pytestmark = pytest.mark.process
STAND_IN = Path(__file__).with_name("stand_in_broker.py")
PATIENCE_S = 20


def stand_in(path: Path, broker: int) -> list[str]:
    return [sys.executable, "-P", str(STAND_IN), "--dir", str(path), "--id", str(broker)]


class Running:
    """A supervisor in a thread; its events in a queue."""

    def __init__(self, path: Path, **options: Any) -> None:
        self.path = path
        self.events: queue.Queue[dict[str, Any]] = queue.Queue()
        self.supervisor = Supervisor(
            path, command=stand_in, emit=self.events.put, logs=True, **options
        )
        self.code: int | None = None
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self) -> None:
        self.code = self.supervisor.run()

    def wait_for(self, name: str) -> dict[str, Any]:
        while (event := self.events.get(timeout=PATIENCE_S))["event"] != name:
            pass
        return event

    def ask(self, op: str) -> control.StatusAnswer:
        entry = directory.read_supervisor(self.path)
        assert entry is not None
        return control.ask(entry, op, PATIENCE_S)

    def stop(self) -> int | None:
        if self.thread.is_alive():
            self.supervisor.request_stop("the test ends")
        self.thread.join(PATIENCE_S)
        assert not self.thread.is_alive()
        return self.code


Start = Callable[..., Running]


@pytest.fixture
def start(short_dir: Path) -> Iterator[Start]:
    running: list[Running] = []

    def start_one(path: Path = short_dir, **options: Any) -> Running:
        running.append(Running(path, **options))
        return running[-1]

    yield start_one
    for one in running:
        one.stop()


def test_first_use_makes_the_cluster_and_ready_means_registered(start: Start) -> None:
    one = start()
    event = one.wait_for("ready")
    entry = directory.read_brokers(one.path)[0]
    assert (entry.pid, entry.incarnation) == (event["pid"], event["incarnation"]) == (entry.pid, 1)
    (status,) = one.ask("status").brokers
    assert (status.broker, status.pid, status.state, status.restarts) == (0, entry.pid, "ready", 0)
    assert one.path.stat().st_mode & 0o777 == 0o700
    assert one.stop() == 0
    assert set(os.listdir(directory.run_dir(one.path))) == {"broker-0.log", "broker-0.shm"}


def test_a_killed_broker_is_restarted_and_its_shared_memory_is_gone(start: Start) -> None:
    one = start()
    first = one.wait_for("ready")
    name = f"/slstandin{first['pid']}"
    os.close(posix_ipc.SharedMemory(name).fd)
    os.kill(first["pid"], signal.SIGKILL)
    death = one.wait_for("exit")
    assert (death["signal"], death["backoff_ms"]) == (9, 100)
    with pytest.raises(posix_ipc.ExistentialError):
        posix_ipc.SharedMemory(name)
    seen = directory.read_entries(one.path)[0]
    assert not seen.alive
    assert "died" in str(seen)
    second = one.wait_for("ready")
    assert second["incarnation"] == first["incarnation"] + 1
    assert one.ask("status").brokers[0].restarts == 1


def test_the_pause_doubles_to_a_second_and_begins_anew_after_a_long_life() -> None:
    pause, seen = 0, []
    for _ in range(6):
        pause = children.backoff_ms(pause, NS_PER_S)
        seen.append(pause)
    assert seen == [100, 200, 400, 800, 1000, 1000]
    assert children.backoff_ms(pause, 10 * NS_PER_S) == 100


@pytest.mark.parametrize("code", [2, 7])
def test_a_broker_that_must_not_be_restarted_ends_the_supervisor_with_its_code(
    start: Start, short_dir: Path, code: int
) -> None:
    directory.create_cluster(short_dir, 1)
    (short_dir / "behaviour").write_text(f"exit {code}")
    one = start()
    one.thread.join(PATIENCE_S)
    assert one.code == code
    assert one.wait_for("exit")["unexpected"]
    assert "gives up" in directory.broker_log(short_dir, 0).read_text()


def test_an_io_error_is_restarted_with_a_growing_pause(start: Start, short_dir: Path) -> None:
    directory.create_cluster(short_dir, 1)
    (short_dir / "behaviour").write_text("exit 8")
    one = start()
    assert [one.wait_for("exit")["backoff_ms"] for _ in range(2)] == [100, 200]


def test_down_is_answered_when_the_brokers_have_ended(start: Start) -> None:
    one = start()
    pid = one.wait_for("ready")["pid"]
    answer = one.ask("down")
    assert not process.is_alive(pid)
    assert [(b.pid, b.state) for b in answer.brokers] == [(None, "stopped")]
    assert one.stop() == 0
    assert directory.read_supervisor(one.path) is None


def test_a_broker_that_ignores_the_signal_is_killed_after_the_grace(
    start: Start, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.supervisor.STOP_GRACE_NS", NS_PER_S // 10)
    directory.create_cluster(short_dir, 1)
    (short_dir / "behaviour").write_text("ignore-term")
    one = start()
    one.wait_for("ready")
    assert one.stop() == 0
    assert one.wait_for("killed")["waited_ms"] >= 100
    assert one.wait_for("exit")["signal"] == 9


def test_the_end_of_the_owner_is_a_request_to_stop(start: Start) -> None:
    owner = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
    one = start(owner_pid=owner.pid)
    one.wait_for("ready")
    owner.communicate()
    assert one.wait_for("stopping")["reason"] == "owner is gone"
    one.thread.join(PATIENCE_S)
    assert one.code == 0


def test_a_second_supervisor_is_refused_with_the_pid_of_the_first(start: Start) -> None:
    one = start()
    one.wait_for("ready")
    with pytest.raises(InvalidConfig, match=rf"already runs on .* \(pid {os.getpid()}\)"):
        Supervisor(one.path, command=stand_in)


def test_a_broker_that_outlived_its_supervisor_is_refused_by_name(short_dir: Path) -> None:
    directory.create_cluster(short_dir, 1)
    fd = registry.lock_data_dir(directory.data_dir(short_dir, 0))
    try:
        with pytest.raises(InvalidConfig, match=rf"broker 0 \(pid {os.getpid()}\).* down"):
            Supervisor(short_dir, command=stand_in)
    finally:
        os.close(fd)


def test_a_wrong_number_of_brokers_is_refused(short_dir: Path) -> None:
    with pytest.raises(InvalidConfig, match="one broker in this version"):
        Supervisor(short_dir, brokers=3)


def test_what_cannot_be_read_is_answered_and_an_empty_frame_is_echoed(start: Start) -> None:
    one = start()
    one.wait_for("ready")
    entry = directory.read_supervisor(one.path)
    assert entry is not None
    with pytest.raises(InvalidRequest, match="unknown operation 'restart'"):
        control.ask(entry, "restart", PATIENCE_S)
    with zmq.Context() as context, context.socket(zmq.REQ) as socket:
        socket.linger = 0
        socket.connect(entry.endpoints["control"])
        for junk in ([b"\xff\x00"], [b"{"], [b'{"op":1,"id":1}'], [b"\x80", b"more"]):
            socket.send_multipart(junk)
            assert socket.poll(PATIENCE_S * 1000)
            assert b"INVALID_REQUEST" in socket.recv_multipart()[0]
        socket.send_multipart([b'{"op":"status","id":5}'])
        assert socket.poll(PATIENCE_S * 1000)
        assert socket.recv_multipart()[0].startswith(b'{"id":5,"error":0')


def test_its_socket_is_for_its_owner_alone(start: Start) -> None:
    one = start()
    one.wait_for("ready")
    assert directory.supervisor_socket(one.path).stat().st_mode & 0o777 == 0o600
