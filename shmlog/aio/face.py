"""What the faces share: opening and closing without holding up the loop, and whose loop it is."""

from __future__ import annotations

import asyncio
import functools
import inspect
import threading
from collections.abc import Callable, Coroutine, Generator
from types import TracebackType
from typing import Any, Concatenate, Generic, ParamSpec, Protocol, Self, TypeVar

from shmlog.errors import ClientClosed, InvalidRequest


class Closable(Protocol):
    """A client that is not for asyncio."""

    def close(self) -> None:
        """From any thread."""
        ...


C = TypeVar("C", bound=Closable)
P = ParamSpec("P")
T = TypeVar("T")


class Face(Generic[C]):
    """A client for asyncio in front of one that is not: `core`, made when it is opened."""

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._core: C | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._turn = asyncio.Lock()  # held while a thread works for this client
        self._closed = False

    @property
    def core(self) -> C:
        """The client behind this one. Raises: ClientClosed; InvalidRequest: in another loop."""
        if self._core is None or self._closed:
            what = type(self).__name__
            raise ClientClosed(
                f"this {what} is closed; make a new one"
                if self._closed
                else f"this {what} is not open: use `async with`, or await it"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise InvalidRequest(
                f"this {type(self).__name__} belongs to another event loop: open one in each loop"
            )
        return self._core

    def __await__(self) -> Generator[Any, None, Self]:
        return self._open().__await__()

    async def __aenter__(self) -> Self:
        return await self._open()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Close the connections; calls that wait raise ClientClosed. Idempotent."""
        if self._core is None or self._closed:
            return
        core = self.core
        self._closed = True
        self._closing()
        await in_thread(core.close)

    async def _open(self) -> Self:
        if self._core is not None:
            self.core  # noqa: B018  it raises if this is closed, or in another loop
            return self
        opening = _Opening(self._make)
        self._loop = asyncio.get_running_loop()
        try:
            core = await in_thread(opening.run)
        except asyncio.CancelledError:
            opening.give_up()
            raise
        assert core is not None
        self._core = core
        self._opened(core)
        return self

    def _closing(self) -> None:
        """In the loop, before the core is closed."""

    def _opened(self, core: C) -> None:
        """In the loop, once there is a core."""

    async def ask(self, call: Callable[[], T]) -> T:
        """What `call` returns: it may wait for brokers, so a thread does it, one at a time."""
        await self._turn.acquire()
        return await asyncio.shield(self._errand(call))

    def _errand(self, call: Callable[[], T]) -> asyncio.Future[T]:
        """With the turn: have a thread do `call`, then pass the turn on, also if nobody waits."""

        def done(future: asyncio.Future[T]) -> None:
            if not future.cancelled():
                future.exception()  # it was asked, even if nobody waits any more
            self._turn.release()
            self._errand_done()

        future = asyncio.get_running_loop().run_in_executor(None, call)
        future.add_done_callback(done)
        return future

    def _errand_done(self) -> None:
        """A thread has used the core."""


class _Opening(Generic[C]):
    """A client being made by a thread. If nobody wants it any more, that thread closes it."""

    def __init__(self, make: Callable[[], C]) -> None:
        self._make = make
        self._lock = threading.Lock()
        self._made: C | None = None
        self._unwanted = False

    def run(self) -> C | None:
        made = self._make()
        with self._lock:
            self._made = made
            unwanted = self._unwanted
        if unwanted:
            made.close()
            return None
        return made

    def give_up(self) -> None:
        with self._lock:
            self._unwanted = True
            made = self._made
        if made is not None:  # it came at the same moment
            threading.Thread(target=made.close, name="shmlog-close").start()


async def in_thread(call: Callable[[], T]) -> T:
    """What `call` returns, done by a thread of the loop; it goes on if the await is cancelled."""
    return await asyncio.shield(asyncio.get_running_loop().run_in_executor(None, call))


def opens(
    core: Callable[P, C],
) -> Callable[[Callable[..., None]], Callable[Concatenate[Any, P], None]]:
    """Give an `__init__` the parameters of a client's class."""

    def with_parameters(init: Callable[..., None]) -> Callable[Concatenate[Any, P], None]:
        parameters = [
            inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY),
            *inspect.signature(core).parameters.values(),
        ]
        init.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return init

    return with_parameters


def asked(
    method: Callable[Concatenate[C, P], T],
) -> Callable[Concatenate[Any, P], Coroutine[Any, Any, T]]:
    """The same method of a face: a thread asks the core."""

    @functools.wraps(method)
    async def ask(self: Face[C], /, *args: P.args, **kwargs: P.kwargs) -> T:
        return await self.ask(functools.partial(method, self.core, *args, **kwargs))

    return ask
