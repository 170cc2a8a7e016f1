"""The model repository that both servers serve: one model for each thing that the suite asks about.

The configurations stand here, the code of the models in `models/`. A name is the model's folder.
"""

import pathlib
import shutil
from dataclasses import dataclass

CODE_FOLDER = pathlib.Path(__file__).parent / "models"

# Name on the wire, and in a configuration.
CONFIG_TYPES = {
    "BOOL": "TYPE_BOOL",
    "UINT8": "TYPE_UINT8",
    "UINT16": "TYPE_UINT16",
    "UINT32": "TYPE_UINT32",
    "UINT64": "TYPE_UINT64",
    "INT8": "TYPE_INT8",
    "INT16": "TYPE_INT16",
    "INT32": "TYPE_INT32",
    "INT64": "TYPE_INT64",
    "FP16": "TYPE_FP16",
    "FP32": "TYPE_FP32",
    "FP64": "TYPE_FP64",
    "BYTES": "TYPE_STRING",
    "BF16": "TYPE_BF16",
}

# Loads of these fail; the server runs without them, and says that it is not ready.
UNLOADABLE = ("broken_config", "broken_initialize")


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """A tensor of a model as a client must send or will get it; `dims` are without the batch dimension."""

    name: str
    datatype: str
    dims: tuple[int, ...]
    is_optional: bool = False
    extra: str = ""

    def config(self) -> str:
        dims = ", ".join(map(str, self.dims))
        optional = "optional: true" if self.is_optional else ""
        data_type = CONFIG_TYPES[self.datatype]
        return f'{{ name: "{self.name}" data_type: {data_type} dims: [ {dims} ] {optional} {self.extra} }}'


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """One model: what its configuration says, and the file of `models/` that runs it."""

    name: str
    code: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    max_batch_size: int = 0
    extra: str = ""
    versions: tuple[int, ...] = (1,)
    has_config: bool = True

    def config_text(self) -> str:
        lines = ['backend: "python"', f"max_batch_size: {self.max_batch_size}"]
        lines += [f"input {tensor.config()}" for tensor in self.inputs]
        lines += [f"output {tensor.config()}" for tensor in self.outputs]
        return "\n".join([*lines, self.extra]) + "\n"


def _echo(
    name: str,
    tensors: list[tuple[str, str, tuple[int, ...]]],
    max_batch_size: int = 0,
    is_optional: bool = False,
    extra: str = "",
    tensor_extra: str = "",
    versions: tuple[int, ...] = (1,),
) -> ModelSpec:
    """A model that gives back each `IN<suffix>` as `OUT<suffix>`."""
    return ModelSpec(
        name=name,
        code="echo.py",
        inputs=tuple(
            TensorSpec("IN" + suffix, datatype, dims, is_optional, tensor_extra) for suffix, datatype, dims in tensors
        ),
        outputs=tuple(
            TensorSpec("OUT" + suffix, datatype, dims, extra=tensor_extra) for suffix, datatype, dims in tensors
        ),
        max_batch_size=max_batch_size,
        extra=extra,
        versions=versions,
    )


IDENT = ModelSpec(
    name="ident",
    code="echo.py",
    inputs=(TensorSpec("IN0", "FP32", (16,)),),
    outputs=(TensorSpec("OUT0", "FP32", (16,), extra='label_filename: "labels.txt"'),),
    max_batch_size=8,
    extra="dynamic_batching { preferred_batch_size: [ 4, 8 ] max_queue_delay_microseconds: 100 }",
)
LABELS = ("zero", "one", "two", "three", "four with blanks")

TYPES = _echo("types", [("_" + datatype, datatype, (-1,)) for datatype in CONFIG_TYPES], is_optional=True)

TYPES_BATCHED = _echo(
    "types_batched",
    [("_" + datatype, datatype, (2,)) for datatype in CONFIG_TYPES if datatype != "BF16"],
    max_batch_size=4,
    is_optional=True,
)

ADD_SUB = ModelSpec(
    name="add_sub",
    code="add_sub.py",
    inputs=(TensorSpec("INPUT0", "INT32", (4,)), TensorSpec("INPUT1", "INT32", (4,))),
    outputs=(TensorSpec("OUTPUT0", "INT32", (4,)), TensorSpec("OUTPUT1", "INT32", (4,))),
    extra='instance_group { count: 2 kind: KIND_CPU }\nparameters { key: "k" value { string_value: "v" } }',
)

