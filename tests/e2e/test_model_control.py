"""Control modes, loading and unloading, through the published clients against `merrow serve`."""

import json
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from merrow.testing.repository_builder import (
    PYTHON_IDENTITY_SOURCE,
    RepositoryBuilder,
    model_config,
    python_config,
)
from merrow.testing.running_server import RunningServer, ServerStartError

pytestmark = pytest.mark.slow

TENSORS = ([("IN", "FP32", (2,))], [("OUT", "FP32", (2,))])
EXPLICIT = "--model-control-mode=explicit"
POLL = ("--model-control-mode=poll", "--repository-poll-secs=1")

# Says who it is, so that a test can tell whether a process was kept.
WHOAMI = """\
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", np.full((1, 2), os.getpid(), np.float32))])
            for request in requests
        ]
"""

CHAIN = """\
platform: "ensemble"
max_batch_size: 4
input { name: "IN" data_type: TYPE_FP32 dims: 2 }
output { name: "OUT" data_type: TYPE_FP32 dims: 2 }
ensemble_scheduling {
  step { model_name: "%s" model_version: -1
         input_map { key: "IN" value: "IN" } output_map { key: "OUT" value: "between" } }
  step { model_name: "%s" model_version: -1
         input_map { key: "IN" value: "between" } output_map { key: "OUT" value: "OUT" } }
}
"""


@pytest.fixture
def repository(tmp_path) -> RepositoryBuilder:
    return RepositoryBuilder(tmp_path / "models")


def add_identity(repository, name, extra_config=""):
    return repository.add(name, model_config(name, "identity", *TENSORS, 4, extra_config))


def add_python(repository, name, extra_config="", source=WHOAMI):
    return repository.add(name, python_config(name, *TENSORS, 4, extra_config), {"1/model.py": source})


@contextmanager
def http_client(server) -> Iterator[tritonclient.http.InferenceServerClient]:
    client = tritonclient.http.InferenceServerClient(server.http_url, network_timeout=60, connection_timeout=60)
    try:
        yield client
    finally:
        client.close()


@contextmanager
def grpc_client(server) -> Iterator[tritonclient.grpc.InferenceServerClient]:
    client = tritonclient.grpc.InferenceServerClient(server.grpc_url)
    try:
        yield client
    finally:
        client.close()


def ask(client, name, version=""):
    """The first number that a model answers."""
    given = tritonclient.http.InferInput("IN", [1, 2], "FP32")
    given.set_data_from_numpy(np.array([[5, 6]], np.float32))
    return client.infer(name, [given], model_version=version).as_numpy("OUT")[0, 0]


def states(client):
    return [
        (entry["name"], entry.get("version", ""), entry.get("state", ""), entry.get("reason", ""))
        for entry in client.get_model_repository_index()
    ]


def refusal(call, *arguments, **keywords):
    with pytest.raises(InferenceServerException) as caught:
        call(*arguments, **keywords)
    return caught.value.status(), caught.value.message()


def test_what_changes_in_a_repository_is_followed(repository):
    add_identity(repository, "stays")
    add_identity(repository, "goes")
    with RunningServer(repository.path, *POLL) as server, http_client(server) as client:
        assert refusal(client.load_model, "stays") == (
            "503",
            "explicit model load / unload is not allowed if polling is enabled",
        )
        add_python(repository, "comes")
        server.wait_for_log("successfully loaded 'comes' version 1")
        pid = ask(client, "comes")
        # A file of the model: another process.
        (repository.path / "comes" / "1" / "model.py").write_text(WHOAMI + "\n# changed\n")
        server.wait_for_log("successfully loaded 'comes' version 1", line_count=2)
        changed_pid = ask(client, "comes")
        assert changed_pid != pid
        # Only the number of instances: the process stays.
        config = repository.path / "comes" / "config.pbtxt"
        config.write_text(config.read_text() + "instance_group { count: 2 kind: KIND_CPU }\n")
        server.wait_for_log("changed the instances of 'comes' version 1")
        assert client.get_model_config("comes")["instance_group"][0]["count"] == 2
        assert changed_pid in {ask(client, "comes") for _ in range(20)}
        for path in sorted((repository.path / "goes").rglob("*"), reverse=True):
            path.unlink() if path.is_file() else path.rmdir()
        (repository.path / "goes").rmdir()
        server.wait_for_log("successfully unloaded 'goes' version 1")
        assert states(client) == [("comes", "1", "READY", ""), ("stays", "1", "READY", "")]
        assert refusal(client.get_model_metadata, "goes") == (
            "404",
            "Request for unknown model: 'goes' has no available versions",
        )
        assert client.is_server_ready()


