"""Records out of topics, for asyncio."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from shmlog.aio.face import Face, asked, opens
from shmlog.client import consumer
from shmlog.client.arguments import Duration, optional_ns
from shmlog.client.batch import Batch, Record
from shmlog.client.engine import Engine
from shmlog.clock import NS_PER_S, SYSTEM_CLOCK
from shmlog.errors import InvalidRequest, ShmlogError
from shmlog.ids import TopicPartition

OnError = Callable[[ShmlogError], None]


def _in_loop(loop: asyncio.AbstractEventLoop, call: Callable[..., Any]) -> Callable[..., None]:
    """`call`, done by the loop while the thread that asks for it waits."""

    async def done(*args: Any, **kwargs: Any) -> None:
        call(*args, **kwargs)

    def ask(*args: Any, **kwargs: Any) -> None:
        asyncio.run_coroutine_threadsafe(done(*args, **kwargs), loop).result()

    return ask


class _Core(consumer.Consumer):
    """A consumer whose waiting is done elsewhere."""

    @property
    def engine(self) -> Engine:
        return self._engine

    @property
    def hand(self) -> tuple[Batch | None, int]:
        """The batch that is handed out record by record, and how many were."""
        return self._batch, self._taken

    @property
    def has_news(self) -> bool:
        """Does the group give or take partitions?"""
        return self._member is not None and self._member.has_news

    @property
    def is_report_due(self) -> bool:
        """Is it time to say how far the records of a batch are finished?"""
        member = self._member
        return member is not None and SYSTEM_CLOCK.monotonic_ns() >= member.membership.report_ns

    def hold(self, batch: Batch, end: int | None) -> None:
        """The application has this batch now, whole or (None) record by record."""
        self._in_hand = (batch, end) if len(batch) else None

    def follow(self) -> None:
        """Take and give up partitions; asks brokers."""
        with self._engine.lock:
            self._follow()

    finish = consumer.Consumer._finish
    rest = consumer.Consumer._rest
    next_batch = consumer.Consumer._next_batch
    keep = consumer.Consumer._keep


class Consumer(Face[_Core]):
    """Reads partitions: see shmlog.Consumer. For the tasks of one loop; one of them reads at a time.

    The loop watches the sockets. A read that is cancelled has handed out nothing: the next one gets
    what it would have got. `on_error`, `on_assign` and `on_revoke` are called in the loop, and must
    not wait for this consumer.
    """

    @opens(consumer.Consumer)
    def __init__(self, *topics: str, on_error: OnError | None = None, **options: Any) -> None:
        super().__init__(functools.partial(self._start, topics, on_error, options))
        self._reading = False
        self._news: asyncio.Future[None] | None = None  # of the read that waits for the sockets
        self._fd = -1  # which it watches
        self._thread: asyncio.Future[None] | None = None  # asks for a read, cancelled or not
        self._records: Iterator[Record] = iter(())
        self._records_of: Batch | None = None

    def _start(
        self, topics: tuple[str, ...], on_error: OnError | None, options: dict[str, Any]
    ) -> _Core:
        loop = self._loop
        assert loop is not None

        def tell(error: ShmlogError) -> None:
            if on_error is not None:
                loop.call_soon_threadsafe(on_error, error)

        for name in ("on_assign", "on_revoke"):
            if options.get(name) is not None:
                options[name] = _in_loop(loop, options[name])
        return _Core(*topics, on_error=tell, **options)

    # --- records

    def __aiter__(self) -> AsyncIterator[Record]:
        """Records, one by one; waits for more, and ends at `stop`."""
        return self

    async def __anext__(self) -> Record:
        core = self.core
        while True:
            if core.has_news or core.is_report_due:
                core.finish()
                if core.has_news:
                    await self.ask(core.follow)
            batch, taken = core.hand
            if batch is None or taken >= len(batch):
                core.finish()
                batch = await self._read(None, True)
                if batch is None:
                    raise StopAsyncIteration
                taken = 0
                core.keep(batch, 0)
            core.hold(batch, None)
            if batch is not self._records_of or not taken:
                rest = batch.part(taken, len(batch)) if taken else batch
                self._records, self._records_of = iter(rest), batch
            for record in self._records:
                core.keep(batch, taken + 1)
                return record

    def batches(
        self,
        max_records: int | None = None,
        timeout: Duration | None = None,
        copy: bool = True,
    ) -> AsyncIterator[Batch]:
        """Batches as they are stored, or parts of at most `max_records`; ends at `stop`.

        See shmlog.Consumer.batches.
        """
        if max_records is not None and max_records < 1:
            raise InvalidRequest(f"max_records = {max_records}: must be at least 1")
        return _Batches(self, max_records, optional_ns(timeout, "timeout"), copy)

    async def next_batch(
        self, max_records: int | None, timeout_ns: int | None, copy: bool
    ) -> Batch | None:
        """What `batches` hands out next; None at the stop."""
        core = self.core
        core.finish()
        if core.has_news:
            await self.ask(core.follow)
        batch = core.rest()
        if batch is None:
            batch = await self._read(timeout_ns, copy)
        if batch is not None and max_records is not None and len(batch) > max_records:
            core.keep(batch, max_records)
            batch = batch.part(0, max_records)
        if batch is not None:
            core.hold(batch, batch.end_offset)
        return batch

    # --- positions

    @property
    def assignment(self) -> list[TopicPartition]:
        """The partitions read, sorted."""
        return self.core.assignment

    def position(self, tp: TopicPartition) -> int:
        """The offset of the next record of a partition. Raises: UnknownTopic: not assigned."""
        return self.core.position(tp)

    def lateness(self) -> tuple[float, float]:
        """With `pace`: how late the last records were, and the latest ones so far, in seconds."""
        return self.core.lateness()

    seek = asked(consumer.Consumer.seek)
    pause = asked(consumer.Consumer.pause)
    resume = asked(consumer.Consumer.resume)
    commit = asked(consumer.Consumer.commit)
    committed = asked(consumer.Consumer.committed)
    lag = asked(consumer.Consumer.lag)

    # --- the reading

    async def _read(self, timeout_ns: int | None, copy: bool) -> Batch | None:
        if self._reading:
            raise InvalidRequest("another task reads from this consumer: one at a time")
        self._reading = True
        try:
            # The other tasks' turn, also where batches are always there.
            await asyncio.sleep(0)
            await self._asked()
            return await self._drive(self.core.next_batch(timeout_ns, copy))
        finally:
            self._reading = False

    async def _drive(self, steps: consumer.Steps) -> Batch | None:
        """As Consumer._wait. Nothing is awaited between the last step and the return."""
        engine = self.core.engine
        try:
            while True:
                async with self._turn:
                    engine = self.core.engine
                    with engine.lock:
                        step = next(steps)
                        wait = None if callable(step) else engine.begin(step)
                        fd = engine.check().ready_fd
                if callable(step):
                    await self._turn.acquire()
                    self._thread = self._errand(step)
                    await self._asked()
                    continue
                if fd is not None:
                    await self._until_ready(fd, wait)
                async with self._turn:
                    engine = self.core.engine
                    with engine.lock:
                        engine.take_in(engine.check().poll(0))
        except StopIteration as end:
            batch: Batch | None = end.value
            return batch

    async def _asked(self) -> None:
        """Wait until the thread that asks for a read is done. Raises its error, to one read."""
        if self._thread is not None:
            await asyncio.wait([self._thread])
            thread, self._thread = self._thread, None
            thread.result()

    async def _until_ready(self, fd: int, timeout_ns: int | None) -> None:
        """Wait until the sockets have news, for `timeout_ns` at most."""
        loop = asyncio.get_running_loop()
        news = self._news = loop.create_future()
        self._fd = fd
        loop.add_reader(fd, self._wake)
        timer = None
        if timeout_ns is not None:
            timer = loop.call_later(timeout_ns / NS_PER_S, self._wake)
        try:
            await news
        finally:
            self._wake()
            if timer is not None:
                timer.cancel()

    def _wake(self) -> None:
        """End the read's wait. The loop lets go of the sockets, which may be closed from now on."""
        news, self._news = self._news, None
        if news is not None:
            asyncio.get_running_loop().remove_reader(self._fd)
            if not news.done():
                news.set_result(None)

    _errand_done = _closing = _wake


class _Batches:
    """The batches of one call of `batches`; goes on after a cancelled read."""

    def __init__(
        self, face: Consumer, max_records: int | None, timeout_ns: int | None, copy: bool
    ) -> None:
        self._next = functools.partial(face.next_batch, max_records, timeout_ns, copy)

    def __aiter__(self) -> AsyncIterator[Batch]:
        return self

    async def __anext__(self) -> Batch:
        batch = await self._next()
        if batch is None:
            raise StopAsyncIteration
        return batch
