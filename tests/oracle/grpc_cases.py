"""gRPC calls: inference with raw and typed contents, streams, everything else, and what is wrong with them."""

import random
from collections.abc import Callable
from typing import Any

from google.protobuf import text_format
from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from tests.oracle import repository
from tests.oracle.cases import Group, GrpcCase, listed_group, random_group
from tests.oracle.http_drafts import random_inputs
from tests.oracle.http_infer_cases import ECHO_MODELS
from tests.oracle.repository import ModelSpec
from tests.oracle.tensor_values import (
    BINARY_ONLY,
    CONTENTS_FIELDS,
    TensorValue,
    encode,
    random_tensor,
    tensor_of_shape,
)

SERVICE = "/inference.GRPCInferenceService/"
HEALTH_CHECK = "/grpc.health.v1.Health/Check"

PLAIN_MODELS = (repository.IDENT, repository.ADD_SUB, repository.TEXT_BATCHED, repository.VERSIONS, repository.RESHAPED)
VERSION_TEXTS = ("", "1", "3", "2", "0", "-1", "-5", "abc", "1x", " 1", "+1", "1.5", "99999999999999999999", "x1", " ")


def unary(name: str, method: str, message: Message, **options: Any) -> GrpcCase:
    text = text_format.MessageToString(message, as_one_line=True)
    return GrpcCase(name, SERVICE + method, (message.SerializeToString(deterministic=True),), text, **options)


def infer(name: str, request: pb.ModelInferRequest, **options: Any) -> GrpcCase:
    return unary(name, "ModelInfer", request, **options)


# Valid inference.


def input_message(tensor: TensorValue) -> pb.ModelInferRequest.InferInputTensor:
    return pb.ModelInferRequest.InferInputTensor(name=tensor.name, datatype=tensor.datatype, shape=tensor.shape)


def fill_contents(message: pb.ModelInferRequest.InferInputTensor, tensor: TensorValue) -> None:
    values: Any = tensor.values
    if tensor.datatype == "BYTES":
        values = [str(value).encode() for value in values]
    getattr(message.contents, CONTENTS_FIELDS[tensor.datatype]).extend(values)


def raw_request(model: ModelSpec, tensors: list[TensorValue]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model.name)
    for tensor in tensors:
        request.inputs.append(input_message(tensor))
        request.raw_input_contents.append(tensor.encoded())
    return request


def contents_request(model: ModelSpec, tensors: list[TensorValue]) -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name=model.name)
    for tensor in tensors:
        message = input_message(tensor)
        if tensor.values:
            fill_contents(message, tensor)
        else:
            message.contents.SetInParent()
        request.inputs.append(message)
    return request


def add_extras(rng: random.Random, model: ModelSpec, request: pb.ModelInferRequest) -> None:
    """An id, requested outputs, parameters without effect."""
    if rng.random() < 0.4:
        request.id = rng.choice(("1", "an id", "ü漢", "x" * 70))
    if rng.random() < 0.4:
        for spec in rng.sample(model.outputs, rng.randint(1, len(model.outputs))):
            output = request.outputs.add(name=spec.name)
            if rng.random() < 0.3:
                output.parameters["binary_data"].bool_param = False
    if rng.random() < 0.2:
        request.parameters["binary_data_output"].bool_param = rng.random() < 0.5
    if model is repository.VERSIONS:
        request.model_version = rng.choice(("", "1", "3"))


def valid_raw(rng: random.Random, name: str, index: int) -> GrpcCase:
    model = ECHO_MODELS[index % len(ECHO_MODELS)]
    request = raw_request(model, random_inputs(rng, model))
    add_extras(rng, model, request)
    return infer(name, request)


def valid_contents(rng: random.Random, name: str, index: int) -> GrpcCase:
    model = ECHO_MODELS[index % len(ECHO_MODELS)]
    tensors = [tensor for tensor in random_inputs(rng, model) if tensor.datatype not in BINARY_ONLY]
    request = contents_request(model, tensors)
    add_extras(rng, model, request)
    return infer(name, request)


def zero_elements(rng: random.Random, name: str, index: int) -> GrpcCase:
    model, shape = rng.choice(
        (
            (repository.TYPES, (0,)),
            (repository.MATRIX, (0, 3)),
            (repository.MATRIX, (2, 0, 4)),
            (repository.RAGGED, (2, 0)),
            (repository.IDENT, (0, 16)),
            (repository.TEXT, (0,)),
        )
    )
    specs = [spec for spec in model.inputs if len(spec.dims) + bool(model.max_batch_size) == len(shape)]
    spec = rng.choice(specs)
    tensor = tensor_of_shape(rng, spec.name, spec.datatype, shape)
    make = raw_request if spec.datatype in BINARY_ONLY or rng.random() < 0.5 else contents_request
    return infer(name, make(model, [tensor]))


