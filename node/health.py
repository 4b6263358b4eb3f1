"""Asking brokers how the cluster is, from the supervisor's poll loop: one DEALER, one question.

A broker that does not answer within a second is given up for the next one.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

import zmq

from shmlog import directory
from shmlog.clock import NS_PER_S
from shmlog.errors import InvalidRequest
from shmlog.protocol.header import Codec, decode, encode
from shmlog.protocol.messages import DescribeCluster, DescribeClusterAnswer

PATIENCE_NS = NS_PER_S


class Health(NamedTuple):
    """Partitions that lack something, and (broker, incarnation) of those who are alive."""

    without_leader: int = 0
    not_full: int = 0
    living: frozenset[tuple[int, int]] = frozenset()

    def is_as_good_as(self, other: Health) -> bool:
        """No partition more lacks anything."""
        return self.without_leader <= other.without_leader and self.not_full <= other.not_full


class Asker:
    """One question at a time to the living brokers, in turn. Owned by the supervisor's loop."""

    def __init__(self, path: Path, context: zmq.Context[zmq.Socket[bytes]]) -> None:
        self.socket: zmq.Socket[bytes] | None = None  # to be polled: an answer is there
        self._path = path
        self._context = context
        self._turn = 0
        self._deadline_ns = 0

    def health(self, now_ns: int) -> Health | None:
        """What has been answered; if nothing, somebody is asked now or soon."""
        found = None
        if self.socket is not None:
            if self.socket.poll(0):
                found = _read(self.socket.recv_multipart())
                self.forget()
            elif now_ns >= self._deadline_ns:
                self.forget()
        if found is None and self.socket is None:
            self._ask(now_ns)
        return found

    def forget(self) -> None:
        """The next answer is one to a new question."""
        if self.socket is not None:
            self.socket.close(0)
            self.socket = None

    def _ask(self, now_ns: int) -> None:
        living = sorted(directory.read_brokers(self._path).items())
        if not living:
            return
        self._turn += 1
        _, entry = living[self._turn % len(living)]
        self.socket = self._context.socket(zmq.DEALER)
        self.socket.linger = 0
        self.socket.connect(entry.endpoints["client"])
        question = DescribeCluster(op="describe_cluster", id=1)
        self.socket.send_multipart([encode(question, Codec.MSGPACK)])
        self._deadline_ns = now_ns + PATIENCE_NS


def _read(frames: list[bytes]) -> Health | None:
    with contextlib.suppress(InvalidRequest):  # an error, or not what was asked for
        answer = decode(frames[0], DescribeClusterAnswer)
        living = frozenset((b.broker, b.incarnation) for b in answer.brokers if b.alive)
        return Health(answer.partitions_without_leader, answer.partitions_not_full, living)
    return None
