"""A flight board, event-sourced: one topic of what happened, three groups that each make their own thing of it.

    python examples/event_board.py

Billing counts miles and commits each batch after it is booked; it stops on the way, and a second one goes on where the
first one was. Notification tells of late departures, analytics takes the mean. None waits for another.
"""

from __future__ import annotations

from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from importlib.resources import files
from statistics import mean

import msgspec

import shmlog

TOPIC, LATE_MINUTES, CENTS_A_MILE = "flights", 180, 11


def publish(where: str) -> None:
    """Every flight, keyed by its origin: what happens at one airport stays in order."""
    lines = files("shmlog").joinpath("data/flights-20k.jsonl").read_bytes().splitlines()
    with shmlog.Producer(where=where) as producer:
        producer.send_many(
            TOPIC, lines, keys=[msgspec.json.decode(x)["origin"].encode() for x in lines]
        )


def billing(where: str, batches: int | None) -> Counter[str]:
    """Cents by origin, of so many batches, or of all that is there."""
    cents: Counter[str] = Counter()
    with shmlog.Consumer(
        TOPIC, where=where, group="billing", commit="manual", stop="latest", value=shmlog.serde.json
    ) as consumer:
        for number, batch in enumerate(consumer.batches(max_records=500), 1):
            for flight in batch.values:
                cents[flight["origin"]] += flight["distance"] * CENTS_A_MILE
            consumer.commit(batch)  # only what is booked: a crash before this line books it again
            if number == batches:
                break
    return cents


def notification(where: str) -> int:
    """How many passengers' phones would have rung."""
    with shmlog.Consumer(TOPIC, where=where, group="notification", stop="latest") as consumer:
        return sum(record.json()["delay"] >= LATE_MINUTES for record in consumer)


def analytics(where: str) -> float:
    """The mean delay in minutes."""
    with shmlog.Consumer(TOPIC, where=where, group="analytics", stop="latest") as consumer:
        return mean(record.json()["delay"] for record in consumer)


def main() -> None:
    """Publish, and let the three groups read side by side."""
    with shmlog.LocalCluster(3) as cluster:
        where = str(cluster.dir)
        cluster.client().admin.create_topic(TOPIC, 4)
        publish(where)
        with ThreadPoolExecutor() as pool:
            late, delay = pool.submit(notification, where), pool.submit(analytics, where)
            cents = billing(where, 12) + billing(where, None)
    dearest = ", ".join(f"{origin} ${total / 100:,.2f}" for origin, total in cents.most_common(3))
    print(
        f"billing:      ${sum(cents.values()) / 100:,.2f} from {len(cents)} airports; most: {dearest}"
    )
    print(f"notification: {late.result()} flights at least {LATE_MINUTES} minutes late")
    print(f"analytics:    mean delay {delay.result():.3f} minutes")


if __name__ == "__main__":
    main()
