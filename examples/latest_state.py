"""The latest state of each route, in a compacted topic: a table that anybody can load, however long its history was.

    python examples/latest_state.py

Each flight replaces what was known of its route; a route that nobody has flown in March is deleted by a tombstone.
Compaction then keeps the newest record of each key, so a new reader has less to read and finds the same table.
"""

from __future__ import annotations

import time
from importlib.resources import files

import msgspec

import shmlog

TOPIC = "routes"
SETTINGS = {
    "cleanup_policy": "compact",
    "segment_bytes": "256KiB",
    "min_cleanable_dirty_ratio": 0.01,
}


def publish(client: shmlog.Client) -> dict[bytes, bytes]:
    """Every flight by its route, then the tombstones; the table as a program sees it that kept everything."""
    table: dict[bytes, bytes] = {}
    lines = files("shmlog").joinpath("data/flights-20k.jsonl").read_bytes().splitlines()
    with client.producer() as producer:
        for line in lines:
            flight = msgspec.json.decode(line)
            route = f"{flight['origin']}-{flight['destination']}".encode()
            producer.send(TOPIC, line, key=route)
            table[route] = line
        closed = [r for r, line in table.items() if msgspec.json.decode(line)["date"] < "2001/03"]
        for route in closed:
            producer.send(TOPIC, None, key=route)
            del table[route]
    print(f"{len(lines) + len(closed)} records: {len(table)} routes, {len(closed)} more are closed")
    return table


def load(client: shmlog.Client) -> tuple[dict[bytes, bytes], int]:
    """The table as a new reader builds it, and how many records it took."""
    table, count = {}, 0
    with client.consumer(TOPIC, stop="latest") as consumer:
        for record in consumer:
            count += 1
            if record.value is None:
                table.pop(record.key, None)
            else:
                table[record.key] = record.value
    return table, count


def main() -> None:
    """Publish, wait for the cleaner, load."""
    with shmlog.LocalCluster(3) as cluster:
        client = cluster.client()
        client.admin.create_topic(TOPIC, 2, configs=SETTINGS)
        whole = publish(client)
        table, count = load(client)
        print(f"a new reader reads {count} records; the same table: {table == whole}")
        while count > 4 * len(whole):  # the segment that is being written is never compacted
            time.sleep(0.5)
            table, count = load(client)
        print(f"compacted, it reads {count} records; the same table: {table == whole}")


if __name__ == "__main__":
    main()
