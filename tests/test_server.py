"""The composition root: a server in this process."""

import asyncio
import http.client
import json
import time

import pytest

from merrow.front_doors import EXTENSIONS, PROTOCOL_VERSION
from merrow.net.loop import new_event_loop
from merrow.server import Ports, Server, ServerStartError
from merrow.settings import NetworkSettings, RepositorySettings, Settings
from merrow.testing.repository_builder import RepositoryBuilder

SEPARATE_PORTS = NetworkSettings(http_port=0, grpc_port=0, metrics_port=0)
ONE_PORT = NetworkSettings(port=0, allow_http=False, allow_grpc=False, allow_metrics=False)


@pytest.fixture(autouse=True, scope="module")
def first_loop():
    """uvloop opens a pipe with its first loop, and keeps it as long as the process lives."""
    new_event_loop().close()


def make_settings(path, network=SEPARATE_PORTS, **repository):
    return Settings(
        exit_timeout_seconds=5,
        repository=RepositorySettings(model_repositories=(str(path),), **repository),
        network=network,
    )


def run(coroutine):
    loop = new_event_loop()
    try:
        return loop.run_until_complete(coroutine)
    finally:
        loop.run_until_complete(loop.shutdown_default_executor())
        loop.close()


async def get(port, target):
    """Status and body of one request, asked from a thread."""

    def ask():
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
        connection.request("GET", target)
        response = connection.getresponse()
        body = response.read()
        connection.close()
        return response.status, body

    return await asyncio.to_thread(ask)


@pytest.mark.slow
def test_a_server_serves_from_entering_to_leaving(tmp_path):
    RepositoryBuilder(tmp_path).add_identity("m")

    async def serve():
        async with Server(make_settings(tmp_path)) as server:
            ports = server.ports
            metadata = await get(ports.http, "/v2")
            ready = await get(ports.http, "/v2/models/m/ready")
            metrics = await get(ports.metrics, "/metrics")
            not_here = await get(ports.http, "/metrics")
            rest_on_grpc = await get(ports.grpc, "/v2")
        with pytest.raises(ConnectionRefusedError):
            await get(ports.http, "/v2")
        assert ports.all is None
        assert json.loads(metadata[1]) == {
            "name": "triton",
            "version": PROTOCOL_VERSION,
            "extensions": list(EXTENSIONS),
        }
        assert ready == (200, b"")
        assert b"nv_inference_request_success" in metrics[1]
        assert not_here[0] == 404
        assert rest_on_grpc[0] == 404

    run(serve())


@pytest.mark.slow
def test_one_port_serves_rest_and_metrics(tmp_path):
    RepositoryBuilder(tmp_path).add_identity("m")

    async def serve():
        async with Server(make_settings(tmp_path, ONE_PORT)) as server:
            port = server.ports.all
            assert server.ports == Ports(all=port)
            assert (await get(port, "/v2/models/m"))[0] == 200
            status, metrics = await get(port, "/metrics")
            assert status == 200
            assert b"nv_inference_count" in metrics

    run(serve())


@pytest.mark.slow
def test_a_model_that_fails_to_load_keeps_the_server_from_starting_or_from_being_ready(tmp_path):
    repository = RepositoryBuilder(tmp_path)
    repository.add("broken", 'backend: "nope"')

    async def refuse():
        with pytest.raises(ServerStartError) as raised:
            async with Server(make_settings(tmp_path)):
                pass
        assert str(raised.value) == "creating server: Internal - failed to load all models"

    async def serve():
        async with Server(make_settings(tmp_path, exit_on_error=False)) as server:
            assert (await get(server.ports.http, "/v2/health/live"))[0] == 200
            assert (await get(server.ports.http, "/v2/health/ready"))[0] == 400

    run(refuse())
    run(serve())


@pytest.mark.slow
def test_a_repository_that_is_not_there_keeps_the_server_from_starting(tmp_path):
    async def refuse():
        with pytest.raises(ServerStartError) as raised:
            async with Server(make_settings(tmp_path / "nowhere")):
                pass
        assert str(raised.value).startswith("creating server: Internal - ")
        assert f"{tmp_path}/nowhere" in str(raised.value)

    run(refuse())


@pytest.mark.slow
def test_a_port_that_is_taken_keeps_the_server_from_starting(tmp_path):
    async def refuse():
        async with Server(make_settings(tmp_path)) as first:
            taken = first.ports.http
            network = NetworkSettings(http_port=taken, grpc_port=0, metrics_port=0)
            with pytest.raises(ServerStartError) as raised:
                async with Server(make_settings(tmp_path, network)):
                    pass
        assert str(raised.value) == (
            f"failed to start HTTPService: Unavailable - Socket '127.0.0.1:{taken}' already in use "
        )

    run(refuse())


@pytest.mark.slow
def test_stopping_does_not_wait_for_idle_connections(tmp_path):
    async def serve():
        server = Server(make_settings(tmp_path))
        await server.__aenter__()
        reader, writer = await asyncio.open_connection("127.0.0.1", server.ports.http)
        writer.write(b"GET /v2 HTTP/1.1\r\nHost: x\r\n\r\n")
        await reader.readuntil(b"\r\n\r\n")
        start = time.monotonic()
        assert await server.stop()
        assert time.monotonic() - start < 2
        assert await server.stop()
        writer.close()

    run(serve())
