"""Both servers, started once for the whole session on one model repository."""

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass, field

import pytest

from tests.oracle import real_triton, repository
from tests.oracle.availability import install_or_skip
from tests.oracle.cases import DEFAULT_SEED
from tests.oracle.differences import Difference
from tests.oracle.segments import Segments
from tests.oracle.server_process import ADDRESS, ServerProcess, start_merrow, start_real_triton
from tests.oracle.suite import Peer

# Two of the models cannot be loaded.
OPTIONS = ("--exit-on-error=false",)


@dataclass(slots=True)
class Servers:
    """The two that are compared, and what was found so far."""

    triton: ServerProcess
    merrow: ServerProcess
    seed: int
    # Of shared memory: the real server's key, and ours.
    keys: tuple[bytes, bytes]
    groups_done: set[str] = field(default_factory=set)
    used_differences: set[Difference] = field(default_factory=set)


@dataclass(frozen=True, slots=True)
class Peers:
    """One test's connections to both."""

    triton: Peer
    merrow: Peer
    servers: Servers


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Servers]:
    install_or_skip(real_triton.install)
    folder = tmp_path_factory.mktemp("oracle")
    models = folder / "models"
    repository.build(models)
    loadable = [model.name for model in repository.MODELS]
    with (
        # A client's open connection would make it wait at the end.
        start_real_triton(models, folder / "triton.log", *OPTIONS, "--exit-timeout-secs=1") as triton,
        start_merrow(models, folder / "merrow.log", *OPTIONS, "--allow-client-shm=true") as merrow,
        Segments("T") as their_segments,
        Segments("M") as our_segments,
    ):
        for server in (triton, merrow):
            server.wait_until_live()
            server.wait_until_models_ready(loadable)
        seed = int(os.environ.get("MERROW_ORACLE_SEED", DEFAULT_SEED))
        yield Servers(triton, merrow, seed, (their_segments.key, our_segments.key))


@pytest.fixture
def peers(servers: Servers) -> Iterator[Peers]:
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(contextlib.closing(Peer(one.name, ADDRESS, one.ports.http, one.ports.grpc, key)))
            for one, key in zip((servers.triton, servers.merrow), servers.keys, strict=True)
        ]
        yield Peers(*both, servers)
