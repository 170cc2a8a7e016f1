"""Python models under the real Triton and under merrow: the examples of the documentation, and all that models can ask.

The models run in explicit mode, so that they can control one another. What differs must be in the list of differences.
"""

import ast
import contextlib
import http.client
import json
import pathlib
import shutil
from collections.abc import Callable, Iterator
from typing import TypeVar

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
ATTEMPTS = 4

Answer = TypeVar("Answer")


class Servers:
    """Both servers with all models. The real one, which now and then ends by itself, is started again with ours."""

    def __init__(self, folder: pathlib.Path) -> None:
        self._folder = folder
        self._models = folder / "models"
        shutil.copytree(MODELS, self._models, ignore=shutil.ignore_patterns("__pycache__"))
        self._running: list[ServerProcess] = []

    def ask(self, question: Callable[[list[ServerProcess], list[Peer]], Answer]) -> Answer:
        """What a test finds out of both servers; it asks from the beginning if the real one ends meanwhile.

        Servers that were started for one question do not outlive it: a test leaves no processes behind.
        """
        for _ in range(ATTEMPTS):
            is_only_for_this = not self._running
            try:
                self.start()
                with contextlib.ExitStack() as stack:
                    peers = [stack.enter_context(contextlib.closing(_peer_of(each))) for each in self._running]
                    answer = question(self._running, peers)
                # Streams end with a status where the server is gone.
                if self._running[0].process.poll() is None:
                    return answer
                is_only_for_this = True
            except (OSError, ServerStartError):
                is_only_for_this = True
                if not self.has_crashed():
                    raise
            finally:
                if is_only_for_this:
                    self.stop()
        pytest.skip(f"the real server ended by itself, {ATTEMPTS} times: {OVERLOADED}")

    def has_crashed(self) -> bool:
        """Whether the real server has ended in its known way."""
        return OVERLOADED in (self._folder / "triton.log").read_text(errors="replace")

    def start(self) -> None:
        """Start what does not run.

        Raises:
            ServerStartError: a server did not become ready.
        """
        if self._running:
            return
        options = ("--model-control-mode=explicit", "--load-model=*", "--exit-timeout-secs=1")
        # Not at the same time: the real one is sensitive to load.
        for start, log in ((start_real_triton, "triton.log"), (start_merrow, "merrow.log")):
            server = start(self._models, self._folder / log, *options)
            self._running.append(server)
            server.wait_until_live()
            server.wait_until_models_ready(NAMES, timeout_seconds=60)

    def stop(self) -> None:
        while self._running:
            self._running.pop().stop()


def _peer_of(server: ServerProcess) -> Peer:
    return Peer(server.name, ADDRESS, server.ports.http, server.ports.grpc)


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    install_or_skip(real_triton.install)
    both = Servers(tmp_path_factory.mktemp("python"))
    try:
        both.start()
    except ServerStartError:
        both.stop()
        # The tests try again.
        if not both.has_crashed():
            raise
    yield both
    both.stop()


@pytest.mark.parametrize("group", python_backend_cases.GROUPS)
def test_python_models_answer_the_same(servers: Servers, group: str):
    def ask(_: list[ServerProcess], peers: list[Peer]) -> list[str]:
        found = []
        for case in python_backend_cases.GROUPS[group]:
            theirs, ours = (peer.exchange(case) for peer in peers)
            if (problems := differences(case, theirs, ours)) and explanation(case, theirs, ours) is None:
                found.append("\n  ".join([case.describe(), *problems, f"theirs: {describe(case, theirs)}"]))
        return found

    found = servers.ask(ask)
    assert not found, "\n".join([f"{len(found)} differences", *found])


def test_models_find_every_public_name_of_the_real_module(servers: Servers):
    case = python_backend_cases.probe(python_backend_cases.PUBLIC_NAMES)

    def ask(_: list[ServerProcess], peers: list[Peer]) -> list[dict[str, list[str]]]:
        return [ast.literal_eval(json.loads(peer.exchange(case).body)["outputs"][0]["data"][0]) for peer in peers]

    theirs, ours = servers.ask(ask)

    assert set(theirs) == set(ours)
    missing = {name: set(theirs[name]) - set(ours[name]) - NOT_FOR_MODELS for name in theirs}
    assert {name: names for name, names in missing.items() if names} == {}


def test_custom_metrics_are_shown_the_same(servers: Servers):
    def ask(running: list[ServerProcess], peers: list[Peer]) -> list[list[str]]:
        # Both have counted the same before, or nothing.
        for case in python_backend_cases.GROUPS["examples"]:
            for peer in peers:
                peer.exchange(case)
        return [
            [line for line in metrics_of(each) if "requests_processed" in line or "last_amount" in line]
            for each in running
        ]

    theirs, ours = servers.ask(ask)

    assert theirs
    assert theirs == ours


def metrics_of(server: ServerProcess) -> list[str]:
    connection = http.client.HTTPConnection(ADDRESS, server.ports.metrics, timeout=10)
    with contextlib.closing(connection):
        connection.request("GET", "/metrics")
        return sorted(connection.getresponse().read().decode().splitlines())
