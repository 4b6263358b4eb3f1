"""Requests that a broker has to forward: what cannot be one is refused where it arrives, and no broker ends."""

from __future__ import annotations

import json

import pytest
import zmq

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
