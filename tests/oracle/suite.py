"""All groups of cases, and how one case is put to one server."""

from dataclasses import replace

from tests.oracle import (
    bad_input_cases,
    classification_cases,
    decoupled_cases,
    extension_cases,
    grpc_cases,
    http_admin_cases,
    http_broken_cases,
    http_infer_cases,
    shared_memory_cases,
)
from tests.oracle.cases import Case, Group, HttpCase
from tests.oracle.comparison import Reply
from tests.oracle.grpc_exchange import GrpcConnection
from tests.oracle.http_exchange import HttpConnection
from tests.oracle.segments import PLACEHOLDER

GROUPS: dict[str, Group] = {
    **http_admin_cases.GROUPS,
    **http_infer_cases.GROUPS,
    **http_broken_cases.GROUPS,
    **grpc_cases.GROUPS,
    **classification_cases.GROUPS,
    **decoupled_cases.GROUPS,
    **shared_memory_cases.GROUPS,
    **extension_cases.GROUPS,
    **bad_input_cases.GROUPS,
}


class Peer:
    """One of the two servers, as the suite talks to it."""

    def __init__(self, name: str, address: str, http_port: int, grpc_port: int, shared_memory_key: bytes = b"") -> None:
        self.name = name
        # Stands for the placeholder in cases about shared memory.
        self._key = shared_memory_key
        self._http = HttpConnection(address, http_port)
        self._grpc = GrpcConnection(address, grpc_port)

    def exchange(self, case: Case) -> Reply:
        if isinstance(case, HttpCase):
            reply = self._http.exchange(case.encoded().replace(PLACEHOLDER, self._key or PLACEHOLDER), case.method)
            return replace(reply, body=self._hide_key(reply.body))
        messages = tuple(message.replace(PLACEHOLDER, self._key or PLACEHOLDER) for message in case.messages)
        answer = self._grpc.exchange(replace(case, messages=messages))
        return replace(
            answer,
            messages=tuple(map(self._hide_key, answer.messages)),
            details=self._hide_key(answer.details.encode()).decode(),
        )

    def _hide_key(self, data: bytes) -> bytes:
        return data.replace(self._key, PLACEHOLDER) if self._key else data

    def close(self) -> None:
        self._http.close()
        self._grpc.close()


def find_case(name: str, seed: int) -> Case:
    """The case of this name, made again from the seed."""
    group = name.rsplit("/", 1)[0]
    return next(case for case in GROUPS[group](seed) if case.name == name)
