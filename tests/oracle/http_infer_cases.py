"""HTTP inference requests that a client may well send: every form of valid ones, parameters, models that fail."""

import json
import random
from typing import Any

from tests.oracle import repository
from tests.oracle.cases import Group, HttpCase, listed_group, random_group
from tests.oracle.http_drafts import HEADER_LENGTH, WRONG_VALUES, Draft, add_outputs, draft, render
from tests.oracle.tensor_values import TensorValue, random_tensor, tensor_of_shape

ECHO_MODELS = (
    repository.TYPES,
    repository.TYPES,
    repository.TYPES_BATCHED,
    repository.IDENT,
    repository.ADD_SUB,
    repository.MATRIX,
    repository.RAGGED,
    repository.TEXT,
    repository.TEXT_BATCHED,
    repository.RESHAPED,
    repository.SCALAR,
    repository.VERSIONS,
    repository.AUTO,
    repository.REQUEST_VIEW,
)


def valid_json(rng: random.Random, name: str, index: int) -> HttpCase:
    model = ECHO_MODELS[index % len(ECHO_MODELS)]
    request = draft(rng, model)
    add_outputs(rng, model, request, binary_share=0.0)
    if model is repository.VERSIONS:
        request.version = rng.choice((None, "1", "3", "03"))
    return request.case(name, render(rng, request.document))


def valid_binary(rng: random.Random, name: str, index: int) -> HttpCase:
    model = ECHO_MODELS[index % len(ECHO_MODELS)]
    request = draft(rng, model, binary_share=rng.choice((0.0, 0.5, 1.0)))
    add_outputs(rng, model, request, binary_share=rng.choice((0.3, 1.0)))
    return request.case(name, render(rng, request.document))


def zero_elements(rng: random.Random, name: str, index: int) -> HttpCase:
    """Tensors without elements, where the configuration allows them and where it does not."""
    model, shape = rng.choice(
        (
            (repository.TYPES, (0,)),
            (repository.MATRIX, (0, 3)),
            (repository.MATRIX, (2, 0, 4)),
            (repository.MATRIX, (2, 3, 0)),
            (repository.RAGGED, (2, 0)),
            (repository.RAGGED, (0, 2)),
            (repository.IDENT, (0, 16)),
            (repository.TEXT, (0,)),
            (repository.TEXT_BATCHED, (0, 1)),
            (repository.AUTO, (1, 2, 0)),
        )
    )
    specs = [spec for spec in model.inputs if len(spec.dims) + bool(model.max_batch_size) == len(shape)]
    tensor = tensor_of_shape(rng, (spec := rng.choice(specs)).name, spec.datatype, shape)
    request = draft(rng, model, [tensor], binary_share=0.5)
    if rng.random() < 0.2 and "data" in request.document["inputs"][0]:
        request.document["inputs"][0]["data"] = rng.choice(([1], ["x"], [[]], {}, None, "text"))
    add_outputs(rng, model, request, binary_share=0.4)
    return request.case(name)


def raw_request(rng: random.Random, name: str, index: int) -> HttpCase:
    """The body is the data of the only input, without any JSON."""
    model = rng.choice(
        (
            repository.IDENT,
            repository.RAGGED,
            repository.VERSIONS,
            repository.TEXT,
            repository.TEXT_BATCHED,
            repository.SCALAR,
            repository.ADD_SUB,
            repository.MATRIX,
            repository.FAILING,
            repository.TYPES,
        )
    )
    request = Draft(model.name, None, header_length="0")
    batch_size = 1 if model.max_batch_size else None
    data = random_tensor(rng, model.inputs[0], batch_size).encoded()
    if model.inputs[0].datatype == "BYTES":
        data = data[4:]
    if rng.random() < 0.3:
        data = rng.choice((data[:-1], data + b"\0", b"", data * 2))
    request.blobs = [data]
    return HttpCase(name, "POST", request.target, ((HEADER_LENGTH, "0"),) if rng.random() < 0.9 else (), data)


