"""One server for all tests of the clients, with a few models of the oracle's repository.

`MERROW_CLIENTS_AGAINST=triton` runs the same tests against the real server, which shows that the tests are right.
"""

import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass

import pytest

from merrow.testing.running_server import RunningServer
from tests.oracle import repository
from tests.oracle.server_process import start_real_triton

MODELS = (
    repository.ADD_SUB,
    repository.FAILING,
    repository.IDENT,
    repository.REQUEST_VIEW,
    repository.TYPES,
    repository.VERSIONS,
)


@dataclass(frozen=True, slots=True)
class Endpoints:
    """Where the server listens, as the clients take it: `host:port`."""

    http: str
    grpc: str
    metrics: str


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoints]:
    folder = tmp_path_factory.mktemp("clients")
    models = folder / "models"
    for model in MODELS:
        repository.add_model(models, model)
    if os.environ.get("MERROW_CLIENTS_AGAINST") == "triton":
        yield from _real_triton(models, folder / "triton.log")
        return
    with RunningServer(models) as running:
        yield Endpoints(running.http_url, running.grpc_url, running.metrics_url)


def _real_triton(models: pathlib.Path, log: pathlib.Path) -> Iterator[Endpoints]:
    with start_real_triton(models, log, "--exit-timeout-secs=1") as running:
        running.wait_until_live()
        ports = running.ports
        yield Endpoints(*(f"127.0.0.1:{port}" for port in (ports.http, ports.grpc, ports.metrics)))
