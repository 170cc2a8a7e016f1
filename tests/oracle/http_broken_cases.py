"""HTTP inference requests that are wrong in one way each: the JSON, its content, the tensors, their bytes."""

import json
import random
from typing import Any

from tests.oracle import repository
from tests.oracle.cases import Group, HttpCase, listed_group, random_group
from tests.oracle.http_drafts import WRONG_VALUES, Draft, draft, infer_target, random_inputs
from tests.oracle.repository import ModelSpec
from tests.oracle.tensor_values import BINARY_ONLY, FORMATS, encode, random_tensor, tensor_of_shape

# Models whose requests have one or two inputs of plain types: what is wrong in them is easy to see.
PLAIN_MODELS = (repository.IDENT, repository.ADD_SUB, repository.TEXT_BATCHED, repository.VERSIONS, repository.RESHAPED)


# Broken JSON.


def broken_syntax(rng: random.Random, name: str, index: int) -> HttpCase:
    request = draft(rng, rng.choice(PLAIN_MODELS))
    if rng.random() < 0.5:
        request.document["parameters"] = {"a": True, "b": "t\u00fcxt", "c": 1.5}
    text = json.dumps(request.document, indent=rng.choice((None, 1)))
    kind = rng.randrange(6)
    position = rng.randrange(len(text))
    if kind == 0:
        text = text[:position]
    elif kind == 1:
        text = text[:position] + text[position + 1 :]
    elif kind == 2:
        text = text[:position] + rng.choice("{}[],:\"\\'/#\0\x01 eE+-.0x\n") + text[position + 1 :]
    elif kind == 3:
        text = (
            text[:position]
            + rng.choice(("{", "}", "[", "]", ",", ":", '"', "//", "nul", "tru", "\\u12", "-", "."))
            + text[position:]
        )
    elif kind == 4:
        text += rng.choice(("x", "{}", " \n\t", "\0", "\0garbage", ",", "]", "null"))
    else:
        text = rng.choice(("\ufeff", " ", "\n", "x", "\0", ",")) + text
    return request.case(name, text)


SYNTAX_TEXTS = (
    "",
    " ",
    "{",
    "}",
    "[",
    "[]",
    "{}",
    "null",
    "true",
    "nul",
    "1",
    "-",
    "1.",
    "1e",
    "1e+",
    "01",
    "+1",
    ".5",
    "1e999",
    "-1e999",
    "0x10",
    '"text"',
    '"',
    '"\\x"',
    '"\\u12G4"',
    '"\\ud800"',
    '"\\ud800\\u0041"',
    '"\\udc00"',
    '"\n"',
    '{"a"}',
    '{"a":}',
    '{"a":1,}',
    '{"a":1 "b":2}',
    "{a:1}",
    "{'a':1}",
    "{1:1}",
    "[1,]",
    "[1 2]",
    "[1,,2]",
    "{} {}",
    "{}x",
    "/* c */{}",
    "{}// c",
    "N",
    "NaN",
    "Na",
    "Infinit",
    "-Infinity",
    "-Na",
    "tRue",
    '{"inputs":[]',
    '{"inputs":[}',
    '{"inputs":{}}',
    '{"inputs":[]}\0\0',
    '{"inputs":[]}\0x',
    "[" * 60 + "]" * 60,
)


def syntax_texts() -> list[Any]:
    return [lambda name, text=text: Draft("types", None).case(name, text) for text in SYNTAX_TEXTS]


def invalid_utf8(rng: random.Random, name: str, index: int) -> HttpCase:
    """Bytes that are not UTF-8, in the id, in a BYTES value and in a name."""
    bad = rng.choice((b"\xff", b"\xc3", b"\xe2\x82", b"\xed\xa0\x80", b"\xf0\x9f\x98", b"\x80"))
    text = b'{"id":"a@id","inputs":[{"name":"IN0@name","datatype":"BYTES","shape":[1],"data":["x@data"]}]}'
    place = rng.choice((b"@id", b"@name", b"@data"))
    for mark in (b"@id", b"@name", b"@data"):
        text = text.replace(mark, bad if mark == place else b"")
    return HttpCase(name, "POST", infer_target("text"), (), text)