def number_texts(rng: random.Random, name: str, index: int) -> HttpCase:
    """Numbers as clients write them, and as the server prints them back."""
    datatype = rng.choice(("FP32", "FP64"))
    texts = [random_number_text(rng) for _ in range(rng.randint(1, 5))]
    text = (
        f'{{"inputs":[{{"name":"IN_{datatype}","datatype":"{datatype}","shape":[{len(texts)}],'
        f'"data":[{",".join(texts)}]}}]}}'
    )
    return Draft(repository.TYPES.name, None).case(name, text)


def random_number_text(rng: random.Random) -> str:
    kind = rng.randrange(8)
    if kind == 0:
        return rng.choice(("NaN", "Infinity", "-Infinity", "Inf", "-Inf", "0", "-0", "-0.0", "0e5", "1E+2", "1e-2"))
    if kind == 1:
        return f"{rng.randrange(10**6)}.{rng.randrange(10**6)}"
    if kind == 2:
        return f"{rng.choice(('-', ''))}{rng.randrange(1, 10 ** rng.randint(1, 19))}e{rng.randint(-30, 20)}"
    if kind == 3:
        return f"{rng.random() * 10.0 ** rng.randint(-45, 38)!r}"
    if kind == 4:
        return str(rng.randrange(2**64) - 2**63)
    if kind == 5:
        return rng.choice(
            ("1e38", "3.4028235e38", "3.5e38", "1e-45", "1e-46", "5e-324", "1.7976931348623157e308", "1e-400")
        )
    if kind == 6:
        return f"0.{'0' * rng.randrange(30)}{rng.randrange(1, 10**17)}"
    return f"{rng.randrange(10**25)}.{rng.randrange(10**20):020d}"


def number_bits(rng: random.Random, name: str, index: int) -> HttpCase:
    """Any floats at all come in as bits and go out as text."""
    datatype, byte_size = rng.choice((("FP32", 4), ("FP64", 8)))
    count = rng.randint(1, 6)
    data = rng.randbytes(byte_size * count)
    entry = {"name": f"IN_{datatype}", "datatype": datatype, "shape": [count]}
    entry["parameters"] = {"binary_data_size": len(data)}
    return Draft(repository.TYPES.name, {"inputs": [entry]}, [data]).case(name)


def integer_texts(rng: random.Random, name: str, index: int) -> HttpCase:
    """Integers at and beyond the ends of their type."""
    datatype = rng.choice(("UINT8", "UINT16", "UINT32", "UINT64", "INT8", "INT16", "INT32", "INT64"))
    bits = int(datatype.lstrip("UINT"))
    ends = (
        0,
        -1,
        2 ** (bits - 1) - 1,
        2 ** (bits - 1),
        -(2 ** (bits - 1)),
        -(2 ** (bits - 1)) - 1,
        2**bits - 1,
        2**bits,
    )
    values = [rng.choice(ends) for _ in range(rng.randint(1, 2))]
    if rng.random() < 0.15:
        values = [rng.choice((1.0, 1.5, True, None, "1", 2**64, -(2**63) - 1, 1e3))]
    entry = {"name": f"IN_{datatype}", "datatype": datatype, "shape": [len(values)], "data": values}
    return Draft(repository.TYPES.name, {"inputs": [entry]}).case(name)


def parameters(rng: random.Random, name: str, index: int) -> HttpCase:
    """What a model sees of the parameters, or why it does not see the request."""
    keys = rng.choice(
        (
            ("own",),
            ("own", "other", "third"),
            ("sequence_id",),
            ("sequence_id", "sequence_start", "sequence_end"),
            ("sequence_start",),
            ("sequence_end",),
            ("priority",),
            ("timeout",),
            ("binary_data_output",),
            ("headers",),
            ("triton_x",),
            ("triton_",),
            ("triton_enable_empty_final_response",),
            ("",),
            ("ü", "a b"),
        )
    )
    likely = {
        "sequence_id": (0, 7, 2**64 - 1, "abc", "", "x" * 128, "x" * 129),
        "sequence_start": (True, False),
        "sequence_end": (True, False),
        "priority": (0, 1, 5, 2**32, 2**63),
        "timeout": (0, 1, 10**6, 2**63),
        "binary_data_output": (True, False),
    }
    plain = (True, False, 0, 5, -3, 2**63 - 1, -(2**63), 2**63, 2**64 - 1, 1.5, 0.1, 1e100, "", "text", "ü", 'q"')
    values = {}
    for key in keys:
        usual = likely.get(key, plain)
        values[key] = rng.choice(usual) if rng.random() < 0.7 else rng.choice(WRONG_VALUES)
    request = Draft("request_view", {"inputs": [], "outputs": [{"name": "VIEW"}], "parameters": values})
    if rng.random() < 0.3:
        request.document["id"] = "an id"
    if rng.random() < 0.2:
        del request.document["outputs"]
    return request.case(name)


