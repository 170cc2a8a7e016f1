"""Ensembles of Python models, and what is asked of them: written down for what can go wrong, and graphs at random."""

import json
import pathlib
import random
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.oracle.cases import Case, GrpcCase, HttpCase

CODE = pathlib.Path(__file__).parent / "models" / "ensembles"

Tensor = tuple[str, str, str]
"""Name, type, and dims as they stand in a configuration."""

Step = tuple[str, dict[str, str], dict[str, str]]


def _int32(name: str, dims: str = "-1", extra: str = "") -> Tensor:
    return name, "INT32", f"[ {dims} ] {extra}"


def _tensors(kind: str, tensors: Sequence[Tensor]) -> str:
    return "".join(
        f'{kind} {{ name: "{name}" data_type: TYPE_{type_} dims: {dims} }}\n' for name, type_, dims in tensors
    )


@dataclass(frozen=True, slots=True)
class Ensemble:
    """One ensemble; `inputs` and `outputs` are its own tensors."""

    name: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    steps: tuple[Step, ...]
    max_batch_size: int = 0

    def config(self) -> str:
        text = f'platform: "ensemble"\nmax_batch_size: {self.max_batch_size}\n'
        text += _tensors("input", self.inputs) + _tensors("output", self.outputs) + "ensemble_scheduling {\n"
        for model, inputs, outputs in self.steps:
            text += f'  step {{ model_name: "{model}" model_version: -1\n'
            text += "".join(f'    input_map {{ key: "{key}" value: "{value}" }}\n' for key, value in inputs.items())
            text += "".join(f'    output_map {{ key: "{key}" value: "{value}" }}\n' for key, value in outputs.items())
            text += "  }\n"
        return text + "}\n"


_SUM = [_int32("A"), _int32("B", extra="optional: true")]
# Model, the file with its code, its inputs and outputs, and more of its configuration.
MODELS: tuple[tuple[str, str, list[Tensor], list[Tensor], str], ...] = (
    ("sum", "sum.py", _SUM, [_int32("SUM")], ""),
    (
        "sum_batched",
        "sum.py",
        [_int32("A", "2"), _int32("B", "2", "optional: true")],
        [_int32("SUM", "2")],
        "max_batch_size: 8 dynamic_batching { }",
    ),
    ("view", "view.py", _SUM, [("VIEW", "STRING", "[ 1 ]")], ""),
    ("empty", "empty.py", _SUM, [_int32("SUM")], ""),
    ("refuse", "refuse.py", _SUM, [_int32("SUM")], ""),
    ("count", "count.py", [_int32("A", "1")], [_int32("SUM", "1")], "model_transaction_policy { decoupled: true }"),
)

_X, _Z = (_int32("X"),), (_int32("Z"),)


def _one(name: str, model: str) -> Ensemble:
    return Ensemble(name, _X, _Z, ((model, {"A": "X"}, {"SUM": "Z"}),))


ENSEMBLES: tuple[Ensemble, ...] = (
    Ensemble("two", _X, _Z, (("sum", {"A": "X", "B": "X"}, {"SUM": "Y"}), ("sum", {"A": "Y", "B": "X"}, {"SUM": "Z"}))),
    Ensemble("viewed", _X, (("V", "STRING", "[ 1 ]"),), (("view", {"A": "X"}, {"VIEW": "V"}),)),
    _one("nothing", "empty"),
    Ensemble("less", _X, _Z, (("empty", {"A": "X"}, {"SUM": "Y"}), ("sum", {"A": "X", "B": "Y"}, {"SUM": "Z"}))),
    _one("refused", "refuse"),
    Ensemble(
        "refused_inside", _X, _Z, (("refused", {"X": "X"}, {"Z": "Y"}), ("sum", {"A": "Y", "B": "X"}, {"SUM": "Z"}))
    ),
    Ensemble(
        "one_of_two",
        _X,
        (_int32("Z"), _int32("Q")),
        (("refuse", {"A": "X"}, {"SUM": "Z"}), ("sum", {"A": "X", "B": "X"}, {"SUM": "Q"})),
    ),
    Ensemble(
        "optional",
        (_int32("X"), _int32("O", extra="optional: true")),
        _Z,
        (("sum", {"A": "X", "B": "O"}, {"SUM": "Z"}),),
    ),
    Ensemble("nested", _X, _Z, (("two", {"X": "X"}, {"Z": "Y"}), ("sum", {"A": "Y", "B": "X"}, {"SUM": "Z"}))),
    Ensemble("batched", (_int32("X", "2"),), (_int32("Z", "2"),), (("sum_batched", {"A": "X"}, {"SUM": "Z"}),), 4),
    Ensemble("batch_of_one", (_int32("X", "2"),), (_int32("Z", "2"),), (("sum_batched", {"A": "X"}, {"SUM": "Z"}),)),
    Ensemble(
        "batch_as_dim", (_int32("X", "-1, 2"),), (_int32("Z", "-1, 2"),), (("sum_batched", {"A": "X"}, {"SUM": "Z"}),)
    ),
    Ensemble("rows_one_by_one", (_int32("X"),), (_int32("Z"),), (("sum", {"A": "X"}, {"SUM": "Z"}),), 4),
    Ensemble(
        "counted", (_int32("X", "1"),), _Z, (("count", {"A": "X"}, {"SUM": "Y"}), ("sum", {"A": "Y"}, {"SUM": "Z"}))
    ),
    Ensemble(
        "counted_twice",
        (_int32("X", "1"),),
        (_int32("Z", "1"),),
        (("count", {"A": "X"}, {"SUM": "Y"}), ("count", {"A": "Y"}, {"SUM": "Z"})),
    ),
)