# Broken inference.


def wrong_data(rng: random.Random, name: str, index: int) -> GrpcCase:
    """The data is missing, doubled, of another type, of another size."""
    model = rng.choice((*PLAIN_MODELS, repository.TYPES_BATCHED))
    tensors = [tensor for tensor in random_inputs(rng, model) if tensor.datatype not in BINARY_ONLY]
    kind = rng.randrange(10)
    request = contents_request(model, tensors) if kind < 5 else raw_request(model, tensors)
    if not request.inputs:
        return infer(name, request)
    victim = rng.choice(request.inputs)
    field = CONTENTS_FIELDS[victim.datatype]
    if kind == 0:
        request.raw_input_contents.append(rng.choice((b"", b"1234", tensors[0].encoded())))
    elif kind == 1:
        victim.ClearField("contents")
        victim.contents.SetInParent()
    elif kind == 2:
        other = rng.choice([one for one in sorted(set(CONTENTS_FIELDS.values())) if one != field])
        getattr(victim.contents, other).append(b"x" if other == "bytes_contents" else 1)
    elif kind == 3:
        values = list(getattr(victim.contents, field))
        del getattr(victim.contents, field)[:]
        getattr(victim.contents, field).extend(values[:-1] if rng.random() < 0.5 else values + values[-1:])
    elif kind == 4:
        other = rng.choice([one for one in sorted(set(CONTENTS_FIELDS.values())) if one != field])
        victim.ClearField("contents")
        getattr(victim.contents, other).append(b"x" if other == "bytes_contents" else 1)
    elif kind == 5:
        del request.raw_input_contents[-1]
    elif kind == 6:
        request.raw_input_contents.append(rng.choice((b"", b"extra")))
    elif kind == 7:
        place = rng.randrange(len(request.raw_input_contents))
        data = request.raw_input_contents[place]
        request.raw_input_contents[place] = rng.choice((data[:-1], data + b"\0", b"", data * 2))
    elif kind == 8:
        del request.raw_input_contents[:]
    else:
        fill_contents(victim, tensors[0]) if victim.name == tensors[0].name else victim.contents.SetInParent()
    return infer(name, request)


def wrong_names(rng: random.Random, name: str, index: int) -> GrpcCase:
    model = rng.choice((*PLAIN_MODELS, repository.TYPES_BATCHED, repository.AUTO))
    tensors = [tensor for tensor in random_inputs(rng, model) if tensor.datatype not in BINARY_ONLY]
    request = rng.choice((raw_request, contents_request))(model, tensors)
    if rng.random() < 0.5:
        request.id = "an id"
    kind = rng.randrange(10)
    if kind == 0 and request.inputs:
        request.inputs[0].name = rng.choice(("NO", "", "in0", "ü"))
    elif kind == 1 and request.inputs:
        request.inputs.append(request.inputs[0])
        if request.raw_input_contents:
            request.raw_input_contents.append(request.raw_input_contents[0])
    elif kind == 2 and request.inputs:
        extra = request.inputs.add()
        extra.CopyFrom(request.inputs[0])
        extra.name = "EXTRA"
        if request.raw_input_contents:
            request.raw_input_contents.append(request.raw_input_contents[0])
    elif kind == 3 and request.inputs:
        del request.inputs[0]
        if request.raw_input_contents:
            del request.raw_input_contents[0]
    elif kind == 4:
        request.outputs.add(name=rng.choice(("NO", "", "out0")))
    elif kind == 5:
        request.outputs.add(name=model.outputs[0].name)
        request.outputs.add(name="NO")
    elif kind == 6:
        request = pb.ModelInferRequest(model_name="request_view")
        request.outputs.add(name="VIEW")
        request.outputs.add(name="VIEW")
    elif kind == 7 and request.inputs:
        request.inputs[0].datatype = rng.choice(
            ("", "fp32", "STRING", "FP16", "BOOL", "INT32", "FP32", "BYTES", "BF16")
        )
    elif kind == 8:
        request.model_name = rng.choice(("", "unknown", "Ident", "ü", "broken_config", "broken_initialize"))
    else:
        del request.inputs[:]
        del request.raw_input_contents[:]
    return infer(name, request)


