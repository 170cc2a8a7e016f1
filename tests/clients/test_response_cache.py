"""The response cache through the published client, in a real server process."""

import json
import re
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as httpclient

from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer, ServerStartError
from tests.redis_server import RedisServer, redis_command

pytestmark = pytest.mark.slow

# Answers differ from execution to execution, so that an answer from the cache can be told.
COUNTING_SOURCE = """\
import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    count = 0

    def execute(self, requests):
        responses = []
        for _ in requests:
            self.count += 1
            responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.array([self.count], np.int32))]))
        return responses
"""

CACHED = "response_cache { enable: true }"


def build(path: Path) -> RepositoryBuilder:
    repository = RepositoryBuilder(path)
    tensors = [("IN", "INT32", (1,))], [("OUT", "INT32", (1,))]
    for name, extra in (("cached", CACHED), ("plain", "")):
        repository.add(name, python_config(name, *tensors, 0, extra), {"1/model.py": COUNTING_SOURCE})
    repository.add(
        "ensemble",
        f"""
        platform: "ensemble"
        input {{ name: "X" data_type: TYPE_INT32 dims: [ 1 ] }}
        output {{ name: "Z" data_type: TYPE_INT32 dims: [ 1 ] }}
        ensemble_scheduling {{
          step {{
            model_name: "plain" model_version: -1
            input_map {{ key: "IN" value: "X" }} output_map {{ key: "OUT" value: "Z" }}
          }}
        }}
        {CACHED}
        """,
    )
    return repository


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningServer]:
    path = tmp_path_factory.mktemp("cache")
    build(path)
    arguments = ("--cache-config=local,size=1048576", "--model-control-mode=explicit", "--load-model=*")
    with RunningServer(path, *arguments) as running:
        yield running


def ask(server: RunningServer, model: str, value: int, **options: object) -> int:
    """The count of the execution that the answer comes from."""
    with httpclient.InferenceServerClient(server.http_url) as connection:
        tensor = httpclient.InferInput("X" if model == "ensemble" else "IN", [1], "INT32")
        tensor.set_data_from_numpy(np.array([value], dtype=np.int32))
        result = connection.infer(model, [tensor], **options)
        return int(result.as_numpy("Z" if model == "ensemble" else "OUT")[0])


def statistics(server: RunningServer, model: str) -> dict[str, dict[str, int]]:
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/{model}/stats") as reply:
        inference = json.load(reply)["model_stats"][0]["inference_stats"]
    assert isinstance(inference, dict)
    return inference


def metric(server: RunningServer, name: str) -> float:
    with urllib.request.urlopen(f"http://{server.metrics_url}/metrics") as reply:
        match = re.search(rf"^{re.escape(name)} (\S+)$", reply.read().decode(), re.MULTILINE)
    assert match is not None, name
    return float(match[1])


def test_the_same_request_is_executed_once(server: RunningServer):
    first = ask(server, "cached", 1)

    assert ask(server, "cached", 1, request_id="another") == first
    assert ask(server, "cached", 2) == first + 1
    assert ask(server, "cached", 1, parameters={"k": "v"}) == first + 2
    counted = statistics(server, "cached")
    assert (counted["cache_hit"]["count"], counted["cache_miss"]["count"]) == (1, 3)
    assert (counted["success"]["count"], counted["compute_infer"]["count"]) == (4, 3)
    assert metric(server, 'nv_cache_num_hits_per_model{model="cached",version="1"}') == 1
    assert metric(server, 'nv_cache_num_misses_per_model{model="cached",version="1"}') == 3
    assert metric(server, "nv_cache_num_hits") >= 1
    assert metric(server, "nv_cache_num_entries") >= 3
    assert 0 < metric(server, "nv_cache_util") < 1


def test_requests_of_a_sequence_are_all_executed(server: RunningServer):
    first = ask(server, "cached", 100, sequence_id=5, sequence_start=True)

    assert ask(server, "cached", 100, sequence_id=5, sequence_start=True) == first + 1


def test_a_model_that_does_not_ask_for_it_is_not_cached(server: RunningServer):
    first = ask(server, "plain", 1)

    assert ask(server, "plain", 1) == first + 1
    assert statistics(server, "plain")["cache_miss"]["count"] == 0


def test_an_ensemble_is_cached_as_a_whole_until_a_model_below_it_is_loaded_anew(server: RunningServer):
    first = ask(server, "ensemble", 7)
    assert ask(server, "ensemble", 7) == first

    with httpclient.InferenceServerClient(server.http_url) as connection:
        connection.unload_model("plain")
        connection.load_model("plain")
    assert ask(server, "ensemble", 7) == 1, "the model counts from the beginning"


@pytest.mark.parametrize(
    ("extra", "text"),
    [
        (
            "model_transaction_policy { decoupled: true }",
            "Response Cache does not currently support model m with 'decoupled' transaction policy. Please disable the "
            "response cache.",
        ),
        (
            "sequence_batching { }",
            "Response Cache does not currently support model m with sequence batching scheduler. Please disable the "
            "response cache.",
        ),
    ],
)
def test_what_cannot_be_cached_is_refused(tmp_path: Path, extra: str, text: str):
    config = python_config("m", [("IN", "INT32", (1,))], [("OUT", "INT32", (1,))], 0, f"{CACHED}\n{extra}")
    RepositoryBuilder(tmp_path).add("m", config, {"1/model.py": COUNTING_SOURCE})
    with pytest.raises(ServerStartError) as raised:
        RunningServer(tmp_path, "--cache-config=local,size=1048576").__enter__()
    assert text in str(raised.value)


@pytest.mark.skipif(redis_command() is None, reason="there is no redis-server on this machine")
def test_two_servers_share_a_redis_server(tmp_path: Path):
    build(tmp_path / "models")
    with RedisServer(tmp_path, password="secret") as redis:
        arguments = ("--cache-config=redis,host=127.0.0.1", f"--cache-config=redis,port={redis.port}")
        environment = {"TRITONCACHE_REDIS_PASSWORD": "secret"}
        with RunningServer(tmp_path / "models", *arguments, environment=environment) as one:
            ask(one, "cached", 5)
            first = ask(one, "cached", 6)
            assert ask(one, "cached", 6) == first
        with RunningServer(tmp_path / "models", *arguments, environment=environment) as two:
            assert ask(two, "cached", 6) == first == 2, "a fresh model would have counted one"
            counted = statistics(two, "cached")
            assert (counted["cache_hit"]["count"], counted["cache_miss"]["count"]) == (1, 0)
            assert metric(two, 'nv_cache_num_hits_per_model{model="cached",version="1"}') == 1
            redis.stop()
            assert ask(two, "cached", 6) == 1
            assert "the Redis response cache fails, requests are executed without it" in two.log


def test_a_redis_server_that_is_not_there_stops_the_start(tmp_path: Path):
    build(tmp_path)
    with pytest.raises(ServerStartError, match="creating server: Unavailable - Failed to init Redis connection"):
        RunningServer(tmp_path, "--cache-config=redis,host=127.0.0.1", "--cache-config=redis,port=1").__enter__()
