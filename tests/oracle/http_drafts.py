"""HTTP inference requests on their way to bytes: a valid one to start from, for cases to change."""

import json
import random
from dataclasses import dataclass, field
from typing import Any

from tests.oracle.cases import Header, HttpCase
from tests.oracle.repository import ModelSpec
from tests.oracle.tensor_values import BINARY_ONLY, TensorValue, random_tensor

HEADER_LENGTH = "Inference-Header-Content-Length"

WRONG_VALUES: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    1,
    -1,
    1.5,
    1e300,
    2**31,
    2**63,
    10**25,
    "",
    "text",
    [],
    [None],
    [1, 2],
    ["a"],
    [[]],
    {},
    {"a": 1},
    float("nan"),
)


@dataclass(slots=True)
class Draft:
    """An inference request before it becomes bytes; a case changes what it wants to be wrong."""

    model: str
    document: Any
    blobs: list[bytes] = field(default_factory=list)
    version: str | None = None
    headers: list[Header] = field(default_factory=list)
    # What the header says the length of the JSON is; None: the truth, if there is any binary data.
    header_length: str | None = None

    @property
    def target(self) -> str:
        return infer_target(self.model, self.version)

    def case(self, name: str, text: str | None = None) -> HttpCase:
        header = (json.dumps(self.document, separators=(",", ":")) if text is None else text).encode()
        headers = list(self.headers)
        length = self.header_length
        if length is None and self.blobs:
            length = str(len(header))
        if length is not None:
            headers.append((HEADER_LENGTH, length))
        return HttpCase(name, "POST", self.target, tuple(headers), header + b"".join(self.blobs))


def infer_target(model: str, version: str | None = None) -> str:
    return f"/v2/models/{model}{f'/versions/{version}' if version is not None else ''}/infer"


def random_inputs(rng: random.Random, model: ModelSpec) -> list[TensorValue]:
    """Inputs that the model accepts, in some order; optional ones now and then."""
    batch_size = rng.randint(1, model.max_batch_size) if model.max_batch_size else None
    specs = [spec for spec in model.inputs if not spec.is_optional or rng.random() < 0.3]
    if not specs and model.max_batch_size:
        specs = [rng.choice(model.inputs)]
    if rng.random() < 0.3:
        rng.shuffle(specs)
    return [random_tensor(rng, spec, batch_size) for spec in specs]


def json_input(rng: random.Random, tensor: TensorValue) -> dict[str, Any]:
    data = tensor.nested() if rng.random() < 0.5 else list(tensor.values)
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape), "data": data}


def binary_input(tensor: TensorValue) -> dict[str, Any]:
    return {
        "name": tensor.name,
        "datatype": tensor.datatype,
        "shape": list(tensor.shape),
        "parameters": {"binary_data_size": len(tensor.encoded())},
    }


def draft(
    rng: random.Random, model: ModelSpec, tensors: list[TensorValue] | None = None, binary_share: float = 0.0
) -> Draft:
    """A valid request; types that JSON cannot carry are always binary."""
    request = Draft(model.name, {"inputs": []})
    for tensor in random_inputs(rng, model) if tensors is None else tensors:
        if tensor.datatype in BINARY_ONLY or rng.random() < binary_share:
            request.document["inputs"].append(binary_input(tensor))
            request.blobs.append(tensor.encoded())
        else:
            request.document["inputs"].append(json_input(rng, tensor))
    if rng.random() < 0.4:
        request.document["id"] = rng.choice(("1", "an id", "ü漢", "", 'q"uote', "x" * 70))
    return request


def add_outputs(rng: random.Random, model: ModelSpec, request: Draft, binary_share: float) -> None:
    """Ask for outputs in one of the ways there are; those that JSON cannot carry come in binary, mostly."""
    sent = {entry["name"][2:] for entry in request.document["inputs"]}
    wide = [spec for spec in model.outputs if spec.datatype in BINARY_ONLY and spec.name[3:] in sent]
    choice = rng.random()
    if (wide and choice < 0.9) or choice < binary_share:
        if rng.random() < 0.5:
            request.document.setdefault("parameters", {})["binary_data_output"] = True
            return
        share = 1.0
    elif choice < 0.3:
        if rng.random() < 0.3:
            request.document["outputs"] = []
        return
    else:
        share = binary_share
    outputs = []
    for spec in rng.sample(model.outputs, rng.randint(1, len(model.outputs))):
        output: dict[str, Any] = {"name": spec.name}
        if spec.datatype in BINARY_ONLY or rng.random() < share:
            output["parameters"] = {"binary_data": True}
        elif rng.random() < 0.3:
            output["parameters"] = rng.choice(({"binary_data": False}, {}, {"unknown": 3}))
        outputs.append(output)
    request.document["outputs"] = outputs


def render(rng: random.Random, document: Any) -> str:
    """The document as JSON text in one of the ways that clients write it."""
    style = rng.randrange(4)
    if style == 0:
        return json.dumps(document)
    if style == 1:
        return json.dumps(document, indent=rng.choice((1, 2, "\t")), ensure_ascii=False)
    if style == 2:
        keys = list(document)
        rng.shuffle(keys)
        document = {"unknown": [1, {"a": None}], **{key: document[key] for key in keys}}
    return json.dumps(document, separators=(",", ":"), ensure_ascii=rng.random() < 0.5)
