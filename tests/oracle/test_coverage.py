"""The suite asks about everything, and often enough."""

import pytest

from merrow.frontends.http.routes import Endpoint
from merrow.wire._generated import grpc_service_pb2
from tests.oracle.cases import DEFAULT_SEED
from tests.oracle.coverage import count_cases, format_counts

pytestmark = pytest.mark.slow

LEAST = 3000
# The metrics have a port of their own, with two documents that never agree.
NOT_ASKED = {Endpoint.METRICS}


@pytest.mark.parametrize("seed", [DEFAULT_SEED, 1])
def test_there_are_thousands_of_cases_over_all_endpoints(seed: int):
    counts = count_cases(seed)
    service = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]
    asked = {f"HTTP {endpoint.name}" for endpoint in Endpoint if endpoint not in NOT_ASKED}
    asked |= {f"gRPC {method.name}" for method in service.methods}

    print(format_counts(counts))
    assert counts.total() >= LEAST
    assert {name for name in asked if not counts[name]} == set()
