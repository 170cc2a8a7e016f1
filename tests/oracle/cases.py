"""What the suite sends: one value per request, made from a seed and a name, so that each can be made again alone."""

import random
from collections.abc import Callable
from dataclasses import dataclass

DEFAULT_SEED = 20_241_125

Header = tuple[str, str]


@dataclass(frozen=True, slots=True)
class HttpCase:
    """One HTTP request. `chunks` send the body chunked; `raw` replaces everything by the bytes of the request."""

    name: str
    method: str
    target: str
    headers: tuple[Header, ...] = ()
    body: bytes = b""
    version: str = "HTTP/1.1"
    chunks: tuple[int, ...] = ()
    raw: bytes | None = None

    def encoded(self) -> bytes:
        if self.raw is not None:
            return self.raw
        lines = [f"{self.method} {self.target} {self.version}", "Host: oracle"]
        lines += [f"{name}: {value}" for name, value in self.headers]
        body = self.body
        if self.method == "HEAD":
            # Whether a body follows the reply's headers can only be told by reading to the end.
            lines.append("Connection: close")
        if self.chunks:
            lines.append("Transfer-Encoding: chunked")
            body = _chunked(body, self.chunks)
        elif body or self.method == "POST":
            lines.append(f"Content-Length: {len(body)}")
        return "\r\n".join([*lines, "", ""]).encode("latin-1") + body

    def describe(self) -> str:
        return f"{self.encoded()!r}"


@dataclass(frozen=True, slots=True)
class GrpcCase:
    """One gRPC call: its method and its serialized messages; more or fewer than one only on a stream.

    Where `interleaves`, the responses of different requests (their ids differ) may come in any order.
    """

    name: str
    method: str
    messages: tuple[bytes, ...]
    text: str
    metadata: tuple[Header, ...] = ()
    is_stream: bool = False
    interleaves: bool = False

    def describe(self) -> str:
        return f"{self.method} {dict(self.metadata) or ''}\n{self.text}\n{[message.hex() for message in self.messages]}"


Case = HttpCase | GrpcCase
Group = Callable[[int], list[Case]]
MakeCase = Callable[[random.Random, str, int], Case]


def random_group(group: str, count: int, make: MakeCase) -> Group:
    """`count` cases, each made by `make(rng, name, index)` from a seed of its own."""

    def generate(seed: int) -> list[Case]:
        cases = []
        for index in range(count):
            name = f"{group}/{index}"
            cases.append(make(random.Random(f"{seed}/{name}"), name, index))
        return cases

    return generate


def listed_group(group: str, make_all: Callable[[], list[Callable[[str], Case]]]) -> Group:
    """Cases that are written down: each is made from the name that it is given."""

    def generate(seed: int) -> list[Case]:
        return [make(f"{group}/{index}") for index, make in enumerate(make_all())]

    return generate


def _chunked(body: bytes, sizes: tuple[int, ...]) -> bytes:
    """The body in chunks of these sizes, the last one repeated."""
    pieces = []
    position, index = 0, 0
    while position < len(body):
        piece = body[position : position + sizes[min(index, len(sizes) - 1)]]
        pieces.append(b"%x\r\n%s\r\n" % (len(piece), piece))
        position += len(piece)
        index += 1
    return b"".join([*pieces, b"0\r\n\r\n"])
