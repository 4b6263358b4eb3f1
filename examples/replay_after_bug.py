"""Replay after a bug: a report was wrong for two weeks, its group goes back to that day and reads once more.

    python examples/replay_after_bug.py

The report adds up delays by day. A release of March 15 counted flights that were early as if they had been late. The
records are all still there, so the mended program resets its group to that moment and makes these days anew.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC, datetime
from importlib.resources import files

import msgspec

import shmlog

TOPIC, GROUP, RELEASED = "flights", "report", datetime(2001, 3, 15, tzinfo=UTC)


def publish(client: shmlog.Client) -> None:
    """Every flight, with the moment of its departure as the timestamp."""
    lines = files("shmlog").joinpath("data/flights-20k.jsonl").read_bytes().splitlines()
    flights = [msgspec.json.decode(line) for line in lines]
    times = [datetime.strptime(f["date"], "%Y/%m/%d %H:%M").replace(tzinfo=UTC) for f in flights]
    with client.producer() as producer:
        producer.send_many(
            TOPIC, lines, keys=[f["origin"].encode() for f in flights],
            timestamps=[int(time.timestamp()) * 10**9 for time in times],
        )  # fmt: skip


def run(client: shmlog.Client, report: Counter[str], delay_of: Callable[[str, int], int]) -> int:
    """Add all that the group has not read yet to the report; how many flights that were."""
    count = 0
    with client.consumer(TOPIC, group=GROUP, stop="latest") as consumer:
        for record in consumer:  # committed as it goes, and at the end
            flight = record.json()
            day = flight["date"][:10]
            report[day] += delay_of(day, flight["delay"])
            count += 1
    return count


def buggy(day: str, delay: int) -> int:
    """What was running: from the release on, early is late."""
    return abs(delay) if day >= f"{RELEASED:%Y/%m/%d}" else delay


def mended(day: str, delay: int) -> int:
    """What was meant."""
    return delay


def main() -> None:
    """Publish, report, find the bug, go back, report again."""
    with shmlog.LocalCluster(3) as cluster:
        client = cluster.client()
        client.admin.create_topic(TOPIC, 4)
        publish(client)
        report: Counter[str] = Counter()
        count = run(client, report, buggy)
        print(f"report of {count} flights: {sum(report.values())} minutes late in all")

        plan = client.admin.reset_group(GROUP, RELEASED, dry_run=True)
        back = sum(p.before - p.after for p in plan)
        print(f"going back to {RELEASED:%Y-%m-%d} means {back} flights in {len(plan)} partitions")
        client.admin.reset_group(GROUP, RELEASED)
        for day in [day for day in report if day >= f"{RELEASED:%Y/%m/%d}"]:
            del report[day]  # these days are made anew
        count = run(client, report, mended)
        print(f"{count} flights replayed: {sum(report.values())} minutes late in all")


if __name__ == "__main__":
    main()
