"""Which endpoint a request target names.

A target is matched as it was sent: undecoded, case-sensitive, whole, without its query; the first pattern wins:

    /v2/models/stats                                              statistics of all models
    /v2/models/NAME[/versions/DIGITS][/infer|generate|generate_stream|ready|config|stats]
                                                                  one model; nothing after it is its metadata
    /v2/models/NAME/trace/setting, /v2/trace/setting, /v2/logging
    /v2                                                           server metadata
    /v2/health/live, /v2/health/ready
    /v2/repository[/REPO]/index
    /v2/repository[/REPO]/models/NAME/load, .../unload
    /v2/systemsharedmemory[/region/NAME]/status|register|unregister, the same with cudasharedmemory

Source: Triton, http_server.cc, HTTPAPIServer::Handle.
"""

import enum
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from merrow.core.restrictions import ApiCategory, Restriction
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
    MODEL_GENERATE = enum.auto()
    MODEL_GENERATE_STREAM = enum.auto()
    REPOSITORY_INDEX = enum.auto()
    REPOSITORY_MODEL_LOAD = enum.auto()
    REPOSITORY_MODEL_UNLOAD = enum.auto()
    SYSTEM_SHARED_MEMORY_STATUS = enum.auto()
    SYSTEM_SHARED_MEMORY_REGISTER = enum.auto()
    SYSTEM_SHARED_MEMORY_UNREGISTER = enum.auto()
    CUDA_SHARED_MEMORY_STATUS = enum.auto()
    CUDA_SHARED_MEMORY_REGISTER = enum.auto()
    CUDA_SHARED_MEMORY_UNREGISTER = enum.auto()
    TRACE_SETTINGS = enum.auto()
    LOG_SETTINGS = enum.auto()
    METRICS = enum.auto()


METHODS: dict[Endpoint, bytes] = {
    endpoint: b"POST"
    if endpoint
    in (
        Endpoint.MODEL_INFER,
        Endpoint.MODEL_GENERATE,
        Endpoint.MODEL_GENERATE_STREAM,
        Endpoint.REPOSITORY_INDEX,
        Endpoint.REPOSITORY_MODEL_LOAD,
        Endpoint.REPOSITORY_MODEL_UNLOAD,
        Endpoint.SYSTEM_SHARED_MEMORY_REGISTER,
        Endpoint.SYSTEM_SHARED_MEMORY_UNREGISTER,
        Endpoint.CUDA_SHARED_MEMORY_REGISTER,
        Endpoint.CUDA_SHARED_MEMORY_UNREGISTER,
    )
    else b"GET"
    for endpoint in Endpoint
}

# Endpoints that are read with GET and changed with POST; the same handler serves both.
CHANGEABLE: frozenset[Endpoint] = frozenset({Endpoint.TRACE_SETTINGS, Endpoint.LOG_SETTINGS})

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

# What each endpoint belongs to where APIs are restricted. Every endpoint is listed; metrics are never restricted.
CATEGORIES: dict[Endpoint, ApiCategory | None] = {
    Endpoint.SERVER_LIVE: ApiCategory.HEALTH,
    Endpoint.SERVER_READY: ApiCategory.HEALTH,
    Endpoint.SERVER_METADATA: ApiCategory.METADATA,
    Endpoint.MODEL_READY: ApiCategory.HEALTH,
    Endpoint.MODEL_METADATA: ApiCategory.METADATA,
    Endpoint.MODEL_CONFIG: ApiCategory.MODEL_CONFIG,
    Endpoint.MODEL_STATISTICS: ApiCategory.STATISTICS,
    Endpoint.ALL_STATISTICS: ApiCategory.STATISTICS,
    Endpoint.MODEL_INFER: ApiCategory.INFERENCE,
    Endpoint.MODEL_GENERATE: ApiCategory.INFERENCE,
    Endpoint.MODEL_GENERATE_STREAM: ApiCategory.INFERENCE,
    Endpoint.REPOSITORY_INDEX: ApiCategory.MODEL_REPOSITORY,
    Endpoint.REPOSITORY_MODEL_LOAD: ApiCategory.MODEL_REPOSITORY,
    Endpoint.REPOSITORY_MODEL_UNLOAD: ApiCategory.MODEL_REPOSITORY,
    Endpoint.SYSTEM_SHARED_MEMORY_STATUS: ApiCategory.SHARED_MEMORY,
    Endpoint.SYSTEM_SHARED_MEMORY_REGISTER: ApiCategory.SHARED_MEMORY,
    Endpoint.SYSTEM_SHARED_MEMORY_UNREGISTER: ApiCategory.SHARED_MEMORY,
    Endpoint.CUDA_SHARED_MEMORY_STATUS: ApiCategory.SHARED_MEMORY,
    Endpoint.CUDA_SHARED_MEMORY_REGISTER: ApiCategory.SHARED_MEMORY,
    Endpoint.CUDA_SHARED_MEMORY_UNREGISTER: ApiCategory.SHARED_MEMORY,
    Endpoint.TRACE_SETTINGS: ApiCategory.TRACE,
    Endpoint.LOG_SETTINGS: ApiCategory.LOGGING,
    Endpoint.METRICS: None,
}

