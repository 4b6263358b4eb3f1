"""Writers of the failover runs: paced, one number a record; every ack is kept with its offset and its time.

    python   the Python client, idempotent: open loop, record i of a partition is due at t0 + i / rate
    bare     a DEALER socket and JSON headers, one request in flight, each value sent once: whatever an error or a
             silence leaves is of unknown fate

Both write at `rate` a second to each partition until told to stop; `progress` (a file of one int64 a partition) has
how many records were acked so far.
"""

from __future__ import annotations

import contextlib
import json
import os
import queue
import struct
import sys
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import zmq

from shmlog import directory, process
from shmlog.client.delivery import Delivery
from shmlog.client.producer import Producer
from shmlog.errors import ShmlogError
from shmlog.sockets import LINGER_MS

NUMBER = struct.Struct("<q")
ACK_TIMEOUT_S = 0.4
RETRY_S = 0.001
_Acks = list[tuple[int, int, int]]  # number, offset, when (CLOCK_MONOTONIC, ns)


class _Stop(threading.Thread):
    """Set once the parent writes another line."""

    def __init__(self) -> None:
        super().__init__(daemon=True)
        self.asked = threading.Event()

    def run(self) -> None:
        """Wait for it."""
        sys.stdin.readline()
        self.asked.set()


def _say(**fields: Any) -> None:
    print(json.dumps(fields), flush=True)


def _begin() -> threading.Event:
    _say(ready=True)
    sys.stdin.readline()
    process.set_timer_slack(1)
    sys.setswitchinterval(0.0005)
    stop = _Stop()
    stop.start()
    return stop.asked


def _wait_until(due_ns: int) -> None:
    left_ns = due_ns - time.monotonic_ns()
    if left_ns > 0:
        time.sleep(left_ns / 1e9)


def _save(file: str, acks: list[_Acks], **said: Any) -> None:
    arrays = {str(p): np.array(rows, np.int64).reshape(-1, 3) for p, rows in enumerate(acks)}
    np.savez(file, **arrays)  # type: ignore[arg-type]
    _say(**said)


def write_python(
    where: str, topic: str, partitions: int, rate: int, progress: str, out: str
) -> None:
    """The Python client. Says how many records failed, and how late the generator was at worst."""
    acks: list[_Acks] = [[] for _ in range(partitions)]
    failed: list[str] = []
    counts = np.memmap(progress, np.int64, "r+", shape=(partitions,))
    queues: list[queue.SimpleQueue[tuple[int, Delivery] | None]] = [
        queue.SimpleQueue() for _ in range(partitions)
    ]

    def collect(partition: int) -> None:
        while (item := queues[partition].get()) is not None:
            number, delivery = item
            try:
                offset = delivery.result().offset
            except ShmlogError as error:
                failed.append(str(error))
                continue
            acks[partition].append((number, offset, time.monotonic_ns()))
            counts[partition] += 1

    threads = [threading.Thread(target=collect, args=(p,)) for p in range(partitions)]
    worst_ns = sent = 0
    with Producer(where=where) as producer:
        producer.produce(topic, NUMBER.pack(-1), partition=0)
        for thread in threads:
            thread.start()
        stop = _begin()
        start = time.monotonic_ns() + 10_000_000
        while not stop.is_set():
            due = start + sent * 1_000_000_000 // (rate * partitions)
            _wait_until(due)
            worst_ns = max(worst_ns, time.monotonic_ns() - due)
            number, partition = divmod(sent, partitions)
            delivery = producer.send(topic, NUMBER.pack(number), partition=partition)
            queues[partition].put((number, delivery))
            sent += 1
        with contextlib.suppress(ShmlogError):  # counted one by one
            producer.flush(60)
        for waiting, thread in zip(queues, threads, strict=True):
            waiting.put(None)
            thread.join()
    _save(out, acks, sent=sent, failed=len(failed), first_error=failed[:1], late_ms=worst_ns / 1e6)


class _Wire:
    """One socket to one broker at a time, and its pidfd."""

    def __init__(self, where: Path, context: zmq.Context[Any]) -> None:
        self._where = where
        self._context = context
        self._open: dict[int, tuple[zmq.Socket[bytes], int]] = {}
        self._next_id = 0

    def _connect(self, broker: int) -> tuple[zmq.Socket[bytes], int] | None:
        if broker not in self._open:
            entry = directory.read_brokers(self._where).get(broker)
            dead = None if entry is None else process.open_pidfd(entry.pid)
            if entry is None or dead is None:
                return None
            socket = self._context.socket(zmq.DEALER)
            socket.setsockopt(zmq.LINGER, LINGER_MS)
            socket.setsockopt(zmq.RECONNECT_IVL, 10 * LINGER_MS)  # after the close
            socket.connect(entry.endpoints["client"])
            self._open[broker] = socket, dead
        return self._open[broker]

    def forget(self, broker: int) -> None:
        """Nothing that is queued in this socket may be delivered later."""
        if broker in self._open:
            socket, dead = self._open.pop(broker)
            socket.close()
            os.close(dead)

    def ask(self, broker: int, header: dict[str, Any], frames: list[bytes]) -> dict[str, Any]:
        """The answer; {} if the broker is not there, dies, or is silent for too long."""
        found = self._connect(broker)
        if found is None:
            return {}
        socket, dead = found
        self._next_id += 1
        socket.send_multipart([json.dumps({"id": self._next_id, **header}).encode(), *frames])
        poller = zmq.Poller()
        poller.register(socket, zmq.POLLIN)
        poller.register(dead, zmq.POLLIN)
        deadline = time.monotonic() + ACK_TIMEOUT_S
        while (left := deadline - time.monotonic()) > 0:
            ready = [source for source, _ in poller.poll(max(1, int(left * 1000)))]
            if socket in ready:
                answer: dict[str, Any] = json.loads(socket.recv_multipart()[0])
                if answer.get("id") == self._next_id:
                    return answer
            elif dead in ready:
                break
        self.forget(broker)
        return {}


def write_bare(where: str, topic: str, partitions: int, rate: int, progress: str, out: str) -> None:
    """The bare client, one thread a partition."""
    acks: list[_Acks] = [[] for _ in range(partitions)]
    sent, worst_ns = [0] * partitions, [0] * partitions
    counts = np.memmap(progress, np.int64, "r+", shape=(partitions,))
    brokers = list(directory.load_cluster(Path(where)).brokers)
    stop = _begin()
    start = time.monotonic_ns() + 10_000_000

    def write(partition: int) -> None:
        context: zmq.Context[Any] = zmq.Context()
        wire, order = _Wire(Path(where), context), list(brokers)
        header = {"op": "produce", "mode": "simple", "topic": topic, "partition": partition}
        number = 0
        due = start
        while not stop.is_set():
            _wait_until(due)
            worst_ns[partition] = max(worst_ns[partition], time.monotonic_ns() - due)
            answer = wire.ask(
                order[0], {**header, "count": 1, "acks": "all"}, [b"k", NUMBER.pack(number)]
            )
            if answer.get("error") == 0:
                when = time.monotonic_ns()
                acks[partition].append((number, int(answer["base_offset"]), when))
                counts[partition] += 1
                due = max(due + 1_000_000_000 // rate, when)
            else:
                if answer.get("error") != 20:
                    order.append(order.pop(0))
                time.sleep(RETRY_S)
            number += 1
        sent[partition] = number
        for broker in brokers:
            wire.forget(broker)
        context.term()

    threads = [threading.Thread(target=write, args=(p,)) for p in range(partitions)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    _save(out, acks, sent=sum(sent), failed=0, first_error=[], late_ms=max(worst_ns) / 1e6)
