"""`tritonclient.grpc.aio`, unmodified."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc.aio as client
from tritonclient.utils import InferenceServerException

from tests.clients.arrays import ARRAYS, assert_same
from tests.clients.conftest import Endpoints
from tests.clients.test_tritonclient_grpc import LEFT, RIGHT, add_sub_inputs, failing_input


def run(server: Endpoints, test: Callable[[client.InferenceServerClient], Awaitable[None]]) -> None:
    async def with_client() -> None:
        async with client.InferenceServerClient(server.grpc) as grpc:
            await test(grpc)

    asyncio.run(with_client())


def test_everything_but_inference(server: Endpoints):
    async def test(grpc: client.InferenceServerClient) -> None:
        assert await grpc.is_server_live()
        assert await grpc.is_server_ready()
        assert await grpc.is_model_ready("add_sub")
        assert (await grpc.get_server_metadata()).name == "triton"
        assert (await grpc.get_model_metadata("add_sub")).platform == "python"
        assert (await grpc.get_model_config("add_sub")).config.backend == "python"
        assert len((await grpc.get_inference_statistics("versions")).model_stats) == 2
        assert "types" in {model.name for model in (await grpc.get_model_repository_index()).models}

    run(server, test)


def test_every_datatype(server: Endpoints):
    async def test(grpc: client.InferenceServerClient) -> None:
        inputs = []
        for datatype, array in ARRAYS.items():
            inputs.append(client.InferInput(f"IN_{datatype}", [3], datatype))
            inputs[-1].set_data_from_numpy(array)
        result = await grpc.infer("types", inputs)
        for datatype in ARRAYS:
            assert_same(result.as_numpy(f"OUT_{datatype}"), datatype)

    run(server, test)


def test_many_at_once(server: Endpoints):
    async def test(grpc: client.InferenceServerClient) -> None:
        requests = [grpc.infer("add_sub", add_sub_inputs(), request_id=str(number)) for number in range(50)]
        for number, result in enumerate(await asyncio.gather(*requests)):
            assert result.get_response().id == str(number)
            np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)

    run(server, test)


def test_stream_infer(server: Endpoints):
    async def requests() -> AsyncIterator[dict[str, Any]]:
        for number in range(10):
            yield {"model_name": "add_sub", "inputs": add_sub_inputs(), "request_id": str(number)}
        yield {"model_name": "failing", "inputs": [failing_input(3)], "request_id": "bad"}

    async def test(grpc: client.InferenceServerClient) -> None:
        answers = [answer async for answer in grpc.stream_infer(requests())]
        assert [result.get_response().id for result, _ in answers[:-1]] == [str(number) for number in range(10)]
        np.testing.assert_array_equal(answers[0][0].as_numpy("OUTPUT0"), LEFT + RIGHT)
        assert "code 3 as asked" in str(answers[-1][1])

    run(server, test)


def test_a_stream_can_be_cancelled(server: Endpoints):
    async def requests() -> AsyncIterator[dict[str, Any]]:
        while True:
            yield {"model_name": "add_sub", "inputs": add_sub_inputs()}
            await asyncio.sleep(0)

    async def test(grpc: client.InferenceServerClient) -> None:
        stream = grpc.stream_infer(requests())
        async for result, error in stream:
            assert error is None
            np.testing.assert_array_equal(result.as_numpy("OUTPUT0"), LEFT + RIGHT)
            assert stream.cancel()
            break
        assert await grpc.is_server_live()

    run(server, test)


def test_errors(server: Endpoints):
    async def test(grpc: client.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="unknown model: 'unknown' is not found"):
            await grpc.infer("unknown", add_sub_inputs())

    run(server, test)
