"""Requests and responses for the tests of the gRPC front door."""

import numpy as np

from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.core.tensor import Tensor
from merrow.wire._generated.grpc_service_pb2 import ModelInferRequest, ModelInferResponse, ModelStreamInferResponse

OUTPUT = Tensor.from_numpy("O", np.array([3, 4], np.int32))


def config_of(name):
    return ModelConfig(
        name=name,
        backend="python",
        input=(ModelInput(name="I", data_type="TYPE_INT32", dims=(-1,)),),
        output=(ModelOutput(name="O", data_type="TYPE_INT32", dims=(-1,)),),
    )


def encode_request(model_name="m", request_id="a", version="", empty_final=False, input_count=1):
    message = ModelInferRequest(model_name=model_name, id=request_id, model_version=version)
    if empty_final:
        message.parameters["triton_enable_empty_final_response"].bool_param = True
    for _ in range(input_count):
        tensor = message.inputs.add(name="I", datatype="INT32")
        tensor.shape.extend([2])
        message.raw_input_contents.append(np.array([1, 2], np.int32).tobytes())
    return message.SerializeToString()


def describe_response(data):
    """Model, version, id, names of the outputs and the final flag of a response."""
    response = data if isinstance(data, ModelInferResponse) else ModelInferResponse.FromString(data)
    final = response.parameters.get("triton_final_response")
    return (
        response.model_name,
        response.model_version,
        response.id,
        [output.name for output in response.outputs],
        None if final is None else final.bool_param,
    )


def describe_stream_response(data):
    """The error text, and what `describe_response` says."""
    message = ModelStreamInferResponse.FromString(data)
    return (message.error_message, *describe_response(message.infer_response))
