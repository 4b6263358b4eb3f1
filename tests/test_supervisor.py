"""The supervisor with a stand-in for the broker: real processes, real deaths."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import posix_ipc
import pytest
import zmq

from node import children
from node.supervisor import Supervisor
from shmlog import control, directory, process, registry
from shmlog.clock import NS_PER_S
from shmlog.errors import (
    Backpressure,
    BrokerGone,
    InvalidConfig,
    InvalidRequest,
    RequestTimedOut,
    ServerError,
    ShmlogError,
)

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

    def ready(self, count: int) -> dict[int, int]:
        """{broker: pid} of the next so many that are ready."""
        events = [self.wait_for("ready") for _ in range(count)]
        return {event["broker"]: event["pid"] for event in events}

    def pids(self) -> dict[int, int | None]:
        return {status.broker: status.pid for status in self.ask("status").brokers}

    def ask(self, op: str, **fields: Any) -> control.StatusAnswer:
        entry = directory.read_supervisor(self.path)
        assert entry is not None
        return control.ask(entry, op, PATIENCE_S, **fields)

    def ask_in_thread(self, op: str, **fields: Any) -> Future[control.StatusAnswer]:
        promise: Future[control.StatusAnswer] = Future()

        def run() -> None:
            try:
                promise.set_result(self.ask(op, **fields))
            except ShmlogError as error:
                promise.set_exception(error)

        threading.Thread(target=run, daemon=True).start()
        return promise

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
    left = {"broker-0.log", "broker-0.shm", "broker-0.incarnation"}
    assert set(os.listdir(directory.run_dir(one.path))) == left


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


def test_each_of_three_brokers_is_looked_after_by_itself(start: Start) -> None:
    one = start(brokers=3)
    first = one.ready(3)
    os.kill(first[1], signal.SIGKILL)
    assert one.wait_for("exit")["broker"] == 1
    again = one.wait_for("ready")
    assert (again["broker"], again["incarnation"]) == (1, 2)
    assert one.pids() == {**first, 1: again["pid"]}
    assert one.stop() == 0
    assert not any(map(process.is_alive, first.values()))


def test_a_broker_that_gave_up_leaves_the_others_in_peace(start: Start, short_dir: Path) -> None:
    directory.create_cluster(short_dir, 2)
    (short_dir / "behaviour-1").write_text("exit 2")
    one = start()
    pids = one.ready(1)
    while {b.state for b in one.ask("status").brokers} != {"ready", "stopped"}:
        pass
    assert one.pids() == {0: pids[0], 1: None}
    (short_dir / "behaviour-1").unlink()
    one.ask("restart", broker=1)  # the cause is mended
    assert {b.state for b in one.ask("status").brokers} == {"ready"}
    assert one.pids()[0] == pids[0]


# -- adoption -----------------------------------------------------------------------------------


@pytest.fixture
def orphan(short_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Broker 0 of a cluster of two, which no supervisor of now has started."""
    directory.create_cluster(short_dir, 2)
    child = subprocess.Popen(stand_in(short_dir, 0))
    while not directory.read_brokers(short_dir):
        pass
    yield child
    child.kill()
    child.wait()


def test_a_broker_that_outlived_its_supervisor_is_adopted(
    start: Start, orphan: subprocess.Popen[bytes]
) -> None:
    one = start()
    assert one.ready(2)[0] == orphan.pid
    (status, _) = one.ask("status").brokers
    assert (status.pid, status.state, status.restarts) == (orphan.pid, "ready", 0)
    orphan.kill()
    death = one.wait_for("exit")
    assert (death["pid"], death["backoff_ms"]) == (orphan.pid, 100)
    assert not {"code", "signal"} & death.keys()  # no child of this supervisor
    assert control.cause_of_death(death) == "has ended"
    again = one.wait_for("ready")
    assert (again["broker"], again["incarnation"]) == (0, 2)
    assert "adopted" not in again
    assert one.ask("status").brokers[0].restarts == 1


@pytest.mark.parametrize("paused", [False, True])
def test_down_ends_adopted_brokers_paused_ones_too(
    start: Start, orphan: subprocess.Popen[bytes], paused: bool
) -> None:
    one = start()
    one.ready(2)
    if paused:
        orphan.send_signal(signal.SIGSTOP)
    one.ask("down")
    assert orphan.wait(PATIENCE_S) == 0  # it had the signal, and stopped by itself
    assert one.stop() == 0
    assert directory.read_entries(one.path) == {}


def test_an_adopted_broker_is_restarted_like_the_others(
    start: Start, orphan: subprocess.Popen[bytes]
) -> None:
    one = start()
    before = one.ready(2)
    one.ask("restart", rolling=True)
    assert orphan.wait(PATIENCE_S) == 0
    assert not set(before.values()) & set(one.pids().values())


def test_who_owns_the_data_and_is_not_known_yet_is_waited_for(
    start: Start, short_dir: Path
) -> None:
    directory.create_cluster(short_dir, 1)
    fd = registry.lock_data_dir(directory.load_cluster(short_dir).data_dirs[0])
    one = start()
    one.wait_for("started")
    while (status := one.ask("status").brokers[0]).state != "starting":
        pass
    assert status.pid is None
    os.close(fd)
    assert one.wait_for("ready")["incarnation"] == 1


# -- restart ------------------------------------------------------------------------------------