def test_a_change_that_cannot_be_loaded_leaves_what_serves_and_is_tried_again(repository):
    add_python(repository, "m")
    with RunningServer(repository.path, *POLL) as server, http_client(server) as client:
        path = repository.path / "m" / "1" / "model.py"
        path.write_text("import nothing_of_this_name\n")
        server.wait_for_log("failed to load 'm' version 1", line_count=2)
        ask(client, "m")
        assert states(client) == [("m", "1", "READY", "")]
        path.write_text(WHOAMI)
        server.wait_for_log("successfully loaded 'm' version 1", line_count=2)


@pytest.mark.parametrize(
    ("flags", "loaded"),
    [
        (("--load-model=a", "--load-model=c"), {"a", "c"}),
        (("--load-model=*",), {"a", "b", "c"}),
    ],
)
def test_explicit_mode_starts_with_what_it_is_told(repository, flags, loaded):
    for name in "abc":
        add_identity(repository, name)
    with RunningServer(repository.path, EXPLICIT, *flags) as server, http_client(server) as client:
        assert {name for name, _, state, _ in states(client) if state == "READY"} == loaded
        assert [name for name, *_ in states(client)] == ["a", "b", "c"]
        assert client.is_server_ready()


def test_a_start_up_model_that_is_not_there_ends_the_start(repository):
    add_identity(repository, "a")
    with pytest.raises(ServerStartError, match="failed to load all models"):
        RunningServer(repository.path, EXPLICIT, "--load-model=missing").__enter__()


def test_start_up_models_that_fail_end_the_start_with_their_own_reasons(repository):
    repository.add("a", 'backend: "nope"')
    repository.add("b", 'backend: "nope"')
    flags = ("--load-model=a", "--load-model=b", "--load-model=missing")

    with pytest.raises(ServerStartError) as raised:
        RunningServer(repository.path, EXPLICIT, *flags).__enter__()

    error = str(raised.value)
    assert "error: creating server: Invalid argument - load failed for model 'a'" in error
    assert "load failed for model 'a': version 1 is at UNAVAILABLE state: " in error
    assert "load failed for model 'b': version 1 is at UNAVAILABLE state: " in error


@pytest.mark.parametrize("protocol", ["http", "grpc"])
def test_configurations_and_files_come_with_a_load(repository, protocol):
    add_identity(repository, "m")
    config = json.dumps(
        {
            "backend": "python",
            "max_batch_size": 2,
            "input": [{"name": "IN", "data_type": "TYPE_FP32", "dims": [2]}],
            "output": [{"name": "OUT", "data_type": "TYPE_FP32", "dims": [2]}],
        }
    )
    files = {"file:3/model.py": WHOAMI.encode()}
    with (
        RunningServer(repository.path, EXPLICIT, "--load-model=m") as server,
        http_client(server) as http,
        grpc_client(server) as grpc,
    ):
        client = http if protocol == "http" else grpc
        assert ask(http, "m") == 5
        client.load_model("m", config=config.replace('"python"', '"identity"'))
        assert http.get_model_config("m")["max_batch_size"] == 2
        # A plain load keeps it while no file is newer.
        client.load_model("m")
        assert http.get_model_config("m")["max_batch_size"] == 2
        client.unload_model("m")
        client.load_model("m")
        assert http.get_model_config("m")["max_batch_size"] == 4
        client.load_model("m", config=config, files=files)
        assert http.get_model_metadata("m")["versions"] == ["3"]
        assert ask(http, "m") > 10
        # What came with a request is in no repository, and so not in the index.
        client.load_model("new", config=config, files=files)
        assert ask(http, "new") > 10
        assert "new" not in {name for name, *_ in states(http)}
        status, message = refusal(client.load_model, "new")
        assert status == ("500" if protocol == "http" else "StatusCode.INTERNAL")
        assert message == "failed to load 'new', failed to poll from model repository"
        assert ask(http, "new") > 10
        for wrong in (
            {"files": files},
            {"config": config, "files": {"file:../../x": b""}},
            {"config": "{"},
            {"config": '{"bogus": 1}'},
        ):
            assert "failed to poll from model repository" in refusal(client.load_model, "m", **wrong)[1]
        server.wait_for_log("Load parameter 'config' must be specified for model file override")
        server.wait_for_log("Invalid file parameter 'file:../../x' with normalized path '/x' must stay within")
        server.wait_for_log("Invalid config override")
        client.unload_model("new")
        server.wait_for_log("successfully unloaded 'new' version 3")
        assert refusal(http.get_model_metadata, "new")[1].endswith("'new' has no available versions")