def duplicate_keys(rng: random.Random, name: str, index: int) -> HttpCase:
    """A key twice in one object: the first one counts."""
    key = rng.choice(("id", "inputs", "name", "datatype", "shape", "data", "outputs", "parameters"))
    first = {"id": "1", "inputs": [], "outputs": [], "parameters": {}}
    tensor: dict[str, Any] = {"name": "IN_INT32", "datatype": "INT32", "shape": [1], "data": [5]}
    other = {
        "id": rng.choice(("2", 3)),
        "inputs": [{"name": "IN_INT8", "datatype": "INT8", "shape": [1], "data": [7]}],
        "name": "IN_INT16",
        "datatype": rng.choice(("INT16", 5)),
        "shape": rng.choice(([2], "x")),
        "data": rng.choice(([6], [1, 2], None)),
        "outputs": [{"name": "OUT_INT32"}, {"name": "NO"}],
        "parameters": {"binary_data_output": True},
    }[key]
    doubled = json.dumps(other)
    inputs = json.dumps(tensor)
    if key in tensor:
        inputs = inputs[:-1] + f',"{key}":{doubled}}}' if rng.random() < 0.5 else f'{{"{key}":{doubled},' + inputs[1:]
    parts = [f'"inputs":[{inputs}]']
    if key in first:
        if key != "inputs":
            parts.append(f'"{key}":{json.dumps(first[key])}')
        parts.insert(rng.randint(0, len(parts)), f'"{key}":{doubled}')
    return Draft("types", None).case(name, "{" + ",".join(parts) + "}")


# Well-formed JSON of the wrong content.


def _full_document(rng: random.Random, model: ModelSpec, binary_share: float) -> Draft:
    request = draft(rng, model, binary_share=binary_share)
    outputs = [{"name": spec.name, "parameters": {"binary_data": rng.random() < 0.5}} for spec in model.outputs]
    request.document |= {
        "id": "some id",
        "outputs": outputs,
        "parameters": {
            "binary_data_output": True,
            "sequence_id": 5,
            "sequence_start": True,
            "sequence_end": False,
            "priority": 1,
            "timeout": 10,
            "own": "x",
        },
    }
    return request


