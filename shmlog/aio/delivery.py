"""What `send` hands back in asyncio: promises that are awaited."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Generator, Iterable
from typing import Any

from shmlog.client.accumulator import Batch
from shmlog.client.arguments import Duration, optional_ns
from shmlog.client.delivery import (
    Promise,
    Promises,
    RangeMeta,
    RecordMeta,
    no_ack,
    waiter_lock,
)
from shmlog.clock import NS_PER_S
from shmlog.errors import InvalidRequest, ShmlogError


class LoopWaiter:
    """Tasks of one loop that wait for the fate of a batch: one wake-up of the loop for all."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.known = asyncio.Event()

    def set(self) -> None:
        """From the I/O thread."""
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
            self.loop.call_soon_threadsafe(self.known.set)


async def until_done(batch: Batch) -> None:
    """Wait until the fate of a batch is known. Raises: InvalidRequest: another loop waits for it."""
    if batch.done:
        return
    loop = asyncio.get_running_loop()
    with waiter_lock:
        waiter = batch.waiter
        if waiter is None:
            waiter = batch.waiter = LoopWaiter(loop)
    if not isinstance(waiter, LoopWaiter) or waiter.loop is not loop:
        raise InvalidRequest("a delivery is awaited in the loop of its producer")
    if not batch.done:  # see wait_done
        await waiter.known.wait()


async def all_done(batches: Iterable[Batch], timeout_ns: int | None) -> Batch | None:
    """Wait for the fates of batches; the first without one when the time is up."""
    batch = None
    try:
        async with asyncio.timeout(None if timeout_ns is None else timeout_ns / NS_PER_S):
            for batch in batches:
                await until_done(batch)
    except TimeoutError:
        return batch
    return None


class Delivery(Promise):
    """The promise for one record. `await` it for its RecordMeta."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, RecordMeta]:
        return self.result().__await__()

    async def result(self, timeout: Duration | None = None) -> RecordMeta:
        """Wait for the ack. Raises the delivery's error, or RequestTimedOut after `timeout`."""
        await self._wait(timeout)
        return self.meta()

    async def exception(self, timeout: Duration | None = None) -> ShmlogError | None:
        """Wait; the error, or None if the record was delivered."""
        await self._wait(timeout)
        return self.failure()

    async def _wait(self, timeout: Duration | None) -> None:
        if await all_done(self[:1], optional_ns(timeout, "timeout")):
            raise no_ack(self[0], timeout)


class Deliveries(Promises):
    """The promise for records sent together. `await` it for their RangeMetas."""

    __slots__ = ()

    def __await__(self) -> Generator[Any, None, list[RangeMeta]]:
        return self.result().__await__()

    async def result(self, timeout: Duration | None = None) -> list[RangeMeta]:
        """Wait for all acks; where the records are, one range a batch.

        Raises the first error, or RequestTimedOut when `timeout` passes.
        """
        await self._wait(timeout)
        return self.metas()

    async def exception(self, timeout: Duration | None = None) -> ShmlogError | None:
        """Wait; the first error, or None if every record was delivered."""
        await self._wait(timeout)
        return self.failure()

    async def _wait(self, timeout: Duration | None) -> None:
        late = await all_done((part[0] for part in self._parts), optional_ns(timeout, "timeout"))
        if late is not None:
            raise no_ack(late, timeout)
