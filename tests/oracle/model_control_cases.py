"""Lives of models in explicit mode: scripts of loads, unloads and changes on the disk, to be put to two servers.

A step changes the repository, which both servers read, or is a request to each. After each step everything that a
client can see of the models is asked for. Random scripts are made from a seed; those that are written down tell one
story each.
"""

import base64
import json
import pathlib
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from google.protobuf.message import Message
from tritonclient.grpc import service_pb2 as pb

from tests.oracle.cases import Case, HttpCase
from tests.oracle.differences import Difference
from tests.oracle.grpc_cases import unary

CODE = pathlib.Path(__file__).parent / "models" / "echo.py"
MODELS = ("a", "b", "low", "high", "other", "broken", "absent")
# What an ensemble is made of.
STEPS = {"low": ("a", "b"), "high": ("low", "a"), "other": ("b", "absent")}
TENSORS = 'input {{ name: "IN0" data_type: TYPE_FP32 dims: [ 2 ] }}\noutput {{ name: "OUT0" {output} dims: [ 2 ] }}\n'
GOOD_OUTPUT = "data_type: TYPE_FP32"


DIFFERENCES: tuple[Difference, ...] = (
    Difference(
        "Which of several composing models that do not suit is named depends on the order of addresses.",
        cases="load ",
        theirs="ensemble '.*' depends on '.*' which (has no loaded version|is not valid)|but it contains model",
        ours="ensemble '.*' depends on '.*' which (has no loaded version|is not valid)|but it contains model",
    ),
    Difference(
        "2.51 does not count a composing model as missing that somebody has tried to load.",
        cases="load ",
        theirs="contains models that are not available or ambiguous",
        ours="contains models that are not available or ambiguous",
    ),
    Difference(
        "Loading an ensemble that cannot be loaded a second time is a success of 2.51, if its own files are the same.",
        cases="load ",
        theirs="^(200 OK|OK|500 .*failed to poll from|INTERNAL .*failed to poll from)",
        ours="load failed for model '.*': (ensemble|circular)",
    ),
    Difference(
        "2.51 remembers the failed reload of a model beyond its unloading, which then counts as a model that failed.",
        cases="^state/ready$",
        theirs="^400 Bad Request ",
        ours="^200 OK ",
    ),
)
"""The differences that only lives of models show; see `tests.oracle.differences`."""


@dataclass(frozen=True, slots=True)
class Step:
    """One thing that happens: a change on the disk (`change`), then requests to both servers."""

    text: str
    cases: tuple[Case, ...] = ()
    change: Callable[[pathlib.Path], None] | None = None


def write_repository(folder: pathlib.Path) -> None:
    """The models as they are at first."""
    for name in ("a", "b"):
        write_model(folder, name)
    for name in STEPS:
        write_ensemble(folder, name)
    write_model(folder, "broken", output="")


def write_model(
    folder: pathlib.Path, name: str, max_batch_size: int = 4, output: str = GOOD_OUTPUT, versions: Sequence[int] = (1,)
) -> None:
    """A Python model that gives back what it gets; without the type of its output it cannot be loaded."""
    for version in versions:
        (folder / name / str(version)).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(CODE, folder / name / str(version) / "model.py")
    text = f'backend: "python"\nmax_batch_size: {max_batch_size}\n{TENSORS.format(output=output)}'
    (folder / name / "config.pbtxt").write_text(text + "version_policy { latest { num_versions: 2 } }\n")


def write_ensemble(folder: pathlib.Path, name: str) -> None:
    (folder / name / "1").mkdir(parents=True, exist_ok=True)
    tensors = ["IN0", "t", "OUT0"]
    steps = "".join(
        f'step {{ model_name: "{model}" model_version: -1 '
        f'input_map {{ key: "IN0" value: "{tensors[index]}" }} '
        f'output_map {{ key: "OUT0" value: "{tensors[index + 1]}" }} }}\n'
        for index, model in enumerate(STEPS[name])
    )
    text = f'platform: "ensemble"\nmax_batch_size: 4\n{TENSORS.format(output=GOOD_OUTPUT)}'
    (folder / name / "config.pbtxt").write_text(f"{text}ensemble_scheduling {{\n{steps}}}\n")


