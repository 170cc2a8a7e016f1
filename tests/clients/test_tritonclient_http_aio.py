"""`tritonclient.http.aio`, unmodified."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import tritonclient.http.aio as client
from tritonclient.utils import InferenceServerException

from tests.clients.arrays import ARRAYS, assert_same
from tests.clients.conftest import Endpoints
from tests.clients.test_tritonclient_http import LEFT, RIGHT, add_sub_inputs


def run(server: Endpoints, test: Callable[[client.InferenceServerClient], Awaitable[None]]) -> None:
    async def with_client() -> None:
        async with client.InferenceServerClient(server.http) as http:
            await test(http)

    asyncio.run(with_client())


def test_everything_but_inference(server: Endpoints):
    async def test(http: client.InferenceServerClient) -> None:
        assert await http.is_server_live()
        assert await http.is_server_ready()
        assert await http.is_model_ready("add_sub")
        assert not await http.is_model_ready("unknown")
        assert (await http.get_server_metadata())["name"] == "triton"
        assert (await http.get_model_metadata("add_sub"))["platform"] == "python"
        assert (await http.get_model_config("add_sub"))["backend"] == "python"
        assert len((await http.get_inference_statistics("versions"))["model_stats"]) == 2
        assert {"name": "types", "version": "1", "state": "READY"} in await http.get_model_repository_index()

    run(server, test)


def test_every_datatype(server: Endpoints):
    async def test(http: client.InferenceServerClient) -> None:
        inputs = []
        for datatype, array in ARRAYS.items():
            inputs.append(client.InferInput(f"IN_{datatype}", [3], datatype))
            inputs[-1].set_data_from_numpy(array)
        result = await http.infer("types", inputs)
        for datatype in ARRAYS:
            assert_same(result.as_numpy(f"OUT_{datatype}"), datatype)

    run(server, test)


def test_many_at_once(server: Endpoints):
    async def test(http: client.InferenceServerClient) -> None:
        requests = [
            http.infer("add_sub", add_sub_inputs(number % 2 == 0), request_id=str(number)) for number in range(50)
        ]
        for number, result in enumerate(await asyncio.gather(*requests)):
            assert result.get_response()["id"] == str(number)
            np.testing.assert_array_equal(result.as_numpy("OUTPUT1"), LEFT - RIGHT)

    run(server, test)


def test_errors(server: Endpoints):
    async def test(http: client.InferenceServerClient) -> None:
        with pytest.raises(InferenceServerException, match="unknown model: 'unknown' is not found"):
            await http.infer("unknown", add_sub_inputs())
        with pytest.raises(InferenceServerException, match="requested model 'unknown' is not available"):
            await http.get_inference_statistics("unknown")

    run(server, test)