MATRIX = _echo("matrix", [("_A", "FP64", (-1, 3)), ("_B", "INT64", (2, -1, -1)), ("_C", "BYTES", (-1, 2))])

RAGGED = _echo(
    "variable_batched",
    [("0", "FP32", (-1,))],
    max_batch_size=6,
    extra="dynamic_batching { default_queue_policy { max_queue_size: 50 } }",
)

TEXT = _echo("text", [("0", "BYTES", (1,))])
TEXT_BATCHED = _echo("text_batched", [("0", "BYTES", (1,))], max_batch_size=3)

RESHAPED = _echo(
    "reshaped", [("0", "FP32", (1,)), ("1", "INT32", (4,))], max_batch_size=4, extra="version_policy { all {} }"
)

SCALAR = _echo("scalar", [("0", "UINT16", (1,))], max_batch_size=4, tensor_extra="reshape { shape: [ ] }")

VERSIONS = _echo("versions", [("0", "INT16", (2,))], extra="version_policy { all {} }", versions=(1, 3))

FAILING = ModelSpec(
    name="failing",
    code="failing.py",
    inputs=(TensorSpec("CODE", "INT32", (1,)),),
    outputs=(TensorSpec("OUT", "INT32", (1,)),),
    max_batch_size=4,
)

# The values of CODE that `models/failing.py` knows.
FAILING_CODES = range(30)

REQUEST_VIEW = ModelSpec(
    name="request_view",
    code="request_view.py",
    inputs=(TensorSpec("A", "INT32", (-1,), True), TensorSpec("B", "BYTES", (-1,), True)),
    outputs=(TensorSpec("VIEW", "BYTES", (-1,)), TensorSpec("ARGS", "BYTES", (1,))),
    extra='metric_tags { key: "team" value: "blue" }',
)

AUTO = ModelSpec(
    name="auto",
    code="auto.py",
    inputs=(TensorSpec("IN", "INT32", (2, -1)), TensorSpec("IN_EXTRA", "BYTES", (1,), True)),
    outputs=(TensorSpec("OUT", "INT32", (2, -1)),),
    max_batch_size=4,
    has_config=False,
)

DECOUPLED = ModelSpec(
    name="decoupled",
    code="decoupled.py",
    inputs=(TensorSpec("PLAN", "BYTES", (1,)),),
    outputs=(TensorSpec("INDEX", "INT32", (1,)), TensorSpec("STEP", "BYTES", (1,))),
    extra="model_transaction_policy { decoupled: true }",
)

# Only the scenario that counts statistics sends to this one.
COUNTED = ModelSpec(
    name="counted",
    code="failing.py",
    inputs=FAILING.inputs,
    outputs=FAILING.outputs,
    max_batch_size=4,
    extra="dynamic_batching {}",
)

MODELS = (
    IDENT,
    TYPES,
    TYPES_BATCHED,
    ADD_SUB,
    MATRIX,
    RAGGED,
    TEXT,
    TEXT_BATCHED,
    RESHAPED,
    SCALAR,
    VERSIONS,
    FAILING,
    REQUEST_VIEW,
    AUTO,
    DECOUPLED,
    COUNTED,
)

BROKEN_CONFIG = 'backend: "python"\nmax_batch_size: 4\nno_such_field: 1\n'


def build(folder: pathlib.Path) -> None:
    """Write the repository into an empty folder."""
    for model in MODELS:
        add_model(folder, model)
    _write_model(folder / "broken_config", "echo.py", BROKEN_CONFIG)
    _write_model(folder / "broken_initialize", "unloadable.py", FAILING.config_text())


def add_model(folder: pathlib.Path, model: ModelSpec) -> None:
    """Write one model into a repository."""
    _write_model(folder / model.name, model.code, model.config_text() if model.has_config else None, model.versions)
    if model is IDENT:
        (folder / model.name / "labels.txt").write_text("\n".join(LABELS) + "\n")


def _write_model(folder: pathlib.Path, code: str, config: str | None, versions: tuple[int, ...] = (1,)) -> None:
    for version in versions:
        (folder / str(version)).mkdir(parents=True)
        shutil.copyfile(CODE_FOLDER / code, folder / str(version) / "model.py")
    if config is not None:
        (folder / "config.pbtxt").write_text(config)