def remove_model(folder: pathlib.Path, name: str) -> None:
    shutil.rmtree(folder / name, ignore_errors=True)


def visible() -> Iterator[Case]:
    """Requests for all that can be seen of the models."""
    yield HttpCase("state/index", "POST", "/v2/repository/index")
    yield HttpCase("state/ready index", "POST", "/v2/repository/index", body=b'{"ready":true}')
    yield unary("state/grpc index", "RepositoryIndex", pb.RepositoryIndexRequest())
    yield HttpCase("state/ready", "GET", "/v2/health/ready")
    yield HttpCase("state/live", "GET", "/v2/health/live")
    for name in (*MODELS, "fresh"):
        yield HttpCase(f"state/{name}", "GET", f"/v2/models/{name}")
        yield HttpCase(f"state/{name} 1", "GET", f"/v2/models/{name}/versions/1")
        yield HttpCase(f"state/{name} statistics", "GET", f"/v2/models/{name}/stats")


INDEX = HttpCase("state/settled", "POST", "/v2/repository/index")


def load(name: str, parameters: dict[str, object] | None = None) -> Step:
    body = b"" if parameters is None else json.dumps({"parameters": parameters}).encode()
    case = HttpCase(f"load {name}", "POST", f"/v2/repository/models/{name}/load", body=body)
    return Step(f"load {name} {parameters or ''}"[:100], (case,))


def grpc_load(name: str, message: Message | None = None) -> Step:
    request = pb.RepositoryModelLoadRequest(model_name=name) if message is None else message
    return Step(f"load {name} over gRPC", (unary(f"grpc load {name}", "RepositoryModelLoad", request),))


def unload(name: str, parameters: dict[str, object] | None = None) -> Step:
    body = b"" if parameters is None else json.dumps({"parameters": parameters}).encode()
    case = HttpCase(f"unload {name}", "POST", f"/v2/repository/models/{name}/unload", body=body)
    return Step(f"unload {name} {parameters or ''}", (case,))


def override(max_batch_size: int, **changes: object) -> str:
    """A configuration as a load request brings it."""
    tensor = {"data_type": "TYPE_FP32", "dims": [2]}
    config = {
        "backend": "python",
        "max_batch_size": max_batch_size,
        "input": [{"name": "IN0", **tensor}],
        "output": [{"name": "OUT0", **tensor}],
    }
    return json.dumps({**config, **changes})


def random_script(seed: int, count: int) -> list[Step]:
    """So many steps, in any order."""
    rng = random.Random(f"{seed}/model control")
    return [rng.choice(_MAKERS)(rng) for _ in range(count)]


