"""The lives of models in explicit mode: the same loads and unloads on both servers, and what can be seen after each.

MERROW_ORACLE_SEED makes another random script, MERROW_ORACLE_STEPS a longer one.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Iterator, Sequence

import pytest

from tests.oracle import model_control_cases, real_triton
from tests.oracle.availability import install_or_skip
from tests.oracle.cases import DEFAULT_SEED, Case
from tests.oracle.comparison import describe, differences
from tests.oracle.differences import DIFFERENCES, explanation
from tests.oracle.http_exchange import HttpReply
from tests.oracle.model_control_cases import INDEX, Step
from tests.oracle.server_process import ADDRESS, ServerProcess, start_merrow, start_real_triton
from tests.oracle.suite import Peer

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]

OPTIONS = ("--model-control-mode=explicit",)
RANDOM_STEP_COUNT = 15
SETTLE_SECONDS = 30


class Pair:
    """Both servers on one repository."""

    def __init__(self, triton: ServerProcess, merrow: ServerProcess, folder: pathlib.Path) -> None:
        self.folder = folder
        self.peers = [Peer(each.name, ADDRESS, each.ports.http, each.ports.grpc) for each in (triton, merrow)]

    def run(self, steps: Sequence[Step]) -> list[str]:
        """Do every step on both; returns an account of each unexplained difference."""
        found: list[str] = []
        for number, step in enumerate(steps):
            if step.change is not None:
                # The times of files must differ from those of the step before.
                time.sleep(0.02)
                step.change(self.folder)
            for case in step.cases:
                found += self._compare(case, f"step {number}, {step.text}")
            self._settle()
            for case in model_control_cases.visible():
                found += self._compare(case, f"after step {number}, {step.text}")
        return found

    def close(self) -> None:
        for peer in self.peers:
            peer.close()

    def _compare(self, case: Case, when: str) -> list[str]:
        theirs, ours = (peer.exchange(case) for peer in self.peers)
        found = differences(case, theirs, ours)
        known = (*DIFFERENCES, *model_control_cases.DIFFERENCES)
        if not found or explanation(case, theirs, ours, known) is not None:
            return []
        return ["\n  ".join([f"{when}: {case.name}", *found, f"theirs: {describe(case, theirs)}"])]

    def _settle(self) -> None:
        """Wait until nothing is being unloaded: when that ends depends on the processes of models."""
        deadline = time.monotonic() + SETTLE_SECONDS
        for peer in self.peers:
            while "UNLOADING" in _states(peer):
                assert time.monotonic() < deadline, f"{peer.name} does not unload"
                time.sleep(0.02)


def _states(peer: Peer) -> set[str]:
    reply = peer.exchange(INDEX)
    assert isinstance(reply, HttpReply)
    return {entry.get("state", "") for entry in json.loads(reply.body)}


@pytest.fixture
def pair(tmp_path: pathlib.Path) -> Iterator[Pair]:
    install_or_skip(real_triton.install)
    folder = tmp_path / "models"
    model_control_cases.write_repository(folder)
    with (
        start_real_triton(folder, tmp_path / "triton.log", *OPTIONS, "--exit-timeout-secs=1") as triton,
        start_merrow(folder, tmp_path / "merrow.log", *OPTIONS) as merrow,
    ):
        for server in (triton, merrow):
            server.wait_until_live()
        with contextlib.closing(Pair(triton, merrow, folder)) as pair:
            yield pair


@pytest.mark.parametrize("name", model_control_cases.told_scripts())
def test_both_servers_tell_the_same_story(name: str, pair: Pair):
    found = pair.run(model_control_cases.told_scripts()[name])
    if found:
        pytest.fail("\n\n".join([f"{len(found)} unexplained differences", *found[:8]]), pytrace=False)


def test_both_servers_live_the_same_life(pair: Pair):
    seed = int(os.environ.get("MERROW_ORACLE_SEED", DEFAULT_SEED))
    count = int(os.environ.get("MERROW_ORACLE_STEPS", RANDOM_STEP_COUNT))
    steps = model_control_cases.random_script(seed, count)
    found = pair.run(steps)
    if found:
        script = "\n".join(f"  {number}. {step.text}" for number, step in enumerate(steps))
        pytest.fail("\n\n".join([f"{len(found)} differences, seed {seed}\n{script}", *found[:8]]), pytrace=False)
