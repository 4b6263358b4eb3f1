"""Requests that a broker has to forward: what cannot be one is refused where it arrives, and no broker ends."""

from __future__ import annotations

import json

import pytest
import zmq

from shmlog import directory
from shmlog.errors import InvalidRequest
from shmlog.protocol import header, peers
from shmlog.testing.cluster import LocalCluster


@pytest.mark.process
@pytest.mark.parametrize("value", ["1" + "0" * 30, "[" + "0.0," * 9 + "0]", "{}"])
def test_a_setting_that_is_none_is_refused_by_every_broker(value: str) -> None:
    requests = [
        {"op": "alter_topic", "id": 1, "topic": "t", "set": {"segment_bytes": "VALUE"}},
        {"op": "create_topic", "id": 1, "topic": "n", "configs": {"segment_bytes": "VALUE"}},
    ]
    with LocalCluster(2) as cluster, zmq.Context() as context:
        before = dict(cluster.pids)
        for broker in (0, 1):
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 0
                socket.connect(f"ipc://{cluster.dir}/run/broker-{broker}.sock")
                for request in requests:
                    socket.send(json.dumps(request).replace('"VALUE"', value).encode())
                    assert socket.poll(20_000)
                    assert json.loads(socket.recv())["error"] in (40, 42)
        assert cluster.pids == before


@pytest.mark.parametrize("term", [-1, 1 << 31])
def test_a_term_that_no_batch_can_carry_is_no_message(term: int) -> None:
    message = peers.VoteAnswer(term=term, granted=False)
    with pytest.raises(InvalidRequest):
        header.decode(header.encode(message, header.Codec.MSGPACK), peers.PeerUnion)  # type: ignore[arg-type]


@pytest.mark.process
def test_messages_that_no_broker_would_send_end_none() -> None:
    with LocalCluster(3) as cluster, zmq.Context() as context:
        client = cluster.client()
        client.admin.create_topic("t", 2)
        before = dict(cluster.pids)
        forged: list[peers.PeerMessage] = [
            peers.AppendRequest(
                term=term, prev_offset=0, prev_term=0, commit=commit, sent_ns=1, lease_until_ns=1,
                answered_ns=1,
            )
            for term in (1, 2)
            for commit in (0, 1 << 40)
        ]  # fmt: skip
        forged.append(peers.Propose(seq=1, change=peers.DeleteTopic(name="t")))
        for to in cluster.brokers:
            with context.socket(zmq.DEALER) as socket:
                socket.linger = 5000
                socket.connect(f"ipc://{directory.peer_socket(cluster.dir, to)}")
                for message in forged:
                    names_t = isinstance(message, peers.Propose)
                    for sender in (to, 7) if names_t else set(cluster.brokers) - {to}:
                        message.broker, message.incarnation = sender, 1
                        socket.send(header.encode(message, header.Codec.MSGPACK))
                    socket.send_multipart([b"\x81\xa1t\xa1x", b"", b"y" * 1000])
        cluster.restart()  # all that was sent has been read by then
        assert set(cluster.pids) == set(before)
        for broker in cluster.brokers:
            log = directory.broker_log(cluster.dir, broker).read_text()
            assert "Traceback" not in log
            assert log.count('"ready"') == 2
        assert client.produce("t", b"still here").offset >= 0
