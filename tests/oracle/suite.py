"""All groups of cases, and how one case is put to one server."""

from tests.oracle import grpc_cases, http_admin_cases, http_broken_cases, http_infer_cases
from tests.oracle.cases import Case, Group, HttpCase
from tests.oracle.comparison import Reply
from tests.oracle.grpc_exchange import GrpcConnection
from tests.oracle.http_exchange import HttpConnection

GROUPS: dict[str, Group] = {
    **http_admin_cases.GROUPS,
    **http_infer_cases.GROUPS,
    **http_broken_cases.GROUPS,
    **grpc_cases.GROUPS,
}


class Peer:
    """One of the two servers, as the suite talks to it."""

    def __init__(self, name: str, address: str, http_port: int, grpc_port: int) -> None:
        self.name = name
        self._http = HttpConnection(address, http_port)
        self._grpc = GrpcConnection(address, grpc_port)

    def exchange(self, case: Case) -> Reply:
        if isinstance(case, HttpCase):
            return self._http.exchange(case.encoded(), case.method)
        return self._grpc.exchange(case)

    def close(self) -> None:
        self._http.close()
        self._grpc.close()


def find_case(name: str, seed: int) -> Case:
    """The case of this name, made again from the seed."""
    group = name.rsplit("/", 1)[0]
    return next(case for case in GROUPS[group](seed) if case.name == name)
