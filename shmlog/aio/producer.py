"""Records into topics, for asyncio."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any, TypeVar
from weakref import WeakValueDictionary

from numpy.typing import NDArray

from shmlog.aio.delivery import Deliveries, Delivery, all_done
from shmlog.aio.face import Face, in_thread, opens
from shmlog.client import producer
from shmlog.client.accumulator import Headers
from shmlog.client.arguments import Duration, optional_ns
from shmlog.client.delivery import RecordMeta
from shmlog.client.io_thread import IoThread
from shmlog.client.producer import Step, not_settled
from shmlog.clock import NS_PER_S
from shmlog.errors import BufferFull, ClientClosed, RequestTimedOut, ShmlogError

T = TypeVar("T")


class _Core(producer.Producer):
    """A producer whose calls do not wait: they raise BufferFull at once."""

    asked: dict[str, int]  # by the attempts of one call

    def _want(self, topic: str) -> int:
        if topic not in self.asked:
            self.asked[topic] = super()._want(topic)
        return self.asked[topic]

    def _wait_changed(self, done: Callable[[], bool]) -> bool:
        return done() or self._io.stopping or self._accumulator.fatal is not None

    @property
    def io(self) -> IoThread:
        return self._io

    @property
    def max_block_ns(self) -> int:
        return self._max_block_ns

    refusal = property(lambda self: self._refusal)
    plan_many = producer.Producer._plan_many
    plan_array = producer.Producer._plan_array
    refuse = producer.Producer._refuse
    flushing = producer.Producer._flushing
    reported = producer.Producer._reported
    raise_failures = producer.Producer._raise_failures


class _Changes:
    """Tasks that wait for what the I/O thread tells: room in the buffer, news of a topic, the end.

    The thread holds this, so it must not hold the producer.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self.waiting = 0
        self.event = asyncio.Event()

    def tell(self) -> None:
        """From the I/O thread, under its lock: who has looked under the lock since is told."""
        if self.waiting:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits
                self._loop.call_soon_threadsafe(self.event.set)


class Producer(Face[_Core]):
    """Sends records: see shmlog.Producer. For the tasks of one loop.

    `send` returns once the record is queued; while the byte budget is used up, it waits. A `send`
    that is cancelled has queued nothing; a `produce` that is cancelled while it waits for the ack
    has queued its record, once.
    """

    @opens(producer.Producer)
    def __init__(self, **options: Any) -> None:
        super().__init__(functools.partial(_Core, **options))
        self._lines: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    def _opened(self, core: _Core) -> None:
        self._changes = _Changes(asyncio.get_running_loop())
        core.io.on_changed = self._changes.tell

    async def send(
        self,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers | None = None,
    ) -> Delivery:
        """Queue one record, see shmlog.Producer.send. Await the delivery for the ack."""
        send = functools.partial(
            self.core.send,
            topic,
            value,
            key=key,
            partition=partition,
            timestamp=timestamp,
            headers=headers,
        )
        return Delivery(await self._when_possible(topic, send))

    async def produce(
        self,
        topic: str,
        value: Any,
        *,
        key: Any = None,
        partition: int | None = None,
        timestamp: int | None = None,
        headers: Headers | None = None,
    ) -> RecordMeta:
        """Send one record and wait for its ack. Raises as `send`, or the delivery's error."""
        core = self.core
        delivery = await self.send(
            topic, value, key=key, partition=partition, timestamp=timestamp, headers=headers
        )
        try:
            return await delivery
        except ShmlogError:
            core.reported(delivery[0])
            raise

    async def send_many(
        self,
        topic: str,
        values: Iterable[Any],
        *,
        keys: Iterable[Any] | None = None,
        partition: int | None = None,
        timestamps: Sequence[int] | NDArray[Any] | int | None = None,
    ) -> Deliveries:
        """Queue many records at once, see shmlog.Producer.send_many. Await the deliveries for the acks.

        When it is cancelled, records queued before stay queued.
        """
        values = values if isinstance(values, list) else list(values)
        keys = keys if keys is None or isinstance(keys, list) else list(keys)
        plan = functools.partial(self.core.plan_many, topic, values, keys, partition, timestamps)
        return await self._queue_all(topic, plan)

    async def send_array(
        self,
        topic: str,
        array: NDArray[Any],
        *,
        partition: int | None = None,
        timestamp: int | None = None,
    ) -> Deliveries:
        """Queue the items of an array, see shmlog.Producer.send_array."""
        plan = functools.partial(self.core.plan_array, topic, array, partition, timestamp)
        return await self._queue_all(topic, plan)

    async def flush(self, timeout: Duration | None = None) -> None:
        """Send everything now and wait until every record queued before has its fate.

        Raises: DeliveryError with every record that failed since the last flush; RequestTimedOut.
        """
        timeout_ns = optional_ns(timeout, "timeout")
        core = self.core
        if core.refusal is not None:
            raise core.refusal
        await self._settle(core, timeout_ns)
        core.raise_failures()

    async def close(self, timeout: Duration | None = None) -> None:
        """Flush, then end the I/O thread, which it also does if it is cancelled. Idempotent.

        Raises: DeliveryError with every record that failed since the last flush.
        """
        timeout_ns = optional_ns(timeout, "timeout")
        if self._core is None or self._closed:
            return
        core = self.core
        self._closed = True
        core.refuse(ClientClosed("this producer is closed; make a new one"))
        try:
            await self._settle(core, timeout_ns)
        except RequestTimedOut:
            pass  # what is left fails below, and is raised
        finally:
            core.io.stop()
            await in_thread(core.io.join)
        core.raise_failures()

    # --- inside

    async def _settle(self, core: _Core, timeout_ns: int | None) -> None:
        with core.flushing() as waiting:
            if await all_done(waiting, timeout_ns) is not None:
                raise not_settled(waiting)

    async def _queue_all(self, topic: str, plan: Callable[[], list[Step]]) -> Deliveries:
        steps = await self._when_possible(topic, plan)
        return Deliveries([await self._when_possible(topic, step) for step in steps])

    async def _when_possible(self, topic: str, attempt: Callable[[], T]) -> T:
        """What `attempt` returns as soon as it does not raise BufferFull, for up to max_block."""
        changes, core = self._changes, self.core
        asked: dict[str, int] = {}
        core.asked = asked
        if topic not in self._lines:
            try:
                return attempt()
            except BufferFull:
                pass
        line = self._lines.setdefault(topic, asyncio.Lock())  # who waits longest is next
        changes.waiting += 1
        try:
            async with asyncio.timeout(core.max_block_ns / NS_PER_S), line:
                while True:
                    changes.event.clear()
                    core.asked = asked
                    try:
                        return attempt()
                    except BufferFull:
                        await changes.event.wait()
        except TimeoutError:
            core.asked = asked
            return attempt()  # it says what is lacking
        finally:
            changes.waiting -= 1