# What does not fit together, or contains itself: loads of these fail.
UNLOADABLE: tuple[Ensemble, ...] = (
    Ensemble("no_model", _X, _Z, (("nowhere", {"A": "X"}, {"SUM": "Z"}),)),
    Ensemble("no_input", _X, _Z, (("sum", {"A": "X", "C": "X"}, {"SUM": "Z"}),)),
    Ensemble("no_output", _X, _Z, (("sum", {"A": "X"}, {"TOTAL": "Z"}),)),
    Ensemble("other_type", (("X", "FP32", "[ -1 ]"),), _Z, (("sum", {"A": "X"}, {"SUM": "Z"}),)),
    Ensemble("other_shape", (_int32("X", "3"),), _Z, (("sum_batched", {"A": "X"}, {"SUM": "Z"}),)),
    Ensemble("too_large", (_int32("X", "2"),), (_int32("Z", "2"),), (("sum_batched", {"A": "X"}, {"SUM": "Z"}),), 16),
    Ensemble("left_out", _X, _Z, (("sum", {"B": "X"}, {"SUM": "Z"}),)),
    Ensemble("circle_a", _X, _Z, (("circle_b", {"X": "X"}, {"Z": "Z"}),)),
    Ensemble("circle_b", _X, _Z, (("circle_a", {"X": "X"}, {"Z": "Z"}),)),
    Ensemble(
        "mixed",
        (_int32("X", "1"),),
        _Z,
        (("count", {"A": "X"}, {"SUM": "Y"}), ("sum", {"A": "Y", "B": "X"}, {"SUM": "Z"})),
    ),
    Ensemble(
        "mixed_outputs",
        (_int32("X", "1"),),
        (_int32("Y", "1"), _int32("Z")),
        (("count", {"A": "X"}, {"SUM": "Y"}), ("sum", {"A": "X"}, {"SUM": "Z"})),
    ),
)


def random_ensembles(seed: int, count: int = 12) -> Iterator[Ensemble]:
    """Graphs of sums: any shape of graph, tensors read several times, outputs that are read as well."""
    for number in range(count):
        rng = random.Random(f"{seed}/ensemble/{number}")
        tensors = ["X", "Y"]
        steps: list[Step] = []
        for index in range(rng.randint(1, 7)):
            inputs = {"A": rng.choice(tensors)}
            if rng.random() < 0.7:
                inputs["B"] = rng.choice(tensors)
            made = f"T{index}"
            steps.append(("sum", inputs, {"SUM": made}))
            tensors.append(made)
        read = {name for _, inputs, _ in steps for name in inputs.values()}
        outputs = [name for name in tensors[2:] if name not in read or rng.random() < 0.3]
        inputs = [name for name in ("X", "Y") if name in read]
        rng.shuffle(steps)
        yield Ensemble(
            f"random_{number}",
            tuple(_int32(name) for name in inputs),
            tuple(_int32(name) for name in outputs),
            tuple(steps),
        )


def build(folder: pathlib.Path, seed: int) -> list[str]:
    """Write the repository; returns the names of the models that can be loaded."""
    for name, code, inputs, outputs, extra in MODELS:
        (folder / name / "1").mkdir(parents=True)
        shutil.copyfile(CODE / code, folder / name / "1" / "model.py")
        text = f'backend: "python"\n{_tensors("input", inputs)}{_tensors("output", outputs)}{extra}\n'
        (folder / name / "config.pbtxt").write_text(text)
    loadable = (*ENSEMBLES, *random_ensembles(seed))
    for ensemble in (*loadable, *UNLOADABLE):
        (folder / ensemble.name / "1").mkdir(parents=True)
        (folder / ensemble.name / "config.pbtxt").write_text(ensemble.config())
    return [*(name for name, *_ in MODELS), *(ensemble.name for ensemble in loadable)]


def infer(model: str, inputs: dict[str, tuple[list[int], list[int]]], label: str = "", **fields: Any) -> HttpCase:
    tensors = [
        {"name": name, "datatype": "INT32", "shape": shape, "data": data} for name, (shape, data) in inputs.items()
    ]
    body = json.dumps({"inputs": tensors, **fields}).encode()
    return HttpCase(f"ensembles/{model}/{label}", "POST", f"/v2/models/{model}/infer", body=body)