def _paths(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to every value in a document, itself first."""
    found = [path]
    if isinstance(value, dict):
        for key, inner in value.items():
            found += _paths(inner, (*path, key))
    elif isinstance(value, list):
        for index, inner in enumerate(value[:3]):
            found += _paths(inner, (*path, index))
    return found


def _parent(document: Any, path: tuple[Any, ...]) -> Any:
    for step in path[:-1]:
        document = document[step]
    return document


def wrong_types(rng: random.Random, name: str, index: int) -> HttpCase:
    """One value of the document replaced by one of another type or size."""
    request = _full_document(rng, rng.choice(PLAIN_MODELS), binary_share=rng.choice((0.0, 1.0)))
    path = rng.choice(_paths(request.document))
    value = rng.choice(WRONG_VALUES)
    if "shape" in path and type(value) is int and value >= 2**31:
        value = 5  # The real server would allocate that much, and die.
    if not path:
        request.document = value
    else:
        _parent(request.document, path)[path[-1]] = value
    return request.case(name)


def missing_members(rng: random.Random, name: str, index: int) -> HttpCase:
    request = _full_document(rng, rng.choice(PLAIN_MODELS), binary_share=rng.choice((0.0, 1.0)))
    path = rng.choice([path for path in _paths(request.document) if path and isinstance(path[-1], str)])
    del _parent(request.document, path)[path[-1]]
    return request.case(name)


def wrong_names(rng: random.Random, name: str, index: int) -> HttpCase:
    """Unknown, doubled, missing and misspelt tensors; inputs in the wrong number."""
    model = rng.choice((*PLAIN_MODELS, repository.TYPES_BATCHED, repository.AUTO))
    request = draft(rng, model)
    inputs = request.document["inputs"]
    kind = rng.randrange(9)
    if kind == 0:
        rng.choice(inputs)["name"] = rng.choice(("NO", "", "in0", "IN0 ", "ü", model.outputs[0].name))
    elif kind == 1:
        inputs.append(dict(rng.choice(inputs)))
    elif kind == 2:
        inputs.append(dict(rng.choice(inputs), name="EXTRA"))
    elif kind == 3:
        del inputs[rng.randrange(len(inputs))]
    elif kind == 4:
        request.document["outputs"] = [{"name": rng.choice(("NO", "", "out0", inputs[0]["name"]))}]
    elif kind == 5:
        request.document["outputs"] = [{"name": model.outputs[0].name}, {"name": "NO"}]
        rng.shuffle(request.document["outputs"])
    elif kind == 6:
        request = Draft("request_view", {"inputs": [], "outputs": [{"name": "VIEW"}] * 2})
    elif kind == 7:
        rng.choice(inputs)["datatype"] = rng.choice(
            ("", "fp32", "FLOAT", "STRING", "TYPE_FP32", "FP16", "BF16", "BOOL", "INT32", "FP32", "BYTES", "INT64")
        )
    else:
        request.document["inputs"] = []
    return request.case(name)


def wrong_shapes(rng: random.Random, name: str, index: int) -> HttpCase:
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
    if rng.random() < 0.7:  # The data follows, so that the shape is what is wrong.
        tensors[place] = tensor_of_shape(rng, victim.name, victim.datatype, tuple(shape))
        return draft(rng, model, tensors, binary_share=0.5).case(name)
    request = draft(rng, model, tensors, binary_share=0.5)
    request.document["inputs"][place]["shape"] = shape
    return request.case(name)


def wrong_counts(rng: random.Random, name: str, index: int) -> HttpCase:
    """`data` with too many or too few values, or nested in another way than the shape."""
    model = rng.choice(PLAIN_MODELS)
    request = draft(rng, model)
    entry = rng.choice(request.document["inputs"])
    data = entry["data"]
    kind = rng.randrange(7)
    if kind == 0:
        data.append(data[-1])
    elif kind == 1:
        data.pop()
    elif kind == 2:
        entry["data"] = []
    elif kind == 3:
        entry["data"] = [data]
    elif kind == 4:
        entry["data"] = [[value] for value in data]
    elif kind == 5:
        entry["data"] = [data[:1], *data[1:]]
    else:
        entry["data"] = [*data, rng.choice(([], {}, None, "x", 1.5))]
    return request.case(name)


def wrong_elements(rng: random.Random, name: str, index: int) -> HttpCase:
    """A value in `data` that its datatype does not take."""
    datatype = rng.choice([one for one in FORMATS if one not in BINARY_ONLY] + ["BYTES"])
    value = rng.choice((None, True, 0, 1, -1, 1.0, 1.5, "1", "", {}, {"a": 1}, 2**64, 10**30, float("nan")))
    good = {"BOOL": True, "BYTES": "x"}.get(datatype, 1)
    data = [good, good]
    data[rng.randrange(2)] = value
    entry = {"name": f"IN_{datatype}", "datatype": datatype, "shape": [2], "data": data}
    return Draft("types", {"inputs": [entry]}).case(name)


def data_sources(rng: random.Random, name: str, index: int) -> HttpCase:
    """None, one or several of the three places that an input's data can come from."""
    tensor = random_tensor(rng, repository.IDENT.inputs[0], 1)
    entry: dict[str, Any] = {"name": tensor.name, "datatype": "FP32", "shape": list(tensor.shape)}
    request = Draft("ident", {"inputs": [entry]})
    if rng.random() < 0.5:
        entry["data"] = tensor.nested()
    parameters: dict[str, Any] = {}
    if rng.random() < 0.5:
        parameters["binary_data_size"] = 64
    if rng.random() < 0.3:
        parameters |= {"shared_memory_region": "nowhere", "shared_memory_byte_size": 64}
    if rng.random() < 0.3:
        parameters["unknown"] = 1
    if parameters or rng.random() < 0.3:
        entry["parameters"] = parameters
    if rng.random() < 0.5:
        request.blobs = [tensor.encoded()]
    return request.case(name)


def wrong_binary(rng: random.Random, name: str, index: int) -> HttpCase:
    """Binary tensors whose sizes do not fit: the header's, the tensor's, the body's."""
    model = rng.choice((*PLAIN_MODELS, repository.TYPES))
    request = draft(rng, model, binary_share=1.0)
    if not request.blobs:
        return request.case(name)
    entry = rng.choice(request.document["inputs"])
    size = entry["parameters"]["binary_data_size"]
    kind = rng.randrange(6)
    if kind == 0:
        entry["parameters"]["binary_data_size"] = rng.choice((size + 1, max(0, size - 1), 0, size * 2, 2**31, 2**40))
    elif kind == 1:
        request.blobs[-1] = request.blobs[-1][:-1]
    elif kind == 2:
        request.blobs.append(rng.choice((b"x", b"\0", request.blobs[0])))
    elif kind == 3:
        request.blobs = []
        request.header_length = rng.choice((None, str(len(json.dumps(request.document, separators=(",", ":"))))))
    elif kind == 4:
        # The size and the bytes agree with each other but not with the shape.
        place = request.document["inputs"].index(entry)
        request.blobs[place] += b"1234"
        entry["parameters"]["binary_data_size"] = size + 4
    else:
        entry["parameters"]["binary_data_size"] = rng.choice((-1, 1.5, "64", None, True, [], 2**64))
    return request.case(name)


def header_lengths(rng: random.Random, name: str, index: int) -> HttpCase:
    """What `Inference-Header-Content-Length` may say."""
    request = draft(rng, rng.choice((repository.IDENT, repository.TEXT)), binary_share=1.0)
    length = len(json.dumps(request.document, separators=(",", ":")).encode())
    total = length + sum(map(len, request.blobs))
    request.header_length = rng.choice(
        (
            str(length),
            str(length - 1),
            str(length + 1),
            str(total),
            str(total + 1),
            "1",
            "-1",
            f"{length}abc",
            f" {length} ",
            f"+{length}",
            f"0{length}",
            f"{length}.0",
            "abc",
            "",
            "2147483647",
            "2147483648",
            "99999999999999999999",
        )
    )
    return request.case(name)


def no_header_length(rng: random.Random, name: str, index: int) -> HttpCase:
    """Binary data without the header that says where it begins."""
    case = draft(rng, rng.choice((repository.IDENT, repository.TEXT, repository.VERSIONS)), binary_share=1.0).case(name)
    return HttpCase(name, "POST", case.target, (), case.body)


def bytes_elements(rng: random.Random, name: str, index: int) -> HttpCase:
    """BYTES tensors whose element lengths do not add up."""
    data = rng.choice(
        (
            b"",
            b"\1",
            b"\1\0\0",
            b"\1\0\0\0",
            b"\1\0\0\0ab",
            b"\3\0\0\0ab",
            b"\0\0\0\0",
            b"\0\0\0\0" * 2,
            b"\0\0\0\0" * 3,
            encode("BYTES", ("a", "b")),
            encode("BYTES", ("a", "b", "c")),
            encode("BYTES", ("a",)) + b"\1",
            b"\xff\xff\xff\xffab",
            b"\xff\xff\xff\x7fab",
            b"\2\0\0\0\xff\xfe",
        )
    )
    model, shape = rng.choice((("text", [1]), ("types_batched", [1, 2]), ("types", [0])))
    names = ("IN0", "OUT0") if model == "text" else ("IN_BYTES", "OUT_BYTES")
    entry = {"name": names[0], "datatype": "BYTES", "shape": shape, "parameters": {"binary_data_size": len(data)}}
    document = {"inputs": [entry], "outputs": [{"name": names[1], "parameters": {"binary_data": rng.random() < 0.7}}]}
    return Draft(model, document, [data]).case(name)


GROUPS: dict[str, Group] = {
    "http-syntax": random_group("http-syntax", 100, broken_syntax),
    "http-syntax-texts": listed_group("http-syntax-texts", syntax_texts),
    "http-invalid-utf8": random_group("http-invalid-utf8", 12, invalid_utf8),
    "http-duplicate-keys": random_group("http-duplicate-keys", 30, duplicate_keys),
    "http-wrong-types": random_group("http-wrong-types", 140, wrong_types),
    "http-missing-members": random_group("http-missing-members", 50, missing_members),
    "http-wrong-names": random_group("http-wrong-names", 60, wrong_names),
    "http-wrong-shapes": random_group("http-wrong-shapes", 60, wrong_shapes),
    "http-wrong-counts": random_group("http-wrong-counts", 40, wrong_counts),
    "http-wrong-elements": random_group("http-wrong-elements", 50, wrong_elements),
    "http-data-sources": random_group("http-data-sources", 30, data_sources),
    "http-wrong-binary": random_group("http-wrong-binary", 50, wrong_binary),
    "http-header-lengths": random_group("http-header-lengths", 40, header_lengths),
    "http-no-header-length": random_group("http-no-header-length", 12, no_header_length),
    "http-bytes-elements": random_group("http-bytes-elements", 40, bytes_elements),
}
