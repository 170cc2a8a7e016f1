"""Python models under the real Triton and under merrow: the examples of the documentation, and all that models can ask.

The models run in explicit mode, so that they can control one another. What differs must be in the list of differences.
"""

import ast
import contextlib
import http.client
import json
import pathlib
import shutil
from collections.abc import Iterator

import pytest

from tests.oracle import python_backend_cases, real_triton
from tests.oracle.availability import install_or_skip
from tests.oracle.comparison import describe, differences
from tests.oracle.differences import explanation
from tests.oracle.server_process import (
    ADDRESS,
    ServerProcess,
    ServerStartError,
    start_merrow,
    start_real_triton,
)
from tests.oracle.suite import Peer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

MODELS = pathlib.Path(__file__).parent / "models" / "python_backend"
NAMES = sorted(folder.name for folder in MODELS.iterdir() if folder.is_dir())


# What the real module shows of its own workings.
NOT_FOR_MODELS = {"SharedMemory", "async_event_future_done_callback", "shared_memory"}

# How the real server's Python backend ends it on a machine with much to do.
OVERLOADED = "boost::interprocess::lock_exception"
START_ATTEMPTS = 4

Pair = tuple[ServerProcess, ServerProcess]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    install_or_skip(real_triton.install)
    folder = tmp_path_factory.mktemp("python")
    models = folder / "models"
    shutil.copytree(MODELS, models, ignore=shutil.ignore_patterns("__pycache__"))
    options = ("--model-control-mode=explicit", "--load-model=*")
    with started_triton(models, folder / "triton.log", *options, "--exit-timeout-secs=1") as triton:
        # Not at the same time: the real one is sensitive to load.
        with start_merrow(models, folder / "merrow.log", *options) as merrow:
            merrow.wait_until_live()
            merrow.wait_until_models_ready(NAMES)
            yield triton, merrow


def started_triton(models: pathlib.Path, log: pathlib.Path, *options: str) -> ServerProcess:
    """The real server with all models; it is started again where it ends in its known way."""
    for attempt in range(START_ATTEMPTS):
        triton = start_real_triton(models, log, *options)
        with skipped_if_overloaded(triton) if attempt == START_ATTEMPTS - 1 else contextlib.nullcontext():
            try:
                triton.wait_until_live()
                triton.wait_until_models_ready(NAMES, timeout_seconds=40)
                return triton
            except ServerStartError:
                triton.stop()
                if attempt == START_ATTEMPTS - 1 or OVERLOADED not in log.read_text(errors="replace"):
                    raise
    raise AssertionError("the last attempt returns or raises")


@pytest.fixture
def peers(pair: Pair) -> Iterator[list[Peer]]:
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(contextlib.closing(Peer(each.name, ADDRESS, each.ports.http, each.ports.grpc)))
            for each in pair
        ]


@contextlib.contextmanager
def skipped_if_overloaded(triton: ServerProcess) -> Iterator[None]:
    """What cannot be asked because the real server has ended in its known way proves nothing."""
    try:
        yield
    except (OSError, ServerStartError):
        if OVERLOADED not in triton.log.read_text(errors="replace"):
            raise
        pytest.skip(f"the real server ended by itself: {OVERLOADED}")


@pytest.mark.parametrize("group", python_backend_cases.GROUPS)
def test_python_models_answer_the_same(pair: Pair, peers: list[Peer], group: str):
    found = []
    with skipped_if_overloaded(pair[0]):
        for case in python_backend_cases.GROUPS[group]:
            theirs, ours = (peer.exchange(case) for peer in peers)
            if (problems := differences(case, theirs, ours)) and explanation(case, theirs, ours) is None:
                found.append("\n  ".join([case.describe(), *problems, f"theirs: {describe(case, theirs)}"]))
        # Streams end with a status where the server is gone.
        if pair[0].process.poll() is not None:
            raise ServerStartError(pair[0].log_tail())

    assert not found, "\n".join([f"{len(found)} differences", *found])


def test_models_find_every_public_name_of_the_real_module(pair: Pair, peers: list[Peer]):
    case = python_backend_cases.probe(python_backend_cases.PUBLIC_NAMES)
    with skipped_if_overloaded(pair[0]):
        theirs, ours = (
            ast.literal_eval(json.loads(peer.exchange(case).body)["outputs"][0]["data"][0]) for peer in peers
        )

    assert set(theirs) == set(ours)
    missing = {name: set(theirs[name]) - set(ours[name]) - NOT_FOR_MODELS for name in theirs}
    assert {name: names for name, names in missing.items() if names} == {}


def test_custom_metrics_are_shown_the_same(pair: Pair):
    """The same was measured on both by the other tests."""
    with skipped_if_overloaded(pair[0]):
        theirs, ours = (
            [line for line in metrics_of(each) if "requests_processed" in line or "last_amount" in line]
            for each in pair
        )

    assert theirs
    assert theirs == ours


def metrics_of(server: ServerProcess) -> list[str]:
    connection = http.client.HTTPConnection(ADDRESS, server.ports.metrics, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return sorted(connection.getresponse().read().decode().splitlines())
