"""The newcomer's face: records in, records out, one object."""

from __future__ import annotations

from collections.abc import Iterator
from types import TracebackType
from typing import Any

from shmlog.client.admin import Admin
from shmlog.client.batch import Record
from shmlog.client.bootstrap import Where
from shmlog.client.consumer import Consumer
from shmlog.client.delivery import RecordMeta
from shmlog.client.producer import Producer
from shmlog.client.table import Table, read


class Client:
    """One cluster: a producer and an admin made at first use, consumers as asked for."""

    def __init__(self, where: Where = None) -> None:
        self._where = where
        self._admin: Admin | None = Admin(where)
        self._producer: Producer | None = None

    def produce(self, topic: str, value: Any, **options: Any) -> RecordMeta:
        """Send one record and wait for its ack; options as of Producer.produce."""
        if self._producer is None:
            self._producer = Producer(where=self._where)
        return self._producer.produce(topic, value, **options)

    def consume(self, *topics: str, **options: Any) -> Iterator[Record]:
        """Records of a consumer of its own; options as of Consumer. It is closed when the loop
        ends.
        """
        with self.consumer(*topics, **options) as consumer:
            yield from consumer

    def producer(self, **options: Any) -> Producer:
        """A new producer; the caller closes it."""
        return Producer(where=self._where, **options)

    def consumer(self, *topics: str, **options: Any) -> Consumer:
        """A new consumer; the caller closes it."""
        return Consumer(*topics, where=self._where, **options)

    def read(self, topic: str, **options: Any) -> Table:
        """A finite part of a topic for Arrow, pandas, polars, duckdb, numpy; options as of shmlog.read."""
        return read(topic, where=self._where, **options)

    @property
    def admin(self) -> Admin:
        """Topics and settings."""
        if self._admin is None:
            self._admin = Admin(self._where)
        return self._admin

    def close(self) -> None:
        """Close producer and admin. Raises: DeliveryError: records that were not delivered.
        Idempotent.
        """
        producer, self._producer = self._producer, None
        admin, self._admin = self._admin, None
        try:
            if producer is not None:
                producer.close()
        finally:
            if admin is not None:
                admin.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def connect(where: Where = None) -> Client:
    """The cluster at `where`, else the one found as the command line finds it (see Client).

    Raises: ClusterNotFound, InvalidConfig.
    """
    return Client(where)
