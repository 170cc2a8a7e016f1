"""HTTP requests that are not inference: routes, methods, versions, metadata, index, and the transport itself."""

import random
from typing import Any

from tests.oracle import repository
from tests.oracle.cases import Group, HttpCase, listed_group, random_group
from tests.oracle.http_drafts import HEADER_LENGTH, draft, infer_target

MODEL_PATHS = ("", "/config", "/ready", "/stats", "/infer", "/generate", "/trace/setting")

# Routes that must be found, or must not.
TARGETS = (
    "/",
    "",
    "/v2",
    "/v2/",
    "//v2",
    "/V2",
    "/v2?x=1",
    "/v1",
    "/v2/health",
    "/v2/health/live",
    "/v2/health/live/",
    "/v2/health/live?verbose=1",
    "/v2/health/ready",
    "/v2/health/Ready",
    "/v2/health/other",
    "/v2/models",
    "/v2/models/",
    "/v2/models//ready",
    "/v2/models/stats",
    "/v2/models/stats/",
    "/v2/models/ident",
    "/v2/models/ident/",
    "/v2/models/iden%74",
    "/v2/models/ident?a=b&c",
    "/v2/models/ident#fragment",
    "/v2/models/ident/other",
    "/v2/models/ident/ready/",
    "/v2/models/ident/ready/x",
    "/v2/models/ident/config",
    "/v2/models/ident/stats",
    "/v2/models/ident/versions",
    "/v2/models/ident/versions/",
    "/v2/models/ident/versions/1/",
    "/v2/models/ident/versions/abc",
    "/v2/models/ident/versions/-1",
    "/v2/models/ident/versions/1.0",
    "/v2/models/ident/versions/1/ready",
    "/v2/models/ident/versions/1/other",
    "/v2/models/ident/versions/1/config/x",
    "/v2/models/a b",
    "/v2/models/a/b",
    "/v2/models/ü",
    "/v2/repository",
    "/v2/repository/index/",
    "/v2/repository/a/b/index",
    "/v2/systemsharedmemory",
    "/v2/cudasharedmemory",
    "/v2/trace",
    "/metrics",
    "/favicon.ico",
    "*",
    "http://localhost/v2/health/live",
    "http://localhost/v2",
)

METHODS = ("GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH")
METHOD_TARGETS = (
    "/v2",
    "/v2/health/live",
    "/v2/health/ready",
    "/v2/models/ident",
    "/v2/models/ident/config",
    "/v2/models/ident/ready",
    "/v2/models/versions/versions/1/stats",
    "/v2/models/stats",
    "/v2/models/unknown",
    "/v2/repository/index",
    "/v2/other",
)
VERSIONS = ("1", "2", "3", "0", "01", "99", "2147483648", "9223372036854775807")


def targets() -> list[Any]:
    return [lambda name, target=target: HttpCase(name, "GET", target) for target in TARGETS]


def methods() -> list[Any]:
    pairs = [(method, target) for target in METHOD_TARGETS for method in METHODS]
    # An infer request by another method than POST; POST itself is what the other groups are about.
    pairs += [(method, "/v2/models/ident/infer") for method in METHODS if method != "POST"]
    return [lambda name, method=method, target=target: HttpCase(name, method, target) for method, target in pairs]


def model_paths() -> list[Any]:
    """Metadata, configuration, readiness and statistics of every model, loaded or not."""
    names = [model.name for model in repository.MODELS] + list(repository.UNLOADABLE) + ["unknown"]
    found = [
        f"/v2/models/{name}{version}{path}"
        for name in names
        for version in ("", "/versions/1")
        for path in ("", "/config", "/ready")
    ]
    return [lambda name, target=target: HttpCase(name, "GET", target) for target in found]


def model_versions() -> list[Any]:
    found = [
        f"/v2/models/{name}/versions/{version}{path}"
        for name in ("versions", "unknown")
        for version in VERSIONS
        for path in ("", "/config", "/ready", "/stats")
    ]
    cases: list[Any] = [lambda name, target=target: HttpCase(name, "GET", target) for target in found]
    for model in ("versions", "unknown", "broken_config", "broken_initialize"):
        for version in (None, *VERSIONS):
            target = infer_target(model, version)
            body = b'{"inputs":[{"name":"IN0","datatype":"INT16","shape":[2],"data":[1,-2]}]}'
            cases.append(lambda name, target=target, body=body: HttpCase(name, "POST", target, (), body))
    return cases


def statistics_paths() -> list[Any]:
    """Statistics of models that answered nothing yet, and of ones that are not there."""
    found = ("/v2/models/unknown/stats", "/v2/models/unknown/versions/1/stats", "/v2/models/ident/versions/7/stats")
    found += ("/v2/models/broken_initialize/stats", "/v2/models/broken_config/stats")
    return [lambda name, target=target: HttpCase(name, "GET", target) for target in found]