def wrong_shapes(rng: random.Random, name: str, index: int) -> GrpcCase:
    model = rng.choice((*PLAIN_MODELS, repository.MATRIX, repository.RAGGED, repository.SCALAR, repository.AUTO))
    tensors = random_inputs(rng, model)
    place = rng.randrange(len(tensors))
    victim = tensors[place]
    shape = list(victim.shape)
    kind = rng.randrange(7)
    if kind == 0:
        shape = []
    elif kind == 1:
        shape.append(1)
    elif kind == 2:
        shape.insert(0, 1)
    elif kind == 3:
        shape.pop(rng.randrange(len(shape)))
    elif kind == 4:
        # The real server dies of a batch of nothing where a reshape makes scalars of the rows, and what it says of one
        # among several inputs depends on the order of a hash table.
        takes_zero = model is not repository.SCALAR and not (model.max_batch_size and len(model.inputs) > 1)
        shape[rng.randrange(len(shape))] = rng.choice((0, 1, 2, 7, 17) if takes_zero else (1, 2, 7, 17))
    elif kind == 5 and model.max_batch_size:
        shape[0] = model.max_batch_size + rng.randint(1, 3)
    else:
        rng.shuffle(shape)
    if rng.random() < 0.7:
        tensors[place] = tensor_of_shape(rng, victim.name, victim.datatype, tuple(shape))
        return infer(name, raw_request(model, tensors))
    request = raw_request(model, tensors)
    del request.inputs[place].shape[:]
    request.inputs[place].shape.extend(shape)
    return infer(name, request)


def bytes_elements(rng: random.Random, name: str, index: int) -> GrpcCase:
    data = rng.choice(
        (
            b"",
            b"\1",
            b"\1\0\0\0",
            b"\1\0\0\0ab",
            b"\3\0\0\0ab",
            b"\0\0\0\0",
            b"\0\0\0\0" * 2,
            encode("BYTES", ("a", "b")),
            encode("BYTES", ("a",)) + b"\1",
            b"\xff\xff\xff\xffab",
            b"\2\0\0\0\xff\xfe",
        )
    )
    model, input_name, shape = rng.choice(
        (("text", "IN0", [1]), ("types_batched", "IN_BYTES", [1, 2]), ("types", "IN_BYTES", [0]))
    )
    request = pb.ModelInferRequest(model_name=model, raw_input_contents=[data])
    request.inputs.add(name=input_name, datatype="BYTES", shape=shape)
    return infer(name, request)


def narrow_integers(rng: random.Random, name: str, index: int) -> GrpcCase:
    """Values beyond the ends of the small integer types, in the wider contents fields."""
    datatype = rng.choice(("UINT8", "UINT16", "INT8", "INT16"))
    values = rng.sample((0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 65536, 2**31 - 1), 3)
    if datatype.startswith("INT"):
        values.append(rng.choice((-1, -128, -129, -32769, -(2**31))))
    request = pb.ModelInferRequest(model_name="types")
    message = request.inputs.add(name=f"IN_{datatype}", datatype=datatype, shape=[len(values)])
    getattr(message.contents, CONTENTS_FIELDS[datatype]).extend(values)
    return infer(name, request)


def infer_versions() -> list[Any]:
    def make(model: str, version: str) -> Callable[[str], GrpcCase]:
        request = pb.ModelInferRequest(model_name=model, model_version=version)
        request.inputs.add(name="IN0", datatype="INT16", shape=[2]).contents.int_contents.extend([1, 2])
        return lambda name: infer(name, request)

    return [make(model, version) for model in ("versions", "unknown") for version in VERSION_TEXTS]


# Parameters, errors of models, classification.


def set_parameter(rng: random.Random, parameters: Any, key: str) -> None:
    kind = rng.choice(("bool_param", "int64_param", "string_param", "double_param", "uint64_param", None))
    if kind is None:
        parameters[key].SetInParent()
        return
    value = {
        "bool_param": rng.random() < 0.5,
        "int64_param": rng.choice((0, 1, 5, -1, -7, 2**63 - 1, -(2**63))),
        "string_param": rng.choice(("", "abc", "ü", "x" * 128, "x" * 129)),
        "double_param": rng.choice((0.0, 1.5, -2.25, 1e100)),
        "uint64_param": rng.choice((0, 1, 2**64 - 1)),
    }[kind]
    setattr(parameters[key], kind, value)