def stream(model: str, value: int) -> GrpcCase:
    """One request on a stream of its own; the end of its responses is not asked for, which is a matter of timing."""
    request = pb.ModelInferRequest(model_name=model, id="s")
    request.inputs.add(name="X", datatype="INT32", shape=[1]).contents.int_contents.append(value)
    method = "/inference.GRPCInferenceService/ModelStreamInfer"
    name = f"ensembles/{model}/{value}"
    return GrpcCase(name, method, (request.SerializeToString(),), str(request), is_stream=True)


def _x(*data: int) -> dict[str, tuple[list[int], list[int]]]:
    return {"X": ([len(data)], list(data))}


def listed_cases() -> list[Case]:
    """The written ones."""
    cases: list[Case] = [
        infer("two", _x(1, 2), "plain", id="r"),
        infer("two", _x(), "no elements"),
        infer("two", _x(1), "sequence", parameters={"sequence_id": 5, "sequence_start": True, "sequence_end": True}),
        infer("two", {}, "no inputs"),
        infer("two", {"W": ([1], [1])}, "wrong name"),
        infer("two", _x(1), "wrong output", outputs=[{"name": "Y"}]),
        infer("two", {"X": ([1, 1], [1])}, "wrong shape"),
        infer("viewed", _x(1, 2), "plain", id="r"),
        infer(
            "viewed",
            _x(1),
            "all",
            id="r",
            parameters={"sequence_id": 5, "sequence_start": True, "timeout": 77, "foo": "bar", "n": 3, "b": True},
        ),
        infer("viewed", _x(1), "text", parameters={"sequence_id": "abc", "sequence_end": True}),
        infer("nothing", _x(1), "plain", id="q"),
        infer("less", _x(1, 2), "plain"),
        infer("one_of_two", _x(4), "both"),
        infer("one_of_two", _x(4), "the good one", outputs=[{"name": "Q"}]),
        infer("one_of_two", _x(4), "the bad one", outputs=[{"name": "Z"}]),
        infer("optional", _x(1, 2), "without"),
        infer("optional", {**_x(1, 2), "O": ([2], [5, 6])}, "with"),
        infer("optional", {"O": ([2], [5, 6])}, "only"),
        infer("nested", _x(1, 2), "plain"),
        infer("batched", {"X": ([2, 2], [1, 2, 3, 4])}, "2"),
        infer("batched", {"X": ([5, 2], [1] * 10)}, "5"),
        infer("batched", {"X": ([2], [1, 2])}, "no batch"),
        infer("batch_of_one", _x(1, 2), "plain"),
        infer("batch_as_dim", {"X": ([3, 2], [1] * 6)}, "3"),
        infer("batch_as_dim", {"X": ([9, 2], [1] * 18)}, "9"),
        infer("rows_one_by_one", {"X": ([1, 2], [1, 2])}, "1"),
        infer("rows_one_by_one", {"X": ([2, 2], [1, 2, 3, 4])}, "2"),
        infer("counted", _x(3), "http"),
    ]
    for model in ("refused", "refused_inside"):
        cases += [infer(model, _x(code), str(code)) for code in range(9)]
    cases += [stream(model, value) for model in ("counted", "counted_twice") for value in (0, 1, 3)]
    for ensemble in (*ENSEMBLES, *UNLOADABLE):
        for what in ("", "/config", "/ready"):
            cases.append(HttpCase(f"ensembles/{ensemble.name}{what}", "GET", f"/v2/models/{ensemble.name}{what}"))
    return cases


def random_cases(seed: int) -> list[Case]:
    """Requests to the random graphs, for all or some of the outputs."""
    cases: list[Case] = []
    for ensemble in random_ensembles(seed):
        rng = random.Random(f"{seed}/{ensemble.name}")
        for index in range(4):
            length = rng.randint(1, 4)
            inputs = {name: ([length], [rng.randint(-99, 99) for _ in range(length)]) for name, _, _ in ensemble.inputs}
            names = [name for name, _, _ in ensemble.outputs]
            wanted = rng.sample(names, rng.randint(1, len(names)))
            fields = {} if index == 0 or len(names) == 1 else {"outputs": [{"name": name} for name in wanted]}
            cases.append(infer(ensemble.name, inputs, str(index), **fields))
    return cases


def load_cases() -> list[Case]:
    """What the load API says of those that cannot be loaded."""
    return [
        HttpCase(f"ensembles/load/{ensemble.name}", "POST", f"/v2/repository/models/{ensemble.name}/load", body=b"{}")
        for ensemble in UNLOADABLE
        # Loaded after the other half of its circle, the real one only says that no version is available.
        if ensemble.name != "circle_b"
    ]


def statistics_cases() -> list[Case]:
    """What all that was counted as; but for failures of ensembles, which the real one counts twice."""
    names = [name for name, *_ in MODELS if name != "sum"] + ["two", "viewed", "nested", "batched"]
    return [HttpCase(f"ensembles/statistics/{name}", "GET", f"/v2/models/{name}/stats") for name in names]
