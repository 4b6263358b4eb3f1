"""Batches as Arrow record batches: whole columns, no work per record.

A batch's columns lie as Arrow's variable-size binary does (positions i32[n + 1], bytes, validity bits), so what a
reader holds already becomes an Arrow array without a copy; only a timestamp column with deltas is computed, and what
is a view of shared memory is copied first, for nobody can ask Arrow's users whether it is still valid.

    partition   int32
    offset      int64
    timestamp   timestamp[ns, UTC]
    key         binary                       null: there is none
    value       binary; utf8 with serde.text; with serde.numpy(dtype) the dtype's own type, a struct for a
                structured one (then no value may be null)
    headers     list<struct<name: utf8, value: binary>>     only if asked for: made record by record

pyarrow is needed, an extra of the package.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from shmlog.errors import InvalidConfig, SerializationError
from shmlog.serde import Numpy, Serde, raw, text

if TYPE_CHECKING:
    from shmlog.client.batch import Batch
    from shmlog.records.columns import VariableColumn


def pyarrow() -> Any:
    """The module. Raises InvalidConfig, with the line that installs it."""
    try:
        import pyarrow
    except ImportError:
        raise InvalidConfig("Arrow needs pyarrow: pip install 'shmlog[arrow]'") from None
    return pyarrow


def schema(key: Serde | None, value: Serde | None, *, headers: bool) -> Any:
    """The columns of a topic that is read with these serdes."""
    pa = pyarrow()
    fields = [
        pa.field("partition", pa.int32(), nullable=False),
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("timestamp", pa.timestamp("ns", "UTC"), nullable=False),
        pa.field("key", _type(key)),
        pa.field("value", _type(value)),
    ]
    if headers:
        pair = pa.struct([pa.field("name", pa.utf8()), pa.field("value", pa.binary())])
        fields.append(pa.field("headers", pa.list_(pair)))
    return pa.schema(fields)


def _type(serde: Serde | None) -> Any:
    pa = pyarrow()
    if serde is None or serde is raw:
        return pa.binary()
    if serde is text:
        return pa.utf8()
    if isinstance(serde, Numpy):
        return _type_of(serde.dtype)
    raise InvalidConfig(
        f"no Arrow type for {type(serde).__name__}: use serde.raw, text or numpy(dtype)"
    )


def _type_of(dtype: np.dtype[Any]) -> Any:
    pa = pyarrow()
    if dtype.names is not None:
        return pa.struct([pa.field(n, _type_of(dtype[n]), False) for n in dtype.names])
    if dtype.subdtype is not None:
        item, shape = dtype.subdtype
        return pa.list_(_type_of(item), int(np.prod(shape)))
    if dtype.kind in "SV":
        return pa.binary(dtype.itemsize)
    try:
        return pa.from_numpy_dtype(dtype)
    except pa.ArrowNotImplementedError:
        raise InvalidConfig(f"no Arrow type for dtype {dtype}") from None


def record_batch(batch: Batch, *, headers: bool = False) -> Any:
    """The records of `batch` as one pyarrow.RecordBatch.

    Raises: SerializationError: a value that does not fit its serde.
    """
    pa = pyarrow()
    wanted = schema(*batch.serdes, headers=headers)
    if not len(batch):
        return pa.record_batch([pa.array([], field.type) for field in wanted], schema=wanted)
    batch = batch.owned()
    columns = [
        pa.array(np.full(len(batch), batch.partition, np.int32)),
        pa.array(batch.offsets),
        pa.array(batch.timestamps).cast(wanted.field("timestamp").type),
        _column(batch, "key", wanted.field("key").type),
        _column(batch, "value", wanted.field("value").type),
    ]
    if headers:
        rows = [
            [{"name": name, "value": value} for name, value in batch.headers(i)]
            for i in range(len(batch))
        ]
        columns.append(pa.array(rows, wanted.field("headers").type))
    return pa.record_batch(columns, schema=wanted)


def _column(batch: Batch, name: str, kind: Any) -> Any:
    pa = pyarrow()
    serde = batch.serdes[0 if name == "key" else 1]
    column, width, data = batch.column(name)
    if isinstance(serde, Numpy):
        return _items(batch, name, serde.dtype, kind)
    if column is not None:
        array = _binary(column, len(column.positions) - 1)
    elif width:
        count = len(data) // width
        positions = np.arange(0, width * count + 1, width, dtype=np.int32)
        buffers = [None, pa.py_buffer(positions), pa.py_buffer(data)]
        array = pa.Array.from_buffers(pa.binary(), count, buffers)
    else:
        return pa.nulls(len(batch), kind)
    array = array.slice(batch.first, len(batch))
    if pa.types.is_binary(kind):
        return array
    try:
        return array.cast(kind)
    except pa.ArrowInvalid as error:
        raise SerializationError(f"{batch!r}: a {name} is no UTF-8: {error}") from None


def _binary(column: VariableColumn, count: int) -> Any:
    pa = pyarrow()
    validity = None if column.validity is None else pa.py_buffer(column.validity)
    positions = pa.py_buffer(column.positions)
    buffers = [validity, positions, pa.py_buffer(column.data)]
    return pa.Array.from_buffers(pa.binary(), count, buffers)


def _items(batch: Batch, name: str, dtype: np.dtype[Any], kind: Any) -> Any:
    """Fixed-width items of a dtype."""
    if name == "key":
        raise InvalidConfig("a key with serde.numpy has no Arrow column: use serde.raw")
    return _array_of(batch.array, dtype, kind)


def _array_of(items: Any, dtype: np.dtype[Any], kind: Any) -> Any:
    pa = pyarrow()
    if dtype.names is not None:
        children = [
            _array_of(items[n], dtype[n], kind.field(i).type) for i, n in enumerate(dtype.names)
        ]
        return pa.StructArray.from_arrays(children, fields=list(kind))
    if dtype.subdtype is not None:
        flat = np.ascontiguousarray(items).reshape(-1)
        return pa.FixedSizeListArray.from_arrays(
            _array_of(flat, dtype.subdtype[0], kind.value_type), kind.list_size
        )
    if dtype.kind in "SV":
        data = np.ascontiguousarray(items).tobytes()
        return pa.Array.from_buffers(kind, len(items), [None, pa.py_buffer(data)])
    return pa.array(np.ascontiguousarray(items).astype(dtype.newbyteorder("="), copy=False))