def parameters(rng: random.Random, name: str, index: int) -> GrpcCase:
    request = pb.ModelInferRequest(model_name="request_view")
    keys = rng.choice(
        (
            ("own",),
            ("own",),
            ("sequence_id",),
            ("sequence_start",),
            ("sequence_end",),
            ("priority",),
            ("timeout",),
            ("binary_data_output",),
            ("headers",),
            ("triton_x",),
            ("triton_enable_empty_final_response",),
            ("",),
            ("ü",),
        )
    )
    for key in keys:
        set_parameter(rng, request.parameters, key)
    request.outputs.add(name="VIEW")
    if rng.random() < 0.3:
        request.outputs[0].parameters["unknown"].int64_param = 5
    return infer(name, request)


def many_parameters() -> list[Any]:
    request = pb.ModelInferRequest(model_name="request_view", id="many")
    request.parameters["a"].bool_param = True
    request.parameters["b"].int64_param = -3
    request.parameters["c"].string_param = 'q"ü'
    request.parameters["d"].double_param = 0.1
    request.parameters["sequence_id"].int64_param = 9
    request.parameters["sequence_start"].bool_param = True
    request.parameters["sequence_end"].bool_param = True
    request.parameters["timeout"].int64_param = 1000
    request.parameters["priority"].uint64_param = 2
    return [lambda name: infer(name, request)]


def no_inputs() -> list[Any]:
    """All inputs are optional, and none is sent: to a model that batches, and to one that does not."""
    return [
        lambda name, model=model: infer(name, pb.ModelInferRequest(model_name=model))
        for model in ("types_batched", "types")
    ]


def failing_request(code: int, batch_size: int = 1, request_id: str = "") -> pb.ModelInferRequest:
    request = pb.ModelInferRequest(model_name="failing", id=request_id)
    message = request.inputs.add(name="CODE", datatype="INT32", shape=[batch_size, 1])
    message.contents.int_contents.extend([code] * batch_size)
    return request


def failing_models() -> list[Any]:
    requests = [failing_request(code) for code in repository.FAILING_CODES]
    requests += [failing_request(code, 2, "x") for code in (3, 8, 9)]
    return [lambda name, request=request: infer(name, request) for request in requests]


def classification(rng: random.Random, name: str, index: int) -> GrpcCase:
    values = tuple(float(value) for value in rng.sample(range(-40, 400), 16))
    request = raw_request(repository.IDENT, [TensorValue("IN0", "FP32", (1, 16), values)])
    parameters = request.outputs.add(name="OUT0").parameters
    if rng.random() < 0.6:
        parameters["classification"].int64_param = rng.choice((1, 3, 16, 50))
    else:
        set_parameter(rng, parameters, "classification")
    return infer(name, request)


def undecodable() -> list[Any]:
    methods = ("ModelInfer", "ModelMetadata", "ServerLive", "ModelStatistics")
    texts = (b"\xff", b"\x0a\x05ab", b"\x07", b"\x0a\x02\xff\xfe")
    return [
        lambda name, method=method, data=data: GrpcCase(name, SERVICE + method, (data,), data.hex())
        for method in methods
        for data in texts
    ]


# Everything but inference.


