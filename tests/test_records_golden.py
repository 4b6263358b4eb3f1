"""Batches frozen in hex: what was written once is read for ever, by every language.

A vector of tests/golden/records holds the batch in hex beside its records (byte strings in hex
too) and its header. One that says `"build": true` is also what the builder makes of these
records today. One with `"rewritten"` is what compaction makes of the batch `of` that keeps the records `kept`.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from shmlog.records.batch import RecordBatch
from shmlog.records.builder import build, stamp
from shmlog.records.layout import Codec
from shmlog.records.rewriting import only, with_gap

VECTORS = sorted((Path(__file__).parent / "golden" / "records").glob("*.json"))
STAMPED = ("base_offset", "leader_epoch", "append_time_ns", "topic_id", "partition")
PRODUCER = ("producer_id", "producer_epoch", "base_sequence")


def in_hex(data):
    return None if data is None else data.hex()


def of_hex(text):
    return None if text is None else bytes.fromhex(text)


def described(hexadecimal):
    """The vector of a batch, as its file has it."""
    batch = RecordBatch(bytes.fromhex(hexadecimal))
    batch.validate()
    header = batch.header._asdict()
    header["topic_id"] = header["topic_id"].hex()
    records = [
        {
            "key": in_hex(key),
            "value": in_hex(value),
            "timestamp_ns": timestamp,
            "headers": [[name, in_hex(content)] for name, content in batch.headers(i)],
        }
        for i, (key, value, timestamp) in enumerate(
            zip(batch.keys(), batch.values(), batch.timestamps.tolist(), strict=True)
        )
    ]
    if batch.has_gaps:
        for record, offset in zip(records, batch.offsets.tolist(), strict=True):
            record["offset"] = offset
    return {"header": header, "records": records, "hex": hexadecimal}


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_a_frozen_batch_reads_as_it_was_written(path):
    vector = json.loads(path.read_text())
    assert described(vector["hex"]).items() <= vector.items()


@pytest.mark.parametrize("path", VECTORS, ids=lambda path: path.stem)
def test_the_builder_still_makes_the_frozen_bytes(path):
    vector = json.loads(path.read_text())
    header, records = vector["header"], vector["records"]
    if "rewritten" in vector:
        assert header["codec"] == Codec.NONE
        assert rewritten(**vector["rewritten"]).hex() == vector["hex"]
        return
    if not vector["build"]:  # compressed bytes depend on the version of the codec's package
        assert header["codec"] != Codec.NONE
        return
    batch = build(
        [of_hex(record["value"]) for record in records],
        keys=[of_hex(record["key"]) for record in records],
        headers=[
            [(name, of_hex(content)) for name, content in record["headers"]] for record in records
        ],
        timestamps=[record["timestamp_ns"] for record in records],
        **{name: header[name] for name in PRODUCER},
    )
    if header["header_crc"]:
        stamp(batch, **{name: header[name] for name in STAMPED} | _topic_id(header))
    assert batch.hex() == vector["hex"]


def rewritten(of, kept, behind_gap):
    batch = RecordBatch(bytes.fromhex(of))
    if len(kept) == len(batch):
        return with_gap(bytes.fromhex(of), batch.header, behind_gap=behind_gap)
    return only(batch, np.array(kept, np.intp), behind_gap=behind_gap)


def _topic_id(header):
    return {"topic_id": bytes.fromhex(header["topic_id"])}


def test_there_is_a_vector_for_every_kind_of_column_and_codec():
    headers = [json.loads(path.read_text())["header"] for path in VECTORS]
    assert {header["codec"] for header in headers} == set(Codec)
    assert any(header["value_width"] for header in headers)
    assert any(header["header_crc"] for header in headers)
    for bit in (1, 2, 4, 8, 16, 32, 64):
        assert any(header["flags"] & bit for header in headers)