def told_scripts() -> dict[str, list[Step]]:
    """Stories with a point."""
    code = base64.b64encode(CODE.read_bytes()).decode()
    files = {"config": override(2), "file:3/model.py": code}
    return {
        "files": [
            load("a", files),
            load("a"),
            load("fresh", files),
            load("fresh"),
            load("fresh", {**files, "file:1/model.py": code}),
            unload("fresh"),
            load("fresh", {"config": override(2), "file:model.py": code}),
            load("fresh", {"config": override(2, name="stranger"), "file:1/model.py": code}),
            load("fresh", {"config": override(2), "file:../../model.py": code}),
            load("fresh", {"file:1/model.py": code}),
            grpc_load("fresh", _grpc_files()),
            unload("fresh"),
        ],
        "overrides": [
            load("a", {"config": override(2)}),
            load("a"),
            load("a", {"config": override(2)}),
            load("a", {"config": "{"}),
            load("a", {"config": '{"bogus":1}'}),
            load("a", {"config": override(2, output=[{"name": "OUT0", "dims": [2]}])}),
            load("a", {"config": override(8, version_policy={"specific": {"versions": [5]}})}),
            load("a", {"config": override(2), "other": "x"}),
            load("a", {"config": 5}),
            unload("a"),
            load("a"),
        ],
        "requests that are no requests": [
            Step(f"load with {body!r}", (HttpCase("load a", "POST", "/v2/repository/models/a/load", body=body),))
            for body in (b"[]", b"{", b"5", b'{"parameters":null}', b'{"parameters":[]}', b"{}")
        ]
        + [
            Step(f"unload with {body!r}", (HttpCase("unload a", "POST", "/v2/repository/models/a/unload", body=body),))
            for body in (b"[]", b'{"parameters":{"unload_dependents":"x"}}', b'{"parameters":{"x":1}}', b"{}")
        ]
        + [
            Step(
                "a repository is named",
                (
                    HttpCase("named load", "POST", "/v2/repository/r/models/a/load"),
                    HttpCase("named unload", "POST", "/v2/repository/r/models/a/unload"),
                    unary("load", "RepositoryModelLoad", pb.RepositoryModelLoadRequest(repository_name="r")),
                    unary("unload", "RepositoryModelUnload", pb.RepositoryModelUnloadRequest(repository_name="r")),
                ),
            ),
            load("nowhere"),
            unload("nowhere"),
            load("m%2Fn"),
        ],
        "ensembles": [
            load("high"),
            unload("b"),
            load("b"),
            unload("high", {"unload_dependents": True}),
            load("low"),
            unload("low"),
            load("high"),
            Step("a batches less", change=lambda folder: write_model(folder, "a", 2)),
            load("a"),
            Step("a batches again", change=lambda folder: write_model(folder, "a")),
            load("a"),
            Step("a cannot be loaded", change=lambda folder: write_model(folder, "a", output="")),
            load("a"),
            load("high"),
            load("other"),
            Step("what was missing comes", change=lambda folder: write_model(folder, "absent")),
            load("other"),
            Step("and goes", change=lambda folder: remove_model(folder, "absent")),
            load("other"),
            unload("absent"),
            unload("high", {"unload_dependents": True}),
        ],
    }


def _grpc_files() -> pb.RepositoryModelLoadRequest:
    request = pb.RepositoryModelLoadRequest(model_name="fresh")
    request.parameters["config"].string_param = override(1)
    request.parameters["file:7/model.py"].bytes_param = CODE.read_bytes()
    return request


def _some_load(rng: random.Random) -> Step:
    name = rng.choice(MODELS)
    return load(name) if rng.random() < 0.7 else grpc_load(name)


def _some_unload(rng: random.Random) -> Step:
    return unload(rng.choice(MODELS), {"unload_dependents": True} if rng.random() < 0.5 else None)


def _some_override(rng: random.Random) -> Step:
    # One that the ensembles suit: whether a model still counts as overridden when its directory is gone, 2.51 decides
    # in ways of its own.
    return load(rng.choice("ab"), {"config": override(rng.choice((4, 8)))})


def _some_change(rng: random.Random) -> Step:
    name, size = rng.choice(("a", "b", "absent")), rng.choice((2, 4, 4, 8))
    # A failed reload is a story of its own: 2.51 then takes the configuration that failed for the one in service.
    output = rng.choice((GOOD_OUTPUT, "")) if name == "absent" else GOOD_OUTPUT
    versions = rng.choice(((1,), (1,), (1, 2), (3,)))
    return Step(
        f"write {name} {size} {output!r} {versions}",
        change=lambda folder: write_model(folder, name, size, output, versions),
    )


def _some_removal(rng: random.Random) -> Step:
    name = rng.choice(("absent", "b"))
    return Step(f"remove {name}", change=lambda folder: remove_model(folder, name))


_MAKERS = (_some_load,) * 5 + (_some_unload,) * 3 + (_some_override,) + (_some_change,) * 3 + (_some_removal,)