def test_files_that_came_with_a_load_are_removed_with_the_model(repository, tmp_path):
    add_identity(repository, "m")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    config = json.dumps({"backend": "identity", "max_batch_size": 1})
    flags = (EXPLICIT, "--strict-readiness=false")
    with (
        RunningServer(repository.path, *flags, environment={"TMPDIR": str(temporary)}) as server,
        http_client(server) as client,
    ):
        for _ in range(2):
            client.load_model("new", config=config, files={"file:1/data": b"x"})
            assert len(list(temporary.glob("merrow-model-*"))) <= 2
        refusal(client.load_model, "new", config="{", files={"file:1/data": b"x"})
        client.unload_model("new")
        server.wait_for_log("successfully unloaded 'new' version 1", line_count=2)
    assert list(temporary.glob("merrow-model-*")) == []


def test_an_ensemble_brings_its_models_and_takes_them_along(repository):
    for name in ("a", "b"):
        add_identity(repository, name)
    repository.add("chain", CHAIN % ("a", "b"))
    with RunningServer(repository.path, EXPLICIT) as server, http_client(server) as client:
        client.load_model("chain")
        assert ask(client, "chain") == 5
        assert {state for _, _, state, _ in states(client)} == {"READY"}
        # What is unloaded below takes the ensemble with it, and brings it back.
        client.unload_model("b")
        server.wait_for_log("successfully unloaded 'chain' version 1")
        server.wait_for_log("successfully unloaded 'b' version 1")
        assert ("chain", "1", "UNAVAILABLE", "unloaded") in states(client)
        client.load_model("b")
        assert ask(client, "chain") == 5
        # `b` was asked for by name and stays.
        client.unload_model("chain", unload_dependents=True)
        server.wait_for_log("successfully unloaded 'a' version 1")
        assert {(name, state) for name, _, state, _ in states(client)} == {
            ("a", "UNAVAILABLE"),
            ("b", "READY"),
            ("chain", "UNAVAILABLE"),
        }


def test_why_an_ensemble_cannot_be_loaded_is_said(repository):
    add_identity(repository, "a")
    add_python(repository, "broken", source="import nothing_of_this_name\n")
    repository.add("missing", CHAIN % ("a", "nobody"))
    repository.add("above", CHAIN % ("a", "broken"))
    repository.add("round", CHAIN % ("a", "round"))
    with RunningServer(repository.path, EXPLICIT) as server, http_client(server) as client:
        assert refusal(client.load_model, "missing") == (
            "400",
            "load failed for model 'missing': ensemble missing contains models that are not available or ambiguous: "
            "nobody\n",
        )
        assert refusal(client.load_model, "round")[1] == (
            "load failed for model 'round': circular dependency between ensembles: round -> ... -> round -> round\n"
        )
        message = refusal(client.load_model, "above")[1]
        assert message.startswith(
            "load failed for model 'above': ensemble 'above' depends on 'broken' which has no loaded version. Model "
            "'broken' loading failed with error: version 1 is at UNAVAILABLE state: Internal: ModuleNotFoundError"
        )
        assert message.endswith(";\n")


def test_no_request_fails_while_a_model_is_loaded_again(repository):
    add_python(repository, "m", source=PYTHON_IDENTITY_SOURCE.replace('"INPUT", "OUTPUT"', '"IN", "OUT"'))
    with RunningServer(repository.path, EXPLICIT, "--load-model=m") as server, http_client(server) as control:
        stop = threading.Event()
        failures = []
        answers = []

        def send():
            with http_client(server) as client:
                while not stop.is_set():
                    try:
                        answers.append(ask(client, "m"))
                    except InferenceServerException as error:
                        failures.append(error)

        senders = [threading.Thread(target=send) for _ in range(3)]
        for sender in senders:
            sender.start()
        config = repository.path / "m" / "config.pbtxt"
        for cycle in range(8):
            config.write_text(config.read_text() + f"# {cycle}\n")
            (repository.path / "m" / "1" / "model.py").touch()
            control.load_model("m")
        stop.set()
        for sender in senders:
            sender.join()
        assert failures == []
        assert set(answers) == {5}
        server.wait_for_log("successfully unloaded 'm' version 1", line_count=8)