MANY_PARAMETERS: tuple[dict[str, Any], ...] = (
    {
        "a": True,
        "b": -3,
        "c": 'q"ü',
        "d": 0.1,
        "sequence_id": 9,
        "sequence_start": True,
        "timeout": 1000,
        "priority": 2,
    },
    {"sequence_id": "text", "sequence_end": True, "own": "x"},
    {"small": -(2**63), "large": 2**63 - 1, "larger": 2**63, "largest": 2**64 - 1},
    {"beyond": 10**25},
)


def many_parameters() -> list[Any]:
    def make(values: dict[str, Any]) -> Any:
        document = {"id": "many", "inputs": [], "outputs": [{"name": "VIEW"}], "parameters": values}
        return lambda name: Draft("request_view", document).case(name)

    return [make(values) for values in MANY_PARAMETERS]


def failing_models() -> list[Any]:
    def make(code: int, batch_size: int, text: str) -> Any:
        entry = {"name": "CODE", "datatype": "INT32", "shape": [batch_size, 1], "data": [code] * batch_size}
        document = {"inputs": [entry]} | json.loads(text)
        return lambda name: Draft("failing", document).case(name)

    cases = [make(code, 1, "{}") for code in repository.FAILING_CODES]
    cases += [make(code, 2, '{"id":"x"}') for code in (3, 8, 9, 15, 17)]
    binary = '{"parameters":{"binary_data_output":true}}'
    return cases + [make(code, 1, binary) for code in (0, 8, 15, 16, 17, 18, 26, 27, 28)]


def classification(rng: random.Random, name: str, index: int) -> HttpCase:
    """Outputs as their greatest values, with labels where there are some."""
    if rng.random() < 0.7:
        values = tuple(float(value) for value in rng.sample(range(-40, 400), 16))
        tensor = TensorValue("IN0", "FP32", (1, 16), values)
        request = draft(rng, repository.IDENT, [tensor])
        output = "OUT0"
    else:
        # The real server dies of a BYTES output here.
        datatype = rng.choice(("INT8", "UINT8", "INT32", "UINT64", "FP64", "BOOL"))
        tensor = random_tensor(rng, repository.TensorSpec(f"IN_{datatype}", datatype, (-1,)), None)
        if datatype != "BOOL":
            # Distinct values: the order of equal ones is nobody's promise.
            tensor = TensorValue(tensor.name, datatype, (4,), tuple(rng.sample(range(100), 4)))
        request = draft(rng, repository.TYPES, [tensor])
        output = f"OUT_{datatype}"
    count = rng.choice((0, 1, 2, 3, 16, 100)) if rng.random() < 0.8 else rng.choice(WRONG_VALUES)
    wanted: dict[str, Any] = {"name": output, "parameters": {"classification": count}}
    if rng.random() < 0.3:
        wanted["parameters"]["binary_data"] = True
    request.document["outputs"] = [wanted]
    return request.case(name)


GROUPS: dict[str, Group] = {
    "http-json": random_group("http-json", 112, valid_json),
    "http-binary": random_group("http-binary", 112, valid_binary),
    "http-zero-elements": random_group("http-zero-elements", 40, zero_elements),
    "http-raw": random_group("http-raw", 40, raw_request),
    "http-number-texts": random_group("http-number-texts", 60, number_texts),
    "http-number-bits": random_group("http-number-bits", 40, number_bits),
    "http-integer-texts": random_group("http-integer-texts", 40, integer_texts),
    "http-parameters": random_group("http-parameters", 80, parameters),
    "http-many-parameters": listed_group("http-many-parameters", many_parameters),
    "http-failing-models": listed_group("http-failing-models", failing_models),
    "http-classification": random_group("http-classification", 40, classification),
}
