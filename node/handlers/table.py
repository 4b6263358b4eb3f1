"""The table: operation -> handler. From a message's frames to a request that is being handled.

Every request gets exactly one answer. What cannot be read is answered 42, with id null if even that could not
be read; an unexpected error while a request is decoded is answered -1, so that no message can kill a broker
twice, and so is a bug in a handler that has not appended anything. A handler's own errors (ShmlogError) are
answers; the disk's, and those of a request that may be half done, end the broker.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable
from functools import partial
from typing import Any

from node import journal
from node.handlers import cluster, fetch, groups, offsets, produce, topics
from node.handlers.exchange import METADATA, Context, Exchange
from shmlog.errors import (
    Backpressure,
    Code,
    InvalidRequest,
    LeaderUnavailable,
    RequestTimedOut,
    ServerError,
    ShmlogError,
)
from shmlog.protocol import header
from shmlog.protocol.messages import (
    FRAMES_MAX,
    Envelope,
    Hello,
    Request,
)
from shmlog.protocol.operations import OPERATION_NAMES, OPERATIONS

RETRY_AFTER_MS = 20

_HANDLERS: dict[tuple[str, str], Callable[..., None]] = {
    ("hello", ""): topics.hello,
    ("metadata", ""): topics.metadata,
    ("create_topic", ""): topics.create_topic,
    ("alter_topic", ""): topics.alter_topic,
    ("add_partitions", ""): topics.add_partitions,
    ("delete_topic", ""): topics.delete_topic,
    ("describe_topic", ""): topics.describe_topic,
    ("produce", "simple"): produce.produce_simple,
    ("produce", "fast"): produce.produce_fast,
    ("fetch", "simple"): fetch.fetch_simple,
    ("fetch", "fast"): fetch.fetch_fast,
    ("list_offsets", ""): offsets.list_offsets,
    ("delete_records", ""): offsets.delete_records,
    ("init_producer", ""): offsets.init_producer,
    ("describe_cluster", ""): cluster.describe_cluster,
    ("elect", ""): cluster.elect,
    ("epochs", ""): cluster.epochs,
    ("metadata_log", ""): cluster.metadata_log,
    ("group_heartbeat", ""): groups.heartbeat,
    ("group_leave", ""): groups.leave,
    ("commit", ""): groups.commit,
    ("committed", ""): groups.committed,
    ("list_groups", ""): groups.list_groups,
    ("describe_group", ""): groups.describe,
    ("reset_group", ""): groups.reset,
    ("delete_group", ""): groups.delete,
}
assert set(_HANDLERS) == set(OPERATIONS)
_BY_TYPE = {OPERATIONS[key].request: handler for key, handler in _HANDLERS.items()}
_MODES = {op for op, mode in OPERATIONS if mode}


class _MetadataWait:
    """A request that must not be served before this broker's image has reached its offset."""

    def __init__(
        self, context: Context, exchange: Exchange, request: Request, frames: list[bytes]
    ) -> None:
        self._context = context
        self._exchange = exchange
        self._request = request
        self._frames = frames

    def resume(self) -> None:
        """The image has moved."""
        handle(self._context, self._exchange, self._request, self._frames)

    def expire(self) -> None:
        """Time is up."""
        self._exchange.fail(
            RequestTimedOut(f"metadata offset {self._request.min_metadata} did not come in time")
        )


def bind(context: Context) -> None:
    """Put the handlers together: some go on with a request after a change of the cluster."""
    context.handle = partial(handle, context)
    context.create_default_topic = partial(topics.create_default_topic, context)
    context.create_offsets_topic = partial(topics.create_offsets_topic, context)


def receive(context: Context, client: bytes, frames: list[bytes], sender: Any = None) -> None:
    """Handle one multipart message of a session."""
    envelope = bool(frames) and not frames[0]
    if envelope:
        frames = frames[1:]
    if not frames or not frames[0]:
        return  # no header, so nothing to answer and no codec to answer in
    exchange = Exchange(
        context, client, header.codec_of(frames[0]), envelope, sum(map(len, frames)), sender
    )
    try:
        request = _decode(exchange, frames)
        _admit(context, exchange)
    except ShmlogError as error:
        exchange.fail(error)
    except Exception as error:  # noqa: BLE001 - nothing has been touched yet; the broker stays up
        journal.failure("request could not be decoded", error, client=client.hex())
        exchange.fail(ServerError("internal error while the request was read"))
    else:
        handle(context, exchange, request, frames[1:])


def _decode(exchange: Exchange, frames: list[bytes]) -> Request:
    if len(frames) > FRAMES_MAX:
        raise InvalidRequest(f"{len(frames)} frames: at most {FRAMES_MAX}")
    envelope = header.decode(frames[0], Envelope)
    exchange.begin(envelope)
    operation = OPERATIONS.get((envelope.op, envelope.mode if envelope.op in _MODES else ""))
    if operation is None:
        raise InvalidRequest(_unknown(envelope))
    request: Request = header.decode(frames[0], operation.request)
    return request


def _unknown(envelope: Envelope) -> str:
    if envelope.op in _MODES:
        return f'{envelope.op}: mode {envelope.mode[:20]!r} must be "simple" or "fast"'
    near: Any = difflib.get_close_matches(envelope.op[:40], OPERATION_NAMES, 1)
    hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(OPERATION_NAMES)}"
    return f"no operation {envelope.op[:40]!r}: {hint}"


def _admit(context: Context, exchange: Exchange) -> None:
    limit = context.settings.request_memory_bytes
    if context.admitted_bytes > limit and context.admitted_bytes > exchange.size:
        raise Backpressure(
            f"{context.admitted_bytes} bytes of unanswered requests, the limit is {limit}",
            retry_after_ms=RETRY_AFTER_MS,
        )


def handle(context: Context, exchange: Exchange, request: Request, frames: list[bytes]) -> None:
    """Run a request's handler, now or once the image is new enough."""
    if not context.knows_image and not isinstance(request, Hello):
        # After a start the image is behind: it must not say that a topic is unknown, or was deleted.
        exchange.fail(
            LeaderUnavailable(
                "this broker has just started and does not know the cluster yet",
                code=Code.BROKER_NOT_AVAILABLE,
            )
        )
        return
    if request.min_metadata > context.metadata.image.offset:
        waiter = _MetadataWait(context, exchange, request, frames)
        threshold = (("image", METADATA), request.min_metadata)
        context.purgatory.wait(waiter, [threshold], exchange.deadline_ns)
        return
    try:
        _BY_TYPE[type(request)](context, exchange, request, frames)
    except ShmlogError as error:
        exchange.fail(error)
    except (OSError, AssertionError):
        raise  # the disk, or a broken invariant: the broker ends
    except Exception as error:
        # An append is the last thing that a produce does before it parks: what fails after one is ours.
        if not exchange.open or exchange.appended:
            raise
        journal.failure("request failed", error, op=request.op[:40], client=exchange.client.hex())
        exchange.fail(ServerError("internal error: the broker's log has the details"))