def test_versions_come_and_go_with_the_policy(repository):
    add_identity(repository, "m")
    directory = repository.path / "m"
    (directory / "2").mkdir()
    config = directory / "config.pbtxt"
    with RunningServer(repository.path, EXPLICIT, "--load-model=m") as server, http_client(server) as client:
        assert client.get_model_metadata("m")["versions"] == ["2"]
        config.write_text(config.read_text() + "version_policy { all {} }\n")
        client.load_model("m")
        assert client.get_model_metadata("m")["versions"] == ["1", "2"]
        assert ask(client, "m", "1") == 5
        config.write_text(config.read_text().replace("all {}", "specific { versions: [1, 7] }"))
        client.load_model("m")
        assert client.get_model_metadata("m")["versions"] == ["1"]
        server.wait_for_log("version 7 is specified for model 'm', but the version directory is not present")
        assert refusal(client.get_model_metadata, "m", "2") == (
            "503",
            "Request for unknown model: 'm' version 2 is not at ready state",
        )


def test_models_of_one_name_live_in_namespaces(repository, tmp_path):
    other = RepositoryBuilder(tmp_path / "other")
    for each in (repository, other):
        add_identity(each, "m")
    add_identity(repository, "n")
    repository.add("chain", CHAIN % ("m", "n"))
    flags = ("--model-namespacing=true", f"--model-repository={other.path}")
    with RunningServer(repository.path, *flags) as server, http_client(server) as client:
        assert refusal(client.get_model_metadata, "m") == (
            "400",
            "There are 2 identifiers of model 'm' in global map, model namespace must be provided to resolve "
            "ambiguity.",
        )
        assert ask(client, "n") == 5
        assert ask(client, "chain") == 5
        steps = client.get_model_config("chain")["ensemble_scheduling"]["step"]
        assert [step["model_namespace"] for step in steps] == [str(repository.path)] * 2
        assert [name for name, *_ in states(client)] == ["chain", "m", "n", "m"]
    with pytest.raises(ServerStartError, match="not unique across all model repositories"):
        RunningServer(repository.path, f"--model-repository={other.path}").__enter__()


def test_the_checksum_agent_refuses_another_file(repository):
    agent = 'model_repository_agents { agents [ { name: "%s" parameters { key: "MD5:1/model.py" value: "%s" } } ] }\n'
    add_python(repository, "good", agent % ("checksum", "d41d8cd98f00b204e9800998ecf8427e"), source="")
    add_python(repository, "bad", agent % ("checksum", "00"))
    add_python(repository, "unknown", agent % ("decrypt", "00"))
    with RunningServer(repository.path, EXPLICIT) as server, http_client(server) as client:
        for name in ("bad", "unknown"):
            assert refusal(client.load_model, name) == (
                "500",
                f"failed to load '{name}', failed to poll from model repository",
            )
        server.wait_for_log("Mismatched MD5 hash for file 1/model.py, expect: 00, got: ")
        server.wait_for_log("unable to find 'libtritonrepoagent_decrypt.so' for repo agent 'decrypt'")
        # Its checksum is right; what is in the file is another matter.
        assert "load failed for model 'good'" in refusal(client.load_model, "good")[1]


def test_another_configuration_is_used_where_there_is_one(repository):
    for name in ("a", "b"):
        add_identity(repository, name)
    (repository.path / "a" / "configs").mkdir()
    (repository.path / "a" / "configs" / "small.pbtxt").write_text(model_config("a", "identity", *TENSORS, 1))
    with (
        RunningServer(repository.path, "--model-config-name=small") as server,
        http_client(server) as client,
    ):
        assert client.get_model_config("a")["max_batch_size"] == 1
        assert client.get_model_config("b")["max_batch_size"] == 4


def test_a_load_that_fails_is_tried_again(repository, tmp_path):
    source = WHOAMI + (
        "    def initialize(self, args):\n"
        f"        with open({str(tmp_path / 'count')!r}, 'a+') as file:\n"
        "            file.write('x')\n"
        "            file.seek(0)\n"
        "            if len(file.read()) < 3:\n"
        "                raise RuntimeError('not yet')\n"
    )
    add_python(repository, "m", source=source)
    with (
        RunningServer(repository.path, "--model-load-retry-count=2") as server,
        http_client(server) as client,
    ):
        server.wait_for_log("loading 'm' version 1 again, ", line_count=2)
        assert ask(client, "m") > 0