def repository_index() -> list[Any]:
    bodies = (
        b"",
        b"{}",
        b'{"ready":true}',
        b'{"ready":false}',
        b'{"ready":1}',
        b'{"ready":"true"}',
        b'{"ready":null}',
        b'{"other":true}',
        b"[]",
        b'"x"',
        b"{",
        b"x",
        b" ",
    )
    cases: list[Any] = [
        lambda name, body=body: HttpCase(name, "POST", "/v2/repository/index", (), body) for body in bodies
    ]
    cases += [
        lambda name, target=target: HttpCase(name, "POST", target)
        for target in ("/v2/repository/any/index", "/v2/repository//index")
    ]
    return cases


def repository_control() -> list[Any]:
    """Loading and unloading, which the model control mode `none` refuses."""
    pairs = [
        (target, body)
        for target in (
            "/v2/repository/models/ident/load",
            "/v2/repository/models/ident/unload",
            "/v2/repository/models/unknown/load",
            "/v2/repository/any/models/ident/unload",
        )
        for body in (b"", b"{}")
    ]
    return [lambda name, target=target, body=body: HttpCase(name, "POST", target, (), body) for target, body in pairs]


BODY = b'{"id":"t","inputs":[{"name":"IN0","datatype":"INT16","shape":[2],"data":[1,2]}]}'
BINARY = (
    b'{"inputs":[{"name":"IN0","datatype":"INT16","shape":[2],"parameters":{"binary_data_size":4}}]}\x01\x00\x02\x00'
)


def transport() -> list[Any]:
    """What HTTP itself allows a client to do."""
    target = infer_target("versions")
    length = (HEADER_LENGTH, str(len(BINARY) - 4))

    def case(*headers: tuple[str, str], body: bytes = BODY, **options: Any) -> Any:
        return lambda name: HttpCase(name, "POST", target, headers, body, **options)

    def raw(*lines: bytes, body: bytes = b"") -> Any:
        return lambda name: HttpCase(name, "GET", "", raw=b"\r\n".join([*lines, b"", b""]) + body)

    return [
        case(),
        case(chunks=(1000,)),
        case(chunks=(1, 2, 3, 5, 50)),
        case(chunks=(7,)),
        case(length, body=BINARY),
        case(length, body=BINARY, chunks=(9,)),
        case(("inference-header-content-length", length[1]), body=BINARY),
        case(("INFERENCE-HEADER-CONTENT-LENGTH", length[1]), body=BINARY),
        case(("Connection", "close")),
        case(("Connection", "keep-alive")),
        case(("Content-Type", "text/html")),
        case(("Content-Type", "application/octet-stream")),
        case(("Accept", "text/html")),
        case(("Expect", "100-continue")),
        case(*[(f"X-Header-{number}", "x" * 100) for number in range(50)]),
        case(("X-Long", "x" * 7000)),
        case(version="HTTP/1.0"),
        case(("Connection", "keep-alive"), version="HTTP/1.0"),
        case(("X-Empty", "")),
        raw(b"GET /v2/health/live HTTP/1.1"),
        raw(b"GET /v2/health/live HTTP/1.1", b"Host: a", b"Content-Length: 3", body=b"abc"),
        raw(b"GET /v2 HTTP/1.1", b"host:a", b"connection:close"),
        raw(b"POST /v2/repository/index HTTP/1.1", b"Host: a"),
        raw(b"POST /v2/models/versions/infer HTTP/1.1", b"Host: a"),
        raw(b"POST /v2/models/versions/infer HTTP/1.1", b"Host: a", b"Content-Length: 0"),
    ]


def unparsable() -> list[Any]:
    """Bytes that are no HTTP request."""
    texts = (
        b"GARBAGE\r\n\r\n",
        b"GET\r\n\r\n",
        b"POST /v2/models/ident/infer HTTP/1.1\r\nContent-Length: abc\r\n\r\n",
        b"POST /v2/models/ident/infer HTTP/1.1\r\nContent-Length: -5\r\n\r\n",
        b"POST /v2/models/ident/infer HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n\r\n",
        b"GET /v2 HTTP/1.1\r\nno colon here\r\n\r\n",
    )
    return [lambda name, raw=raw: HttpCase(name, "GET", "", raw=raw) for raw in texts]


def empty_and_odd_bodies(rng: random.Random, name: str, index: int) -> HttpCase:
    """An infer request whose body is sent in odd ways but is right."""
    model = rng.choice((repository.IDENT, repository.TEXT, repository.ADD_SUB))
    case = draft(rng, model, binary_share=rng.choice((0.0, 1.0))).case(name)
    sizes = tuple(rng.randint(1, 40) for _ in range(rng.randint(1, 6)))
    return HttpCase(name, "POST", case.target, case.headers, case.body, chunks=sizes)


GROUPS: dict[str, Group] = {
    "http-targets": listed_group("http-targets", targets),
    "http-methods": listed_group("http-methods", methods),
    "http-models": listed_group("http-models", model_paths),
    "http-versions": listed_group("http-versions", model_versions),
    "http-statistics": listed_group("http-statistics", statistics_paths),
    "http-index": listed_group("http-index", repository_index),
    "http-control": listed_group("http-control", repository_control),
    "http-transport": listed_group("http-transport", transport),
    "http-unparsable": listed_group("http-unparsable", unparsable),
    "http-chunks": random_group("http-chunks", 12, empty_and_odd_bodies),
}
