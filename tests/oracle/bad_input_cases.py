"""Every endpoint that reads a body, and every method, with the same set of bad ones.

None of these changes a server: what names a model names one that is not there, and settings are refused.
"""

import random
from collections.abc import Callable

from tritonclient.grpc import service_pb2 as pb

from tests.oracle.cases import Case, Group, GrpcCase, HttpCase, listed_group, random_group
from tests.oracle.grpc_cases import SERVICE

MakeNamed = Callable[[str], Case]

# A message that says nothing asks ModelStatistics for all models, and their counts need not agree.
SERVICE_METHODS = [
    SERVICE + method.name
    for method in pb.DESCRIPTOR.services_by_name["GRPCInferenceService"].methods
    if method.name not in ("ModelStreamInfer", "ModelStatistics")
]

TARGETS = (
    "/v2/models/ident/infer",
    "/v2/models/text/generate",
    "/v2/models/text/generate_stream",
    "/v2/models/nothing/infer",
    "/v2/models/nothing/generate",
    "/v2/repository/index",
    "/v2/repository/models/nothing/load",
    "/v2/repository/models/nothing/unload",
    "/v2/systemsharedmemory/region/nothing/register",
    "/v2/cudasharedmemory/region/nothing/register",
    "/v2/trace/setting",
    "/v2/models/ident/trace/setting",
    "/v2/logging",
)
BODIES = (
    b"{", b"}", b"[", b"]", b"{]",
    b'{"a"', b'{"a":', b'{"a":}', b'{"a":1', b'{"a":1,', b'{"a":1,}', b"{a:1}",
    b"{'a':1}", b'{"a" 1}',
    b"[1", b"[1,", b"[1,]", b"tru", b"nul", b"TRUE", b"-", b"1.", b"1e", b"01", b"+1", b".5", b"0x1", b'"',
    b'"\\u12"', b'"\\x"', b'"\\ud800"', b"\0", b"\xff", b'{"\xff":1}', b"/**/{}", b"{}{}", b"{} //", b"\xef\xbb\xbf",
    b"1e999", b'{"a":1e999}', b'{"a":-1e999}', b'{"a":' + b"9" * 400 + b"}",
)  # fmt: skip


def _make_bodies() -> list[MakeNamed]:
    def make(target: str, body: bytes) -> MakeNamed:
        return lambda name: HttpCase(name, "POST", target, body=body)

    return [make(target, body) for target in TARGETS for body in BODIES]


def _broken_message(rng: random.Random, name: str, index: int) -> Case:
    """Bytes that are no message, or hardly one, for each method in turn."""
    method = SERVICE_METHODS[index % len(SERVICE_METHODS)]
    kind = rng.randrange(5)
    if kind == 0:
        message = rng.randbytes(rng.randrange(1, 30))
    elif kind == 1:
        # A length that lies.
        message = bytes((rng.choice((0x0A, 0x12, 0x1A, 0x22)), rng.randrange(5, 128))) + b"x" * 3
    elif kind == 2:
        # A varint without end.
        message = b"\x0a" + b"\xff" * rng.randrange(1, 12)
    elif kind == 3:
        # Another wire type than the field has.
        message = bytes((rng.randrange(1, 8) << 3 | rng.choice((0, 1, 3, 4, 5, 6, 7)),)) + b"\1" * rng.randrange(9)
    else:
        # Text that is no UTF-8.
        message = b"\x0a\x02\xff\xfe"
    return GrpcCase(name, method, (message,), f"{method}: {message.hex()}")


GROUPS: dict[str, Group] = {
    "bad-bodies": listed_group("bad-bodies", _make_bodies),
    "bad-messages": random_group("bad-messages", 300, _broken_message),
}