def server_calls() -> list[Any]:
    cases: list[Any] = [
        lambda name, method=method, message=message: unary(name, method, message)
        for method, message in (
            ("ServerLive", pb.ServerLiveRequest()),
            ("ServerReady", pb.ServerReadyRequest()),
            ("ServerMetadata", pb.ServerMetadataRequest()),
            ("RepositoryIndex", pb.RepositoryIndexRequest()),
            ("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)),
            ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="any")),
            ("RepositoryIndex", pb.RepositoryIndexRequest(repository_name="any", ready=True)),
            ("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="ident")),
            ("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="ident")),
        )
    ]
    paths = (
        HEALTH_CHECK,
        "/grpc.health.v1.Health/Other",
        SERVICE + "NoSuchMethod",
        "/inference.NoSuchService/ModelInfer",
        "/no",
        "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo",
    )
    return cases + [lambda name, path=path: GrpcCase(name, path, (b"",), "(empty)") for path in paths]


def model_calls() -> list[Any]:
    names = [model.name for model in repository.MODELS] + [*repository.UNLOADABLE, "unknown", ""]
    requests = [
        (method, kind(name=name, version=version))
        for method, kind in (
            ("ModelMetadata", pb.ModelMetadataRequest),
            ("ModelConfig", pb.ModelConfigRequest),
            ("ModelReady", pb.ModelReadyRequest),
        )
        for name in names
        for version in ("", "1")
    ]
    requests += [
        (method, kind(name=name, version=version))
        for method, kind in (
            ("ModelMetadata", pb.ModelMetadataRequest),
            ("ModelConfig", pb.ModelConfigRequest),
            ("ModelReady", pb.ModelReadyRequest),
            ("ModelStatistics", pb.ModelStatisticsRequest),
        )
        for name in ("versions", "unknown")
        for version in VERSION_TEXTS[2:]
        if not (method == "ModelStatistics" and name == "versions" and version in ("3", "1x", " 1", "+1", "1.5"))
    ]
    return [lambda name, method=method, request=request: unary(name, method, request) for method, request in requests]


# Streams.


def stream(rng: random.Random, name: str, index: int) -> GrpcCase:
    """Up to four requests on one stream, good ones and bad ones mixed."""
    requests = []
    for number in range(rng.choice((0, 1, 1, 2, 3, 4))):
        kind = rng.randrange(8)
        if kind < 4:
            model = rng.choice(ECHO_MODELS)
            tensors = [tensor for tensor in random_inputs(rng, model) if tensor.datatype not in BINARY_ONLY]
            request = rng.choice((raw_request, contents_request))(model, tensors)
            if kind == 3 and request.inputs:
                del request.inputs[0]
                del request.raw_input_contents[:1]
        elif kind == 4:
            request = failing_request(rng.choice((0, 1, 3, 5, 7, 8, 9, 11, 15)))
        elif kind == 5:
            request = pb.ModelInferRequest(model_name=rng.choice(("unknown", "ident", "broken_initialize")))
            request.model_version = rng.choice(("", "abc", "7"))
        elif kind == 6:
            request = pb.ModelInferRequest(model_name="request_view")
            set_parameter(rng, request.parameters, rng.choice(("own", "triton_x", "priority")))
        else:
            request = raw_request(repository.IDENT, [random_tensor(rng, repository.IDENT.inputs[0], 1)])
            request.raw_input_contents[0] = b"short"
        if rng.random() < 0.7:
            request.id = f"request {number}"
        if rng.random() < 0.2:
            request.parameters["triton_enable_empty_final_response"].bool_param = rng.random() < 0.5
        requests.append(request)
    return GrpcCase(
        name,
        SERVICE + "ModelStreamInfer",
        tuple(request.SerializeToString(deterministic=True) for request in requests),
        "\n".join(text_format.MessageToString(request, as_one_line=True) for request in requests),
        is_stream=True,
    )


def stream_errors_as_status() -> list[Any]:
    """With `triton_grpc_error` the first error of a model ends the stream."""

    def make(*requests: pb.ModelInferRequest, value: str = "true") -> Callable[[str], GrpcCase]:
        return lambda name: GrpcCase(
            name,
            SERVICE + "ModelStreamInfer",
            tuple(request.SerializeToString(deterministic=True) for request in requests),
            "\n".join(text_format.MessageToString(request, as_one_line=True) for request in requests),
            metadata=(("triton_grpc_error", value),),
            is_stream=True,
        )

    unknown = pb.ModelInferRequest(model_name="unknown", id="u")
    good, bad = failing_request(8, 1, "good"), failing_request(3, 1, "bad")
    return [make(good), make(bad), make(good, bad), make(unknown), make(bad, value="True"), make(bad, value="1")]


GROUPS: dict[str, Group] = {
    "grpc-raw": random_group("grpc-raw", 84, valid_raw),
    "grpc-contents": random_group("grpc-contents", 84, valid_contents),
    "grpc-zero-elements": random_group("grpc-zero-elements", 24, zero_elements),
    "grpc-wrong-data": random_group("grpc-wrong-data", 80, wrong_data),
    "grpc-wrong-names": random_group("grpc-wrong-names", 70, wrong_names),
    "grpc-wrong-shapes": random_group("grpc-wrong-shapes", 50, wrong_shapes),
    "grpc-bytes-elements": random_group("grpc-bytes-elements", 30, bytes_elements),
    "grpc-narrow-integers": random_group("grpc-narrow-integers", 12, narrow_integers),
    "grpc-versions": listed_group("grpc-versions", infer_versions),
    "grpc-parameters": random_group("grpc-parameters", 60, parameters),
    "grpc-many-parameters": listed_group("grpc-many-parameters", many_parameters),
    "grpc-no-inputs": listed_group("grpc-no-inputs", no_inputs),
    "grpc-failing-models": listed_group("grpc-failing-models", failing_models),
    "grpc-classification": random_group("grpc-classification", 20, classification),
    "grpc-undecodable": listed_group("grpc-undecodable", undecodable),
    "grpc-server": listed_group("grpc-server", server_calls),
    "grpc-models": listed_group("grpc-models", model_calls),
    "grpc-stream": random_group("grpc-stream", 60, stream),
    "grpc-stream-status": listed_group("grpc-stream-status", stream_errors_as_status),
}