def set_health(path: Path, **fields: Any) -> None:
    (path / "health.new").write_text(json.dumps(fields))
    (path / "health.new").rename(path / "health")


def test_a_restart_is_answered_when_the_broker_serves_again(start: Start) -> None:
    one = start(brokers=2)
    before = one.ready(2)
    answer = one.ask("restart", broker=1)
    assert [(b.broker, b.state) for b in answer.brokers] == [(0, "ready"), (1, "ready")]
    assert answer.brokers[0].pid == before[0]
    assert answer.brokers[1].pid not in (before[1], None)
    assert answer.brokers[1].restarts == 1
    death, birth = one.wait_for("exit"), one.wait_for("ready")
    assert (death["code"], death["unexpected"], "backoff_ms" in death) == (0, False, False)
    assert birth["incarnation"] == 2


def test_a_rolling_restart_takes_one_after_the_other(start: Start) -> None:
    one = start(brokers=3)
    before = one.ready(3)
    one.ask("restart", rolling=True)
    seen = [one.events.get(timeout=PATIENCE_S) for _ in range(6)]
    assert [(event["event"], event["broker"]) for event in seen] == [
        (name, broker) for broker in range(3) for name in ("exit", "ready")
    ]
    assert not set(before.values()) & set(one.pids().values())


def test_the_next_one_waits_until_the_cluster_is_as_healthy_as_it_was(start: Start) -> None:
    one = start(brokers=2)
    before = one.ready(2)
    set_health(one.path, partitions_not_full=1)  # as it was is good enough
    answer = one.ask_in_thread("restart", rolling=True)
    one.wait_for("exit")
    set_health(one.path, partitions_not_full=2)
    one.wait_for("ready")
    for _ in range(20):  # meanwhile
        with pytest.raises(Backpressure, match="broker 0 is being restarted"):
            one.ask("restart", broker=1)
        assert one.pids()[1] == before[1]
    set_health(one.path, partitions_not_full=1)
    assert one.wait_for("exit")["broker"] == 1
    answer.result(PATIENCE_S)


@pytest.mark.parametrize(
    "lack",
    [
        {"partitions_without_leader": 1},
        {"partitions_not_full": 1},
        {"brokers": []},  # whoever answers does not know of the new incarnation
    ],
)
def test_a_cluster_that_does_not_heal_ends_the_restart_with_an_error(
    start: Start, monkeypatch: pytest.MonkeyPatch, lack: dict[str, Any]
) -> None:
    monkeypatch.setattr("node.restart.HEAL_NS", NS_PER_S)
    monkeypatch.setattr("node.supervisor.STOP_GRACE_NS", NS_PER_S)
    one = start(brokers=2)
    before = one.ready(2)
    answer = one.ask_in_thread("restart", rolling=True)
    one.wait_for("exit")
    set_health(one.path, **lack)
    with pytest.raises(
        RequestTimedOut, match=r"broker 0 is ready, but after 1 s .* not as healthy"
    ):
        answer.result(PATIENCE_S)
    assert one.pids()[1] == before[1]
    set_health(one.path)
    one.ask("restart", broker=1)  # it is over: another may begin


def test_a_broker_that_does_not_come_back_ends_the_restart(start: Start) -> None:
    one = start(brokers=2)
    before = one.ready(2)
    (one.path / "behaviour-0").write_text("exit 2")
    with pytest.raises(ServerError, match="broker 0 did not start again"):
        one.ask("restart", rolling=True)
    assert one.pids() == {0: None, 1: before[1]}


def test_a_broker_that_hangs_is_killed_after_the_grace_and_started_again(
    start: Start, short_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("node.supervisor.STOP_GRACE_NS", NS_PER_S // 10)
    monkeypatch.setattr("node.restart.ASK_NS", NS_PER_S // 10)  # nobody answers
    directory.create_cluster(short_dir, 1)
    (short_dir / "behaviour").write_text("ignore-term")
    one = start()
    one.wait_for("ready")
    (short_dir / "behaviour").unlink()
    one.ask("restart", broker=0)
    assert one.wait_for("killed")["waited_ms"] >= 100
    death = one.wait_for("exit")
    assert (death["signal"], death["unexpected"]) == (9, False)


def test_down_wins_over_a_restart(start: Start) -> None:
    one = start(brokers=2)
    one.ready(2)
    answer = one.ask_in_thread("restart", rolling=True)
    one.wait_for("exit")
    assert {b.state for b in one.ask("down").brokers} == {"stopped"}
    with pytest.raises(BrokerGone, match="given up"):
        answer.result(PATIENCE_S)
    assert one.stop() == 0


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({}, "name a broker, or say rolling"),
        ({"broker": 0, "rolling": True}, "name a broker, or say rolling"),
        ({"broker": 7}, "no broker 7, only 0, 1"),
        ({"broker": "x"}, "int"),
    ],
)
def test_a_restart_of_nobody_is_refused(start: Start, fields: dict[str, Any], says: str) -> None:
    one = start(brokers=2)
    one.ready(2)
    with pytest.raises(InvalidRequest, match=says):
        one.ask("restart", **fields)


def test_what_cannot_be_read_is_answered_and_an_empty_frame_is_echoed(start: Start) -> None:
    one = start()
    one.wait_for("ready")
    entry = directory.read_supervisor(one.path)
    assert entry is not None
    with pytest.raises(InvalidRequest, match="unknown operation 'dance'"):
        control.ask(entry, "dance", PATIENCE_S)
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