_MODEL_ACTIONS: dict[str | None, Endpoint] = {
    None: Endpoint.MODEL_METADATA,
    "infer": Endpoint.MODEL_INFER,
    "generate": Endpoint.MODEL_GENERATE,
    "generate_stream": Endpoint.MODEL_GENERATE_STREAM,
    "ready": Endpoint.MODEL_READY,
    "config": Endpoint.MODEL_CONFIG,
    "stats": Endpoint.MODEL_STATISTICS,
}
_SHARED_MEMORY_ACTIONS: dict[tuple[str, str], Endpoint] = {
    ("system", "status"): Endpoint.SYSTEM_SHARED_MEMORY_STATUS,
    ("system", "register"): Endpoint.SYSTEM_SHARED_MEMORY_REGISTER,
    ("system", "unregister"): Endpoint.SYSTEM_SHARED_MEMORY_UNREGISTER,
    ("cuda", "status"): Endpoint.CUDA_SHARED_MEMORY_STATUS,
    ("cuda", "register"): Endpoint.CUDA_SHARED_MEMORY_REGISTER,
    ("cuda", "unregister"): Endpoint.CUDA_SHARED_MEMORY_UNREGISTER,
}
_FIXED_PATHS: dict[str, Endpoint] = {
    "/v2": Endpoint.SERVER_METADATA,
    "/v2/health/live": Endpoint.SERVER_LIVE,
    "/v2/health/ready": Endpoint.SERVER_READY,
    "/v2/trace/setting": Endpoint.TRACE_SETTINGS,
    "/v2/logging": Endpoint.LOG_SETTINGS,
    "/metrics": Endpoint.METRICS,
    "/metrics/": Endpoint.METRICS,
}

_MODEL = re.compile(
    r"/v2/models/([^/]+)(?:/versions/([0-9]+))?(?:/(infer|generate|generate_stream|ready|config|stats))?"
)
_MODEL_TRACE = re.compile(r"/v2/models/([^/]+)/trace/setting")
_REPOSITORY_INDEX = re.compile(r"/v2/repository(?:/[^/]+)?/index")
_REPOSITORY_MODEL = re.compile(r"/v2/repository(?:/([^/]+))?/models/([^/]+)/(load|unload)")
_SHARED_MEMORY = re.compile(r"/v2/(system|cuda)sharedmemory(?:/region/([^/]+))?/(status|register|unregister)")
_ABSOLUTE_FORM = re.compile(rb"https?://[^/?#]*", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Target:
    """What a request target asks for. `version` is as written; it, `repository` and `region` are "" without one."""

    endpoint: Endpoint
    model_name: str = ""
    version: str = ""
    repository: str = ""
    region: str = ""


class Route:
    """Where the requests of one target go.

    `error_headers` carry the content type of the errors that the handler raises, and of the answer to a wrong method.
    `model_version` is -1 for the latest. `restriction` is what a request must show first, None for nothing.
    `region` is that of shared memory, "" for all. `second_method` is another method that is allowed, None for none.
    """

    __slots__ = (
        "error_headers",
        "handler",
        "method",
        "model_name",
        "model_version",
        "region",
        "repository",
        "restriction",
        "second_method",
    )

    def __init__(
        self,
        method: bytes,
        handler: "Handler",
        error_headers: Sequence[Header],
        model_name: str = "",
        model_version: int = -1,
        repository: str = "",
        restriction: Restriction | None = None,
        region: str = "",
        second_method: bytes | None = None,
    ) -> None:
        self.method = method
        self.second_method = second_method
        self.handler = handler
        self.error_headers = error_headers
        self.model_name = model_name
        self.model_version = model_version
        self.repository = repository
        self.restriction = restriction
        self.region = region


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
    match = _MODEL_TRACE.fullmatch(path)
    if match is not None:
        return Target(Endpoint.TRACE_SETTINGS, match[1])
    match = _REPOSITORY_MODEL.fullmatch(path)
    if match is not None:
        is_load = match[3] == "load"
        endpoint = Endpoint.REPOSITORY_MODEL_LOAD if is_load else Endpoint.REPOSITORY_MODEL_UNLOAD
        return Target(endpoint, match[2], repository=match[1] or "")
    match = _SHARED_MEMORY.fullmatch(path)
    if match is not None:
        return Target(_SHARED_MEMORY_ACTIONS[match[1], match[3]], region=match[2] or "")
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
