"""The clients for asyncio: the names, parameters and errors of `shmlog`, with `await`.

    async with shmlog.aio.Producer() as producer, shmlog.aio.Consumer("orders") as consumer:
        async for record in consumer:
            await producer.produce("copies", record.value)

They are faces of the same clients; only the waiting differs. A consumer has no thread: the event loop
itself watches its sockets, and wakes it once a batch. A producer's I/O thread wakes the loop once a
batch of acks. What is rare and may wait for brokers (opening, closing, Admin, seek) is done by a
thread of the loop's default executor; the loop never waits.

A client is opened by `async with`, or by `await`, and belongs to the loop that opened it. A call that
is cancelled loses nothing and repeats nothing: a record is handed out only by a call that returns
it, and queued only if `send` returns.
"""

from shmlog.aio.admin import Admin
from shmlog.aio.consumer import Consumer
from shmlog.aio.delivery import Deliveries, Delivery
from shmlog.aio.producer import Producer

__all__ = ["Admin", "Consumer", "Deliveries", "Delivery", "Producer"]
