"""Streams with a decoupled model: any number of responses, the end with and without data, errors among them.

The requests of one stream go to this model alone: how its responses and those of others interleave is nobody's to
promise.
"""

import random
from collections.abc import Callable
from typing import Any

from google.protobuf import text_format
from tritonclient.grpc import service_pb2 as pb

from tests.oracle.cases import Case, Group, GrpcCase, HttpCase, listed_group, random_group
from tests.oracle.grpc_cases import SERVICE, infer
from tests.oracle.http_drafts import infer_target

MODEL = "decoupled"
STEPS = "rrrpe"
ENDS = ("", "c", "f")


def plan_request(plan: str, request_id: str = "", empty_final: bool | None = None) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=MODEL, id=request_id)
    request.inputs.add(name="PLAN", datatype="BYTES", shape=[1]).contents.bytes_contents.append(plan.encode())
    if empty_final is not None:
        request.parameters["triton_enable_empty_final_response"].bool_param = empty_final
    return request


def stream_of(name: str, requests: list[pb.ModelInferRequest], **options: Any) -> GrpcCase:
    return GrpcCase(
        name,
        SERVICE + "ModelStreamInfer",
        tuple(request.SerializeToString(deterministic=True) for request in requests),
        "\n".join(text_format.MessageToString(request, as_one_line=True) for request in requests),
        is_stream=True,
        **options,
    )


def stream(rng: random.Random, name: str, index: int) -> GrpcCase:
    requests = []
    count = rng.choice((1, 1, 1, 2, 3))
    for number in range(count):
        plan = "".join(rng.choice(STEPS) for _ in range(rng.choice((0, 1, 2, 3, 6)))) + rng.choice(ENDS)
        request = plan_request(
            plan,
            rng.choice(("", f"request {number}", "ü")) if count == 1 else f"ü {number}",
            rng.choice((None, None, True, False)),
        )
        if rng.random() < 0.3:
            for output in rng.sample(("INDEX", "STEP"), rng.randint(1, 2)):
                request.outputs.add(name=output)
        if rng.random() < 0.2:
            request.model_version = "1"
        requests.append(request)
    return stream_of(name, requests, interleaves=True)


def refusals() -> list[Callable[[str], Case]]:
    """What never reaches the model."""
    unknown_output = plan_request("r")
    unknown_output.outputs.add(name="NO")
    no_input = pb.ModelInferRequest(model_name=MODEL, id="x")
    wrong_type = pb.ModelInferRequest(model_name=MODEL, id="x")
    wrong_type.inputs.add(name="PLAN", datatype="INT32", shape=[1]).contents.int_contents.append(1)
    wrong_parameter = plan_request("r")
    wrong_parameter.parameters["triton_enable_empty_final_response"].int64_param = 1
    wrong_version = plan_request("r", "v")
    wrong_version.model_version = "7"
    body = b'{"inputs":[{"name":"PLAN","datatype":"BYTES","shape":[1],"data":["r"]}]}'
    cases: list[Callable[[str], Case]] = [
        lambda name, request=request: stream_of(name, [request])
        for request in (unknown_output, no_input, wrong_type, wrong_parameter, wrong_version)
    ]
    cases += [
        lambda name: infer(name, plan_request("r")),
        lambda name: HttpCase(name, "POST", infer_target(MODEL), (), body),
        lambda name: HttpCase(name, "POST", infer_target(MODEL), (("Content-Encoding", "gzip"),), body),
        lambda name: HttpCase(name, "GET", f"/v2/models/{MODEL}/config"),
        lambda name: HttpCase(name, "GET", f"/v2/models/{MODEL}"),
    ]
    return cases


GROUPS: dict[str, Group] = {
    "decoupled-stream": random_group("decoupled-stream", 80, stream),
    "decoupled-refusals": listed_group("decoupled-refusals", refusals),
}
