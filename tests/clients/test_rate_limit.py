"""The rate limiter through the published client, in a real server process."""

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as httpclient

from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer, ServerStartError

pytestmark = pytest.mark.slow

# Two executions at once would find the other's file.
EXCLUSIVE_SOURCE = """\
import os
import time

import triton_python_backend_utils as pb_utils

LOCK = {lock!r}


class TritonPythonModel:
    def execute(self, requests):
        try:
            os.close(os.open(LOCK, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            raise pb_utils.TritonModelException("not alone")
        time.sleep(0.002)
        os.unlink(LOCK)
        inputs = [pb_utils.get_input_tensor_by_name(request, "IN").as_numpy() for request in requests]
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", each)]) for each in inputs]
"""


def build(path: Path, count: int = 2) -> None:
    repository = RepositoryBuilder(path / "models")
    source = EXCLUSIVE_SOURCE.format(lock=str(path / "lock"))
    for name, priority in (("first", 1), ("second", 2)):
        group = (
            f"instance_group {{ count: {count} kind: KIND_CPU rate_limiter {{ priority: {priority} "
            'resources { name: "door" count: 4 global: true } } }'
        )
        config = python_config(name, [("IN", "INT32", (1,))], [("OUT", "INT32", (1,))], 0, group)
        repository.add(name, config, {"1/model.py": source})


def ask_all(server: RunningServer, count: int) -> list[str]:
    """Requests to both models at once; the errors."""
    errors: list[str] = []
    start = threading.Barrier(8)

    def work(number: int) -> None:
        with httpclient.InferenceServerClient(server.http_url) as connection:
            start.wait()
            for index in range(count):
                tensor = httpclient.InferInput("IN", [1], "INT32")
                tensor.set_data_from_numpy(np.array([index], dtype=np.int32))
                try:
                    result = connection.infer(("first", "second")[number % 2], [tensor])
                    assert result.as_numpy("OUT").tolist() == [index]
                except Exception as error:
                    errors.append(str(error))

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    return errors


def test_only_one_instance_of_all_models_holds_the_resource(tmp_path: Path):
    build(tmp_path)
    with RunningServer(tmp_path / "models", "--rate-limit=execution_count") as server:
        assert ask_all(server, 12) == []


def test_with_more_of_the_resource_more_execute_at_once(tmp_path: Path):
    build(tmp_path)
    arguments = ("--rate-limit=execution_count", "--rate-limit-resource=door:16")
    with RunningServer(tmp_path / "models", *arguments) as server:
        assert any("not alone" in error for error in ask_all(server, 12))


def test_without_the_limiter_the_settings_mean_nothing(tmp_path: Path):
    build(tmp_path)
    with RunningServer(tmp_path / "models", "--rate-limit-resource=door:1") as server:
        assert any("not alone" in error for error in ask_all(server, 12))
        assert "--rate-limit-resource has no effect without --rate-limit=execution_count" in server.log


def test_an_amount_that_is_too_small_fails_the_load(tmp_path: Path):
    build(tmp_path, count=1)
    with pytest.raises(ServerStartError) as raised:
        RunningServer(tmp_path / "models", "--rate-limit=execution_count", "--rate-limit-resource=door:2").__enter__()
    assert (
        'Resource count for "door" is limited to 2 which will prevent scheduling of one or more model instances, the '
        "minimum required count is 4" in str(raised.value)
    )
