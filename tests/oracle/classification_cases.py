"""The classification extension: every numeric datatype and what cannot be classified, all shapes, all ways to ask."""

import random
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.oracle import repository
from tests.oracle.cases import Group, GrpcCase, HttpCase, random_group
from tests.oracle.grpc_cases import SERVICE, infer
from tests.oracle.http_drafts import Draft, binary_input
from tests.oracle.repository import ModelSpec
from tests.oracle.tensor_values import BINARY_ONLY, INTEGER_BITS, TensorValue, Value

# Model, suffix of its input and output, datatype. The real server dies of BYTES, now and then.
TARGETS: tuple[tuple[ModelSpec, str, str], ...] = (
    (repository.IDENT, "0", "FP32"),
    (repository.RAGGED, "0", "FP32"),
    *((repository.TYPES, f"_{datatype}", datatype) for datatype in repository.CONFIG_TYPES if datatype != "BYTES"),
    *((repository.TYPES_BATCHED, f"_{datatype}", datatype) for datatype in ("UINT8", "INT64", "FP64", "BOOL")),
    (repository.MATRIX, "_A", "FP64"),
    (repository.MATRIX, "_B", "INT64"),
    (repository.RESHAPED, "1", "INT32"),
    (repository.SCALAR, "0", "UINT16"),
)
# The real server dies of counts beyond 31 bits.
COUNTS = (1, 1, 2, 3, 5, 16, 100)


def values_of(rng: random.Random, datatype: str, count: int) -> tuple[Value, ...]:
    """Different ones: which of two equal values comes first is up to a sorting algorithm."""
    if datatype == "BOOL":
        return tuple(rng.random() < 0.5 for _ in range(count))
    if datatype in BINARY_ONLY:
        return tuple(rng.sample(range(1, 1000), count))
    if datatype in INTEGER_BITS:
        bits = INTEGER_BITS[datatype]
        low, high = (0, 2**bits) if datatype.startswith("U") else (-(2 ** (bits - 1)), 2 ** (bits - 1))
        values: set[int] = set()
        while len(values) < count:
            values.add(rng.randrange(low, high) if rng.random() < 0.7 else rng.choice((low, high - 1, 0, 1)))
        return tuple(rng.sample(sorted(values), count))
    floats = rng.sample((0.0, 1.0, -1.5, 1e-7, 123456.789, -1e20, 3.4e38, 0.125, 7.0, -0.001, 2.5e10), min(count, 11))
    floats += [float(number) for number in rng.sample(range(100, 400), count - len(floats))]
    return tuple(floats)


def tensor(rng: random.Random, model: ModelSpec, suffix: str, datatype: str) -> TensorValue:
    (spec,) = (each for each in model.inputs if each.name == f"IN{suffix}")
    shape = [dim if dim >= 0 else rng.randint(1, 4) for dim in spec.dims]
    if model.max_batch_size:
        shape.insert(0, rng.randint(1, min(3, model.max_batch_size)))
    count = 1
    for dim in shape:
        count *= dim
    return TensorValue(spec.name, datatype, tuple(shape), values_of(rng, datatype, count))


def over_http(rng: random.Random, name: str, index: int) -> HttpCase:
    model, suffix, datatype = TARGETS[index % len(TARGETS)]
    value = tensor(rng, model, suffix, datatype)
    parameters: dict[str, Any] = {"classification": rng.choice(COUNTS)}
    if rng.random() < 0.1:
        parameters["classification"] = rng.choice((0, -1, 1.5, "2", None, True, [2]))
    if rng.random() < 0.4:
        parameters["binary_data"] = rng.random() < 0.7
    document: dict[str, Any] = {"inputs": [binary_input(value)]}
    document["outputs"] = [{"name": f"OUT{suffix}", "parameters": parameters}]
    if rng.random() < 0.2:
        document["parameters"] = {"binary_data_output": True}
    return Draft(model.name, document, [value.encoded()]).case(name)


def over_grpc(rng: random.Random, name: str, index: int) -> GrpcCase:
    model, suffix, datatype = TARGETS[index % len(TARGETS)]
    value = tensor(rng, model, suffix, datatype)
    request = pb.ModelInferRequest(model_name=model.name, raw_input_contents=[value.encoded()])
    request.inputs.add(name=value.name, datatype=datatype, shape=value.shape)
    parameter = request.outputs.add(name=f"OUT{suffix}").parameters["classification"]
    if rng.random() < 0.9:
        parameter.int64_param = rng.choice(COUNTS)
    else:
        parameter.int64_param = rng.choice((0, -1))
    if rng.random() < 0.7:
        return infer(name, request)
    return GrpcCase(
        name,
        SERVICE + "ModelStreamInfer",
        (request.SerializeToString(deterministic=True),),
        str(request),
        is_stream=True,
    )


GROUPS: dict[str, Group] = {
    "classification-http": random_group("classification-http", 140, over_http),
    "classification-grpc": random_group("classification-grpc", 80, over_grpc),
}