def test_warm_up_is_logged_with_its_duration(repository):
    warmup = """
    model_warmup { name: "zeros" batch_size: 2 count: 3
      inputs { key: "IN" value { data_type: TYPE_FP32 dims: 2 zero_data: true } } }
    model_warmup { name: "file" batch_size: 1
      inputs { key: "IN" value { data_type: TYPE_FP32 dims: 2 input_data_file: "data" } } }
    """
    directory = add_identity(repository, "m", warmup)
    (directory / "warmup").mkdir()
    (directory / "warmup" / "data").write_bytes(bytes(8))
    with RunningServer(repository.path) as server, http_client(server) as client:
        assert "warmed up instance 'm_0' with sample 'zeros' in " in server.log
        assert ": 3 x 2 requests" in server.log
        assert "with sample 'file'" in server.log
        (counts,) = client.get_inference_statistics("m")["model_stats"]
        assert (counts["inference_count"], counts["execution_count"]) == (7, 4)


def test_a_model_that_is_being_loaded_shows_in_the_index(repository, tmp_path):
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    source = WHOAMI + f"    def initialize(self, args):\n        open({str(gate)!r}).read()\n"
    add_python(repository, "m", source=source)
    with RunningServer(repository.path, EXPLICIT) as server, http_client(server) as client:
        with http_client(server) as other:
            loading = threading.Thread(target=other.load_model, args=("m",))
            loading.start()
            # Opens when the model's process has opened the other end.
            with open(gate, "w"):
                assert states(client) == [("m", "1", "LOADING", "")]
                assert not client.is_server_ready()
            loading.join()
        assert states(client) == [("m", "1", "READY", "")]


def test_vertex_ai_says_where_the_models_are(repository):
    add_identity(repository, "m")
    environment = {"AIP_STORAGE_URI": str(repository.path)}
    with RunningServer(None, environment=environment) as server, http_client(server) as client:
        assert ask(client, "m") == 5


def test_loads_unloads_and_requests_do_not_disturb_one_another(repository):
    """Several clients at once; every answer is right or one of the texts that such a race can have."""
    for name in ("a", "b", "c"):
        add_identity(repository, name)
    repository.add("chain", CHAIN % ("a", "b"))
    add_identity(repository, "steady")
    allowed = ("has no available versions", "is not found", "Server is stopping, scheduler for model has stopped")
    with RunningServer(repository.path, EXPLICIT, "--load-model=steady") as server, http_client(server) as control:
        stop = threading.Event()
        wrong = []

        def send(name):
            with http_client(server) as client:
                while not stop.is_set():
                    try:
                        if ask(client, name) != 5:
                            wrong.append(f"{name}: another answer")
                    except InferenceServerException as error:
                        if name == "steady" or not any(text in error.message() for text in allowed):
                            wrong.append(f"{name}: {error.message()}")

        def change(name):
            with http_client(server) as client:
                for cycle in range(25):
                    try:
                        client.load_model(name)
                        client.unload_model(name, unload_dependents=cycle % 2 == 0)
                    except InferenceServerException as error:
                        wrong.append(f"load or unload of {name}: {error.message()}")

        senders = [threading.Thread(target=send, args=(name,)) for name in ("steady", "a", "chain")]
        changers = [threading.Thread(target=change, args=(name,)) for name in ("a", "b", "c", "chain", "chain")]
        for thread in (*senders, *changers):
            thread.start()
        for thread in changers:
            thread.join()
        stop.set()
        for thread in senders:
            thread.join()
        assert wrong == []
        for name in ("a", "b", "c", "chain"):
            control.load_model(name)
            assert ask(control, name) == 5


def test_what_a_load_asks_beyond_its_parameters_is_refused(repository):
    add_identity(repository, "m")
    with RunningServer(repository.path, EXPLICIT) as server, http_client(server) as client:
        for name, message in (
            ("..", "invalid model name '..', model name must not contain path traversal characters"),
            ("nowhere", "failed to load 'nowhere', failed to poll from model repository"),
        ):
            assert refusal(client.load_model, name)[1] == message
        client.unload_model("never heard of")
