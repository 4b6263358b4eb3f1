"""A real broker process, a bare DEALER socket, JSON: what a client in any language sees."""

from __future__ import annotations

import json
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from shmlog import LocalCluster, directory, process

pytestmark = pytest.mark.process


class Bare:
    """A client of ten lines."""

    def __init__(self, cluster: LocalCluster) -> None:
        self.context = zmq.Context()
        self.socket = self.context.socket(zmq.DEALER)
        self.socket.setsockopt(zmq.LINGER, 0)
        self.socket.setsockopt(zmq.RCVTIMEO, 10_000)
        self.socket.connect(f"ipc://{cluster.dir}/run/broker-0.sock")
        self._id = 0

    def send(self, message: dict[str, Any], *frames: bytes) -> int:
        self._id += 1
        self.socket.send_multipart([json.dumps({"id": self._id, **message}).encode(), *frames])
        return self._id

    def ask(self, message: dict[str, Any], *frames: bytes) -> tuple[dict[str, Any], list[bytes]]:
        wanted = self.send(message, *frames)
        while True:
            head, *rest = self.socket.recv_multipart()
            if not head.startswith(b"{"):
                continue  # MessagePack: the answer to junk that was taken for it
            reply = json.loads(head)
            if reply["id"] == wanted:
                return reply, rest

    def close(self) -> None:
        self.socket.close(0)
        self.context.term()


PRODUCE = {"op": "produce", "mode": "simple", "topic": "t", "partition": 0, "count": 1}
FETCH = {"op": "fetch", "mode": "simple", "topic": "t", "partition": 0}


@pytest.fixture(scope="module")
def cluster() -> Iterator[LocalCluster]:
    with LocalCluster() as made:
        bare = Bare(made)
        bare.ask({"op": "create_topic", "topic": "t"})
        bare.close()
        yield made


@pytest.fixture
def bare(cluster: LocalCluster) -> Iterator[Bare]:
    made = Bare(cluster)
    yield made
    made.close()


def test_random_messages_never_hurt_the_broker_or_its_other_clients(
    cluster: LocalCluster, bare: Bare
) -> None:
    pid = cluster.pids[0]
    rng = random.Random(11)
    other = Bare(cluster)
    other._id = 1000  # the answers to the junk carry its ids
    heads = [
        json.dumps({"op": op, "id": 1, "mode": "fast", "topic": "t"}).encode()
        for op in ("produce", "fetch")
    ]
    for i in range(500):
        head = rng.choice([rng.randbytes(rng.randrange(1, 200)), b"{" * 50, *heads])
        other.socket.send_multipart(
            [head, *(rng.randbytes(rng.randrange(300)) for _ in range(i % 4))]
        )
    assert bare.ask(PRODUCE, b"k", b"v")[0]["error"] == 0
    assert other.ask(PRODUCE, b"k", b"v")[0]["error"] == 0
    other.close()
    assert cluster.pids[0] == pid


def test_bytes_that_are_no_zeromq_at_all_are_ignored(cluster: LocalCluster, bare: Bare) -> None:
    path = f"{cluster.dir}/run/broker-0.sock"
    rng = random.Random(3)
    for _ in range(30):
        with socket.socket(socket.AF_UNIX) as raw:
            raw.connect(path)
            try:
                raw.sendall(rng.randbytes(rng.randrange(1, 4000)))
            except BrokenPipeError:
                pass
    assert bare.ask(PRODUCE, b"k", b"v")[0]["error"] == 0


def test_a_frame_over_the_limit_ends_its_connection_only(cluster: LocalCluster, bare: Bare) -> None:
    other = Bare(cluster)
    other.socket.setsockopt(zmq.RCVTIMEO, 200)
    other.send(PRODUCE, b"k", bytes(17 << 20))
    with pytest.raises(zmq.Again):
        other.socket.recv_multipart()
    other.close()
    reply, _ = bare.ask(PRODUCE, b"k", bytes(9 << 20))
    assert reply["error"] == 10
    assert bare.ask(PRODUCE, b"k", b"v")[0]["error"] == 0


def test_a_client_that_never_reads_is_cut_off_and_memory_stays_bounded(
    cluster: LocalCluster, bare: Bare
) -> None:
    bare.ask({"op": "create_topic", "topic": "big"})
    for _ in range(8):
        bare.ask({**PRODUCE, "topic": "big"}, b"k", os.urandom(1_000_000))
    before, _ = process.rss_bytes(cluster.pids[0])
    greedy = Bare(cluster)
    greedy.socket.setsockopt(zmq.RCVHWM, 1)
    for _ in range(400):
        greedy.send(
            {
                "op": "fetch",
                "mode": "fast",
                "max_bytes": 8 << 20,
                "partitions": [{"topic": "big", "partition": 0, "offset": 0, "max_bytes": 8 << 20}],
            }
        )
    for _ in range(20):
        assert bare.ask(PRODUCE, b"k", b"v")[0]["error"] == 0
    after, _ = process.rss_bytes(cluster.pids[0])
    assert after - before < 700 << 20
    greedy.close()


def test_files_and_sockets_are_the_owner_s_alone(cluster: LocalCluster) -> None:
    assert Path(cluster.dir).stat().st_mode & 0o077 == 0
    for path in Path(cluster.dir).rglob("*"):
        if path.is_socket() or path.suffix in (".log", ".shm"):
            assert path.stat().st_mode & 0o077 == 0, path


def test_sigterm_stops_cleanly_and_the_next_start_scans_nothing() -> None:
    with LocalCluster() as made:
        bare = Bare(made)
        bare.ask({"op": "create_topic", "topic": "t", "partition_count": 2})
        bare.ask(PRODUCE, b"k", b"v")
        old = made.pids[0]
        os.kill(old, signal.SIGTERM)
        _wait(lambda: made.pids.get(0) not in (None, old))
        assert bare.ask({**FETCH, "offset": 0})[1] == [b"k", b"v"]
        bare.close()


def test_kill_9_keeps_what_was_acked_and_raises_incarnation_and_epoch() -> None:
    with LocalCluster() as made:
        bare = Bare(made)
        bare.ask({"op": "create_topic", "topic": "t"})
        for round_number in range(1, 4):
            acked = [bare.ask(PRODUCE, b"k", b"%d" % i)[0]["base_offset"] for i in range(50)]
            assert acked == list(range(50 * (round_number - 1), 50 * round_number))
            made.kill(0)
            made.wait_ready()
            bare.close()
            bare = Bare(made)
            reply, frames = bare.ask({**FETCH, "offset": 0})
            assert reply["count"] == 50 * round_number
            assert frames[1::2] == [b"%d" % i for i in range(50)] * round_number
            assert reply["leader_epoch"] > round_number
            assert directory.read_brokers(made.dir)[0].incarnation == round_number + 1
        bare.close()


def _wait(test: Any, seconds: float = 10.0) -> None:
    from shmlog.clock import SYSTEM_CLOCK, sleep

    deadline = SYSTEM_CLOCK.monotonic_ns() + int(seconds * 1e9)
    while not test():
        assert SYSTEM_CLOCK.monotonic_ns() < deadline, "not in time"
        sleep(0.01)
