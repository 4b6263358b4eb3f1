"""Headers in both codecs: golden vectors, equal meaning, and nothing but typed errors from hostile bytes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shmlog.errors import TABLE, Code, InvalidRequest, ServerError, ShmlogError, from_wire
from shmlog.protocol import header
from shmlog.protocol.header import Big, Codec, Octets
from shmlog.protocol.messages import Envelope, FetchSimpleAnswer, ProduceSimple
from shmlog.protocol.operations import OPERATIONS

VECTORS = Path(__file__).parent / "golden" / "protocol" / "headers.json"
KINDS: dict[str, Any] = {
    f"{operation.name}{'-' + mode if mode else ''} {side}": getattr(operation, side)
    for (_, mode), operation in OPERATIONS.items()
    for side in ("request", "answer")
}


def vectors() -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(VECTORS.read_text())
    return found


@pytest.mark.parametrize("vector", vectors(), ids=lambda v: v["name"])
def test_golden_headers_mean_the_same_in_both_codecs_and_are_written_so_again(
    vector: dict[str, Any],
) -> None:
    kind = KINDS[vector["name"]]
    from_json = header.decode(vector["json"].encode(), kind)
    from_msgpack = header.decode(bytes.fromhex(vector["msgpack_hex"]), kind)
    assert from_json == from_msgpack
    assert header.encode(from_json, Codec.JSON).decode() == vector["json"]
    assert header.encode(from_json, Codec.MSGPACK).hex() == vector["msgpack_hex"]


def test_every_operation_has_its_vectors() -> None:
    assert {v["name"] for v in vectors()} == set(KINDS)


@pytest.mark.parametrize("vector", vectors(), ids=lambda v: v["name"])
def test_every_truncation_is_a_typed_error(vector: dict[str, Any]) -> None:
    for data in (vector["json"].encode(), bytes.fromhex(vector["msgpack_hex"])):
        for end in range(len(data)):
            with pytest.raises(InvalidRequest):
                header.decode(data[:end], KINDS[vector["name"]])


@given(st.sampled_from(vectors()), st.booleans(), st.integers(0, 4000), st.binary(max_size=3))
@settings(deadline=None, derandomize=True, max_examples=400)
def test_a_damaged_header_is_a_typed_error_or_a_message(
    vector: dict[str, Any], as_json: bool, at: int, damage: bytes
) -> None:
    data = vector["json"].encode() if as_json else bytes.fromhex(vector["msgpack_hex"])
    at %= len(data)
    for damaged in (data[:at] + damage + data[at:], data[:at] + damage + data[at + len(damage) :]):
        try:
            header.decode(damaged, KINDS[vector["name"]])
        except InvalidRequest:
            continue


@given(st.binary(max_size=200), st.sampled_from(sorted(KINDS)))
@settings(deadline=None, derandomize=True, max_examples=300)
def test_garbage_is_a_typed_error_or_a_message(data: bytes, name: str) -> None:
    for start in (b"", b"{", b"\x8f", b"\xdf"):
        try:
            header.decode(start + data, KINDS[name])
        except InvalidRequest:
            continue


@pytest.mark.parametrize(
    "text",
    [
        '{"op":1,"id":1}',
        '{"op":"x"}',
        '{"op":"x","id":1.5}',
        '{"op":"x","id":true}',
        '{"op":"x","id":99999999999999999999}',
        '{"op":"x","id":1,"timeout_ms":-1}',
        '{"op":"' + "x" * 2000 + '","id":1}',
        '{"a":' * 50_000,
        '{"op":"x","id":1}x',
    ],
)
def test_a_value_out_of_its_type_or_bounds_is_refused(text: str) -> None:
    with pytest.raises(InvalidRequest):
        header.decode(text.encode(), Envelope)


def test_unknown_names_are_ignored_and_missing_ones_take_their_default() -> None:
    found = header.decode(b'{"op":"x","id":1,"later":{"a":[1]}}', Envelope)
    assert (found.timeout_ms, found.min_metadata) == (30_000, 0)


def test_64_bit_values_are_text_in_json_answers_and_both_forms_in_requests() -> None:
    answer = {"timestamp": Big((1 << 63) - 1)}
    assert header.encode(answer, Codec.JSON) == b'{"timestamp":"9223372036854775807"}'
    base = '"op":"produce","id":1,"mode":"simple","topic":"t","count":1'
    for value in ('"-5"', "-5"):
        text = f'{{{base},"producer_id":{value}}}'
        assert header.decode(text.encode(), ProduceSimple).producer_id == -5
    for bad in (
        '"1_0"',
        '" 1"',
        '"+1"',
        '"\u0661"',
        '"x"',
        '"9223372036854775808"',
        "1.5",
        "null",
        '""',
        '"' + "1" * 30 + '"',
    ):
        with pytest.raises(InvalidRequest):
            header.decode(f'{{{base},"producer_id":{bad}}}'.encode(), ProduceSimple)


@given(st.binary(max_size=50) | st.text(max_size=20).map(str.encode))
@settings(deadline=None, derandomize=True)
def test_bytes_survive_both_codecs(data: bytes) -> None:
    for codec in Codec:
        written = header.encode({"headers": [[["n", Octets(data)]]]}, codec)
        kind = msgspec.defstruct("Kind", [("headers", list[list[tuple[str, Octets | None]]])])
        assert header.decode(written, kind).headers == [[("n", data)]]  # type: ignore[attr-defined]


def test_a_header_over_its_limit_is_refused_before_it_is_decoded() -> None:
    with pytest.raises(InvalidRequest, match="the limit is 1048576"):
        header.decode(b"{" + b" " * (1 << 20), Envelope)


def test_the_table_of_errors_is_total_both_ways() -> None:
    for code in Code:
        if code is Code.NONE:
            continue
        error = from_wire(int(code), "text", topic="t")
        assert type(error) is TABLE[code].raises
        assert (error.code, error.name, error.topic) == (code, code.name, "t")
        assert error.hint
        low = 0 if code is Code.ELECTION_NOT_NEEDED else 1  # that one counts as done
        assert low <= error.exit_status <= 7
    assert isinstance(from_wire(4711, "text"), ServerError)
    named = {entry.raises for entry in TABLE.values()}
    for kind in named:
        assert issubclass(kind, ShmlogError)
        assert kind.default in TABLE


def test_an_answer_without_headers_does_not_carry_them() -> None:
    fields = msgspec.structs.fields(FetchSimpleAnswer)
    assert [f.name for f in fields if not f.required] == ["headers", "offsets"]
