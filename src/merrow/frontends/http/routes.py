"""Which endpoint a request target names.

A target is matched as it was sent: undecoded, case-sensitive, whole, without its query; the first pattern wins:

    /v2/models/stats                                              statistics of all models
    /v2/models/NAME[/versions/DIGITS][/infer|ready|config|stats]  one model; nothing after it is its metadata
    /v2                                                           server metadata
    /v2/health/live, /v2/health/ready
    /v2/repository[/REPO]/index
    /v2/repository[/REPO]/models/NAME/load, .../unload

Source: Triton, http_server.cc, HTTPAPIServer::Handle.
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from merrow.frontends.http.status import JSON_HEADERS, TEXT_HEADERS
from merrow.net.exchange import Exchange, Header


class Endpoint(enum.Enum):
    """What can be asked for over REST."""

    SERVER_LIVE = enum.auto()
    SERVER_READY = enum.auto()
    SERVER_METADATA = enum.auto()
    MODEL_READY = enum.auto()
    MODEL_METADATA = enum.auto()
    MODEL_CONFIG = enum.auto()
    MODEL_STATISTICS = enum.auto()
    ALL_STATISTICS = enum.auto()
    MODEL_INFER = enum.auto()
    REPOSITORY_INDEX = enum.auto()
    REPOSITORY_MODEL_LOAD = enum.auto()
    REPOSITORY_MODEL_UNLOAD = enum.auto()
    METRICS = enum.auto()


METHODS: dict[Endpoint, bytes] = {
    endpoint: b"POST"
    if endpoint
    in (
        Endpoint.MODEL_INFER,
        Endpoint.REPOSITORY_INDEX,
        Endpoint.REPOSITORY_MODEL_LOAD,
        Endpoint.REPOSITORY_MODEL_UNLOAD,
    )
    else b"GET"
    for endpoint in Endpoint
}

# The content type of an endpoint's errors, a wrong method's included: Triton's handlers set theirs early, or never.
ERROR_HEADERS: dict[Endpoint, tuple[Header, ...]] = {
    endpoint: TEXT_HEADERS
    if endpoint
    in (
        Endpoint.SERVER_LIVE,
        Endpoint.SERVER_READY,
        Endpoint.MODEL_READY,
        Endpoint.MODEL_INFER,
        Endpoint.METRICS,
    )
    else JSON_HEADERS
    for endpoint in Endpoint
}

_MODEL_ACTIONS: dict[str | None, Endpoint] = {
    None: Endpoint.MODEL_METADATA,
    "infer": Endpoint.MODEL_INFER,
    "ready": Endpoint.MODEL_READY,
    "config": Endpoint.MODEL_CONFIG,
    "stats": Endpoint.MODEL_STATISTICS,
}
_FIXED_PATHS: dict[str, Endpoint] = {
    "/v2": Endpoint.SERVER_METADATA,
    "/v2/health/live": Endpoint.SERVER_LIVE,
    "/v2/health/ready": Endpoint.SERVER_READY,
    "/metrics": Endpoint.METRICS,
    "/metrics/": Endpoint.METRICS,
}

_MODEL = re.compile(r"/v2/models/([^/]+)(?:/versions/([0-9]+))?(?:/(infer|ready|config|stats))?")
_REPOSITORY_INDEX = re.compile(r"/v2/repository(?:/[^/]+)?/index")
_REPOSITORY_MODEL = re.compile(r"/v2/repository(?:/([^/]+))?/models/([^/]+)/(load|unload)")
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request target asks for. `version` is as written, "" without one; `repository` "" without one."""

    endpoint: Endpoint
    model_name: str = ""
    version: str = ""
    repository: str = ""


class Route:
    """Where the requests of one target go.

    `error_headers` carry the content type of the errors that the handler raises, and of the answer to a wrong method.
    `model_version` is -1 for the latest.
    """

    __slots__ = ("error_headers", "handler", "method", "model_name", "model_version", "repository")

    def __init__(
        self,
        method: bytes,
        handler: "Handler",
        error_headers: Sequence[Header],
        model_name: str = "",
        model_version: int = -1,
        repository: str = "",
    ) -> None:
        self.method = method
        self.handler = handler
        self.error_headers = error_headers
        self.model_name = model_name
        self.model_version = model_version
        self.repository = repository


Handler = Callable[[Exchange, Route], None]
"""Answers the requests of a route, now or later; raises `ServerError` to have it answered."""

Handlers = Mapping[Endpoint, Handler]


def resolve_target(target: bytes) -> Target | None:
    """The endpoint of a request target, in origin or absolute form; None if there is none."""
    path = _path_of_target(target)
    if path is None:
        return None
    if path == "/v2/models/stats":
        return Target(Endpoint.ALL_STATISTICS)
    match = _MODEL.fullmatch(path)
    if match is not None:
        return Target(_MODEL_ACTIONS[match[3]], match[1], match[2] or "")
    fixed = _FIXED_PATHS.get(path)
    if fixed is not None:
        return Target(fixed)
    if _REPOSITORY_INDEX.fullmatch(path):
        return Target(Endpoint.REPOSITORY_INDEX)
    match = _REPOSITORY_MODEL.fullmatch(path)
    if match is not None:
        is_load = match[3] == "load"
        endpoint = Endpoint.REPOSITORY_MODEL_LOAD if is_load else Endpoint.REPOSITORY_MODEL_UNLOAD
        return Target(endpoint, match[2], repository=match[1] or "")
    return None


def _path_of_target(target: bytes) -> str | None:
    if not target.startswith(b"/"):
        target = _ABSOLUTE_FORM.sub(b"", target, count=1)
    path, _, _ = target.partition(b"?")
    try:
        # RE2, which Triton matches with, knows no character in what is not UTF-8.
        return path.decode()
    except UnicodeDecodeError:
        return None
