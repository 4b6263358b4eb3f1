"""The faces of the client under one test: each call of the one for asyncio is awaited in a loop's thread."""

from __future__ import annotations

import asyncio
import inspect
import threading
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

import shmlog

_PATIENCE_S = 60


class Blocking:
    """The clients themselves."""

    Producer = shmlog.Producer
    Consumer = shmlog.Consumer
    Admin = shmlog.Admin

    def stop(self) -> None:
        """Nothing runs."""


class Awaited:
    """The clients for asyncio; what is a coroutine there is a call here."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()

    def stop(self) -> None:
        self.run(self._loop.shutdown_default_executor())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(_PATIENCE_S)

    def call(self, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
        async def called() -> Any:
            result = function(*args, **options)
            return await result if inspect.iscoroutine(result) else result

        result = self.run(called())
        promised = isinstance(result, shmlog.aio.Delivery | shmlog.aio.Deliveries)
        return _Bridge(self, result) if promised or hasattr(result, "__anext__") else result

    def _open(self, face: Any, *args: Any, **options: Any) -> Any:
        async def opened() -> Any:
            return await face(*args, **options)

        return _Bridge(self, self.run(opened()))

    def Producer(self, *args: Any, **options: Any) -> Any:
        return self._open(shmlog.aio.Producer, *args, **options)

    def Consumer(self, *args: Any, **options: Any) -> Any:
        return self._open(shmlog.aio.Consumer, *args, **options)

    def Admin(self, *args: Any, **options: Any) -> Any:
        return self._open(shmlog.aio.Admin, *args, **options)


class _Bridge:
    """An object of the loop's thread."""

    def __init__(self, face: Awaited, behind: Any) -> None:
        self._face = face
        self._behind = behind

    def __getattr__(self, name: str) -> Any:
        value = self._face.call(getattr, self._behind, name)
        return lambda *a, **o: self._face.call(value, *a, **o) if callable(value) else value

    @property
    def assignment(self) -> Any:
        return self._face.call(getattr, self._behind, "assignment")

    def __getitem__(self, index: int) -> Any:
        return self._behind[index]

    def __len__(self) -> int:
        return len(self._behind)

    def __iter__(self) -> Iterator[Any]:
        return self

    def __next__(self) -> Any:
        try:
            return self._face.call(self._behind.__anext__)
        except StopAsyncIteration:
            raise StopIteration from None

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *_: object) -> None:
        self._face.call(self._behind.close)
