"""Produce and fetch with pyzmq and JSON only: python ten_lines.py ENDPOINT [TOPIC]."""

import json
import sys

import zmq

endpoint, topic = sys.argv[1], (sys.argv[2:] or ["greetings"])[0]
with zmq.Context() as context, context.socket(zmq.DEALER) as broker:
    broker.linger, broker.rcvtimeo = 100, 10_000  # milliseconds
    broker.connect(endpoint)

    def ask(op, *frames, **fields):
        """One request, its one answer: the header and the frames behind it. Who does not lead says who does."""
        global endpoint
        broker.send_multipart([json.dumps({"op": op, "id": 1, **fields}).encode(), *frames])
        head, *rest = broker.recv_multipart()
        answer = json.loads(head)
        if answer["error"] == 6 and "endpoint" in answer:
            broker.disconnect(endpoint)
            endpoint = answer["endpoint"]
            broker.connect(endpoint)
            return ask(op, *frames, **fields)
        if answer["error"]:
            sys.exit(f"error {answer['error']}: {answer['message']}")
        return answer, rest

    place = {"mode": "simple", "topic": topic, "partition": 0}
    first = ask("produce", b"key", b"value from Python", count=1, **place)[0]["base_offset"]
    answer, frames = ask("fetch", offset=first, **place)
    for index in range(answer["count"]):  # frames: key, value, key, value, ...
        key, value = frames[2 * index : 2 * index + 2]
        print(answer["base_offset"] + index, key.decode(), value.decode())
