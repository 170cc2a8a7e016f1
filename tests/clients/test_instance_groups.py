"""Instance groups of every kind in a real server process."""

import json
import os
import urllib.request
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http as httpclient

from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer, ServerStartError

pytestmark = pytest.mark.slow

# Answers with what the instance was told of itself, and the cores that it may use.
ABOUT_SOURCE = """\
import os

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        print("instance", args["model_instance_name"], "begins", flush=True)
        cores = ",".join(map(str, sorted(os.sched_getaffinity(0))))
        self.about = [args["model_instance_name"], args["model_instance_kind"], args["model_instance_device_id"], cores]

    def execute(self, requests):
        about = np.array([text.encode() for text in self.about], dtype=np.object_)
        return [pb_utils.InferenceResponse([pb_utils.Tensor("OUT", about)]) for _ in requests]
"""


def build(path: Path, *groups: str) -> None:
    config = python_config("m", [("IN", "INT32", (1,))], [("OUT", "BYTES", (4,))], 0, "\n".join(groups))
    RepositoryBuilder(path).add("m", config, {"1/model.py": ABOUT_SOURCE})


def about(server: RunningServer) -> list[str]:
    with httpclient.InferenceServerClient(server.http_url) as connection:
        tensor = httpclient.InferInput("IN", [1], "INT32")
        tensor.set_data_from_numpy(np.array([1], dtype=np.int32))
        return [text.decode() for text in connection.infer("m", [tensor]).as_numpy("OUT").tolist()]


def groups_of(server: RunningServer) -> list[dict[str, object]]:
    with urllib.request.urlopen(f"http://{server.http_url}/v2/models/m/config") as reply:
        groups: list[dict[str, object]] = json.load(reply)["instance_group"]
        return groups


def test_a_model_may_place_itself(tmp_path: Path):
    build(tmp_path, "instance_group { kind: KIND_MODEL count: 2 }")
    with RunningServer(tmp_path) as server:
        assert about(server)[:3] == ["m_0_0", "MODEL", "0"]


def test_a_passive_instance_is_there_and_gets_no_work(tmp_path: Path):
    build(
        tmp_path,
        'instance_group { name: "spare" kind: KIND_CPU count: 1 passive: true }',
        'instance_group { name: "busy" kind: KIND_CPU count: 1 }',
    )
    with RunningServer(tmp_path, "--log-verbose=1") as server:
        assert {about(server)[0] for _ in range(8)} == {"busy_0"}
        server.wait_for_log("instance spare_0 begins")


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this platform binds no threads")
@pytest.mark.parametrize("place", ["process", "thread"])
def test_a_host_policy_binds_instances_to_cores(tmp_path: Path, place: str):
    core = max(os.sched_getaffinity(0))
    build(tmp_path, 'instance_group { kind: KIND_CPU host_policy: "mine" }')
    arguments = (f"--host-policy=mine,cpu-cores={core}", f"--execution-place={place}")
    with RunningServer(tmp_path, *arguments) as server:
        assert about(server)[3] == str(core)


def test_without_a_name_the_policy_is_that_of_the_kind(tmp_path: Path):
    core = max(os.sched_getaffinity(0))
    build(tmp_path, "instance_group { kind: KIND_CPU }")
    with RunningServer(tmp_path, f"--host-policy=cpu,cpu-cores={core}") as server:
        assert about(server)[3] == str(core)


def test_what_is_accepted_without_effect_is_named_in_the_log(tmp_path: Path):
    build(
        tmp_path,
        'instance_group { kind: KIND_CPU host_policy: "nobody" secondary_devices { kind: KIND_NVDLA device_id: 0 } }',
    )
    with RunningServer(tmp_path) as server:
        assert "has the host policy 'nobody', which no --host-policy describes" in server.log
        assert "makes no use of its secondary_devices: no backend can" in server.log


@pytest.mark.parametrize(
    ("group", "text"),
    [
        (
            "kind: KIND_CPU gpus: [ 0 ]",
            "instance group m_0 of model m has kind KIND_CPU but specifies one or more GPUs",
        ),
        (
            "kind: KIND_MODEL gpus: 0",
            "instance group m_0 of model m has kind KIND_MODEL but specifies one or more GPUs",
        ),
        ("kind: KIND_GPU gpus: [ 77 ]", "instance group m_0 of model m "),
        ('profile: "p"', "specifies profile field which is only supported for TensorRT models"),
    ],
)
def test_what_cannot_be_is_refused(tmp_path: Path, group: str, text: str):
    build(tmp_path, f"instance_group {{ {group} }}")
    with pytest.raises(ServerStartError) as refusal:
        RunningServer(tmp_path).__enter__()
    assert text in str(refusal.value)
