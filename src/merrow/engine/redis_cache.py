"""The Redis response store: answers in a Redis server, which other servers may share and a restart does not empty.

Redis is asked on a few threads of this module's own, never on the loop's. What cannot be asked in time counts as not
found: a Redis server that is slow or gone makes requests slower or uncached, and fails none. The log says so once, and
again when it is back.

Redis decides how much it keeps (`maxmemory`, `maxmemory-policy`), as for Triton's Redis cache.

Source: Triton, redis_cache/README.md, redis_cache/src/redis_cache.cc.
"""

import asyncio
import logging
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from merrow.core.errors import InvalidArgumentError, UnavailableError
from merrow.engine.response_cache import CachedResponse, CachedTensor
from merrow.settings import RedisCacheSettings

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError:
    redis = None  # type: ignore[assignment]  # what stands for the module that is not there

_LOG = logging.getLogger("merrow.engine")

KEY_PREFIX = b"merrow:response:1:"
"""Begins every key; the number is that of the layout of the values."""

_COUNT = struct.Struct("<I")
_SIZE = struct.Struct("<Q")
_DIM = struct.Struct("<q")


class RedisStore:
    """See the module. Implements `response_cache.ResponseStore`; made on the loop's thread.

    Raises:
        UnavailableError: the package `redis` is not installed, or the server cannot be reached.
    """

    is_shared = True

    def __init__(self, settings: RedisCacheSettings, loop: asyncio.AbstractEventLoop) -> None:
        if redis is None:
            raise UnavailableError(
                "the Redis response cache needs the package redis, which is not installed; it comes with "
                "pip install 'merrow[redis]'"
            )
        self._loop = loop
        self._max_pending = settings.max_pending
        self._pending_count = 0
        self._is_failing = False
        self._client = _connect(settings)
        self._executor = ThreadPoolExecutor(settings.pool_size, "redis")

    def look_up(self, key: bytes, found: Callable[[CachedResponse | None], None]) -> None:
        if self._pending_count >= self._max_pending:
            found(None)
            return
        self._pending_count += 1
        self._executor.submit(self._get, key, found)

    def insert(self, key: bytes, response: CachedResponse) -> None:
        if self._pending_count < self._max_pending:
            self._pending_count += 1
            self._executor.submit(self._set, key, response)

    def usage(self) -> None:
        """Redis keeps its own."""

    async def close(self) -> None:
        # What was asked for is still answered: requests wait for it.
        await self._loop.run_in_executor(None, self._executor.shutdown)
        self._client.close()

    # On the store's threads.

    def _get(self, key: bytes, found: Callable[[CachedResponse | None], None]) -> None:
        response: CachedResponse | None = None
        failure: Exception | None = None
        try:
            value = self._client.get(KEY_PREFIX + key)
            response = None if value is None else decode_response(value)
        except Exception as error:
            failure = error
        self._loop.call_soon_threadsafe(self._on_got, response, failure, found)

    def _set(self, key: bytes, response: CachedResponse) -> None:
        failure: Exception | None = None
        try:
            self._client.set(KEY_PREFIX + key, encode_response(response))
        except Exception as error:
            failure = error
        self._loop.call_soon_threadsafe(self._on_done, failure)

    # On the loop's thread.

    def _on_got(
        self, response: CachedResponse | None, failure: Exception | None, found: Callable[[CachedResponse | None], None]
    ) -> None:
        self._on_done(failure)
        found(response)

    def _on_done(self, failure: Exception | None) -> None:
        self._pending_count -= 1
        if failure is not None and not self._is_failing:
            _LOG.error("the Redis response cache fails, requests are executed without it: %s", failure)
        elif failure is None and self._is_failing:
            _LOG.info("the Redis response cache works again")
        self._is_failing = failure is not None


def encode_response(response: CachedResponse) -> bytes:
    """An answer as the value of a Redis key; every string and buffer has its length before it."""
    pieces = [_COUNT.pack(len(response))]
    for tensor in response:
        for text in (tensor.name, tensor.datatype):
            pieces += (_COUNT.pack(len(text.encode())), text.encode())
        pieces.append(_COUNT.pack(len(tensor.shape)))
        pieces += map(_DIM.pack, tensor.shape)
        pieces += (_SIZE.pack(len(tensor.data)), tensor.data)
    return b"".join(pieces)


def decode_response(value: bytes) -> CachedResponse:
    """The inverse of `encode_response`.

    Raises:
        ValueError: the value is cut, or goes on after the last tensor.
    """
    reader = _Reader(value)
    tensors = []
    for _ in range(reader.number(_COUNT)):
        name = reader.take(reader.number(_COUNT)).decode()
        datatype = reader.take(reader.number(_COUNT)).decode()
        shape = tuple(reader.number(_DIM) for _ in range(reader.number(_COUNT)))
        tensors.append(CachedTensor(name, datatype, shape, reader.take(reader.number(_SIZE))))
    if reader.position != len(value):
        raise ValueError(f"{len(value) - reader.position} bytes after the last tensor of a cached response")
    return tuple(tensors)


class _Reader:
    """Takes a value apart from the front."""

    def __init__(self, value: bytes) -> None:
        self._value = value
        self.position = 0

    def take(self, size: int) -> bytes:
        end = self.position + size
        if end > len(self._value):
            raise ValueError(f"a cached response is cut at {len(self._value)} bytes, {end} are needed")
        piece = self._value[self.position : end]
        self.position = end
        return piece

    def number(self, layout: struct.Struct) -> int:
        number: int = layout.unpack(self.take(layout.size))[0]
        return number


def _connect(settings: RedisCacheSettings) -> Any:
    """A client whose pool has a connection, to show that the server is there."""
    assert redis is not None
    options: dict[str, Any] = {}
    if settings.tls_enabled:
        options = {
            "ssl": True,
            "ssl_certfile": settings.certificate_file or None,
            "ssl_keyfile": settings.key_file or None,
            "ssl_ca_certs": settings.root_certificate_file or None,
            "ssl_ca_path": settings.root_certificate_directory or None,
        }
    client = redis.Redis(
        host=settings.host,
        port=settings.port,
        db=settings.database,
        username=settings.user or None,
        password=settings.password or None,
        socket_connect_timeout=settings.connect_timeout_ms / 1000 or None,
        socket_timeout=settings.socket_timeout_ms / 1000 or None,
        max_connections=settings.pool_size,
        protocol=2,
        # At once, once: for a connection that lay idle until Redis closed it.
        retry=Retry(NoBackoff(), 1),
        **options,
    )
    try:
        client.ping()
    except redis.exceptions.AuthenticationError as error:
        client.close()
        raise InvalidArgumentError(f"Failed to init Redis connection: {error}") from None
    except redis.exceptions.RedisError as error:
        client.close()
        raise UnavailableError(f"Failed to init Redis connection: {error}") from None
    return client
