"""A topic as Arrow, pandas and numpy: the same records as a consumer's, however they were stored."""

from __future__ import annotations

import datetime
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

import shmlog
from shmlog import serde
from shmlog.errors import InvalidConfig, InvalidRecord, SerializationError, UnknownTopic
from shmlog.testing.cluster import LocalCluster

pytestmark = pytest.mark.process

TICK = np.dtype([("ts", "<i8"), ("px", "<f8"), ("big", ">i4"), ("sym", "S4"), ("m", "<f4", (2, 3))])


@pytest.fixture(scope="module")
def where() -> Iterator[Path]:
    with LocalCluster() as running:
        yield running.dir


@pytest.fixture
def topic(where: Path, request: pytest.FixtureRequest) -> str:
    name = "t" + str(abs(hash(request.node.nodeid)))
    with shmlog.Admin(where) as admin:
        admin.create_topic(name, 2)
    return name


def fill(where: Path, topic: str, count: int = 300, **options: object) -> None:
    with shmlog.Producer(where=where, **options) as producer:  # type: ignore[arg-type]
        for i in range(count):
            producer.send(
                topic,
                None if i % 7 == 0 else b"v%d" % i,
                key=None if i % 3 == 0 else b"k%d" % i,
                partition=i % 2,
                timestamp=1_000_000_000 + i * 1000,
                headers=[("n", b"%d" % i)] if i % 5 == 0 else None,
            )


@pytest.mark.parametrize("compression", ["none", "gzip"])
def test_columns_hold_what_a_consumer_sees(where: Path, topic: str, compression: str) -> None:
    fill(where, topic, compression=compression)
    table = shmlog.read(topic, where=where, headers=True)
    read = table.to_arrow()
    with shmlog.Consumer(topic, where=where, stop="latest") as consumer:
        wanted = sorted(consumer)
    rows = sorted(read.to_pylist(), key=lambda row: (row["partition"], row["offset"]))
    epoch = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)
    assert len(rows) == len(table) == len(wanted) == 300
    for row, record in zip(rows, wanted, strict=True):
        assert (row["partition"], row["offset"]) == (record.partition, record.offset)
        assert (row["key"], row["value"]) == (record.key, record.value)
        # Where pandas is installed this is its Timestamp, which keeps the ns.
        micros = datetime.timedelta(microseconds=record.timestamp // 1000)
        late = row["timestamp"] - epoch - micros
        assert datetime.timedelta(0) <= late < datetime.timedelta(microseconds=1)
        assert [(h["name"], h["value"]) for h in row["headers"]] == record.headers


def test_a_part_by_position_begins_and_ends_inside_batches_and_reads_twice(
    where: Path, topic: str
) -> None:
    fill(where, topic)
    table = shmlog.read(topic, where=where, start="10:20", partitions=[1])
    fill(where, topic)  # comes too late
    assert table.to_arrow()["offset"].to_pylist() == list(range(10, 20))
    assert table.to_numpy("offset").tolist() == list(range(10, 20))
    assert table.to_numpy("timestamp")[0] == 1_000_000_000 + 21_000
    assert table.to_numpy("partition").tolist() == [1] * 10
    assert table.to_arrow()["value"].to_pylist()[0] is None  # 21 is a multiple of 7
    assert len(shmlog.read(topic, where=where, start="-5")) == 10


def test_text_and_fixed_width_values(where: Path, topic: str) -> None:
    with shmlog.Producer(where=where) as producer:
        producer.send_many(topic, [b"abcd", b"efgh"], partition=0)  # one width: no positions stored
        producer.send_many(topic, [b"a", "ü".encode()], partition=0)
    read = shmlog.read(topic, where=where, value=serde.text).to_arrow()
    assert read["value"].to_pylist() == ["abcd", "efgh", "a", "ü"]
    with shmlog.Producer(where=where) as producer:
        producer.send(topic, b"\xff", partition=0)
    with pytest.raises(SerializationError):
        shmlog.read(topic, where=where, value=serde.text).to_arrow()


def test_structured_arrays(where: Path, topic: str) -> None:
    array = np.zeros(1000, TICK)
    array["ts"], array["px"], array["big"] = np.arange(1000), 0.5, np.arange(1000)
    array["sym"], array["m"] = b"ab", np.arange(6).reshape(2, 3)
    with shmlog.Producer(where=where) as producer:
        producer.send_array(topic, array, partition=0)
    table = shmlog.read(topic, where=where, value=serde.numpy(TICK), partitions=[0])
    assert (table.to_numpy("value") == array).all()
    assert (shmlog.read(topic, where=where).to_numpy("value", TICK) == array).all()
    value = table.to_arrow()["value"].combine_chunks()
    assert value.field("ts").to_pylist() == list(range(1000))
    assert value.field("big").to_pylist() == list(range(1000))
    assert value.field("sym")[0].as_py() == b"ab\0\0"
    assert value.field("m")[7].as_py() == [0, 1, 2, 3, 4, 5]
    with pytest.raises(InvalidRecord):
        shmlog.read(topic, where=where).to_numpy("value", "<i2")


def test_a_batch_is_an_arrow_array_also_from_a_view_of_the_ring(where: Path, topic: str) -> None:
    fill(where, topic)
    for copy in (True, False):
        with shmlog.Consumer(topic, where=where, stop="latest") as consumer:
            batches = [pa.record_batch(batch) for batch in consumer.batches(copy=copy)]
        read = pa.Table.from_batches(batches)
        assert sorted(read["offset"].to_pylist()) == sorted([*range(150), *range(150)])
        assert read.schema == shmlog.read(topic, where=where).schema


def test_an_empty_topic_has_a_schema_and_no_rows(where: Path, topic: str) -> None:
    table = shmlog.read(topic, where=where)
    assert table.to_arrow().num_rows == 0
    assert pa.schema(table) == table.to_arrow().schema
    assert table.to_numpy("offset").tolist() == []
    assert table.to_numpy("value", TICK).dtype == TICK
    with shmlog.Consumer(topic, where=where) as consumer:
        empty = next(consumer.batches(timeout=0.01))
        assert pa.record_batch(empty).num_rows == 0


def test_what_cannot_be_read_so_is_said(where: Path, topic: str) -> None:
    with pytest.raises(UnknownTopic):
        shmlog.read("nosuch", where=where)
    with pytest.raises(UnknownTopic):
        shmlog.read(topic, where=where, partitions=[2])
    for value in (serde.json, serde.numpy("<c16")):
        with pytest.raises(InvalidConfig, match="no Arrow type"):
            shmlog.read(topic, where=where, value=value).to_arrow()
    for column, dtype in (("key", None), ("value", None)):
        with pytest.raises(InvalidConfig):
            shmlog.read(topic, where=where).to_numpy(column, dtype)


def test_without_pyarrow_the_error_says_how_to_get_it(
    where: Path, topic: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(InvalidConfig, match=r"pip install 'shmlog\[arrow\]'"):
        shmlog.read(topic, where=where).to_arrow()
