"""One request for every endpoint and method of the server; the tables are checked against the server's own."""

import http.client

from merrow.frontends.grpc.methods import CATEGORIES as GRPC_CATEGORIES
from merrow.frontends.http.routes import METHODS, Endpoint, resolve_target

INFER_BODY = b'{"inputs":[{"name":"INPUT0","datatype":"FP32","shape":[1,2],"data":[1,2]}]}'

TARGETS: dict[Endpoint, str] = {
    Endpoint.SERVER_LIVE: "/v2/health/live",
    Endpoint.SERVER_READY: "/v2/health/ready",
    Endpoint.SERVER_METADATA: "/v2",
    Endpoint.MODEL_READY: "/v2/models/m/ready",
    Endpoint.MODEL_METADATA: "/v2/models/m",
    Endpoint.MODEL_CONFIG: "/v2/models/m/config",
    Endpoint.MODEL_STATISTICS: "/v2/models/m/stats",
    Endpoint.ALL_STATISTICS: "/v2/models/stats",
    Endpoint.MODEL_INFER: "/v2/models/m/infer",
    Endpoint.MODEL_GENERATE: "/v2/models/m/generate",
    Endpoint.MODEL_GENERATE_STREAM: "/v2/models/m/generate_stream",
    Endpoint.REPOSITORY_INDEX: "/v2/repository/index",
    Endpoint.REPOSITORY_MODEL_LOAD: "/v2/repository/models/m/load",
    Endpoint.REPOSITORY_MODEL_UNLOAD: "/v2/repository/models/unknown/unload",
    Endpoint.SYSTEM_SHARED_MEMORY_STATUS: "/v2/systemsharedmemory/status",
    Endpoint.SYSTEM_SHARED_MEMORY_REGISTER: "/v2/systemsharedmemory/region/r/register",
    Endpoint.SYSTEM_SHARED_MEMORY_UNREGISTER: "/v2/systemsharedmemory/unregister",
    Endpoint.CUDA_SHARED_MEMORY_STATUS: "/v2/cudasharedmemory/status",
    Endpoint.CUDA_SHARED_MEMORY_REGISTER: "/v2/cudasharedmemory/region/r/register",
    Endpoint.CUDA_SHARED_MEMORY_UNREGISTER: "/v2/cudasharedmemory/unregister",
    Endpoint.TRACE_SETTINGS: "/v2/trace/setting",
    Endpoint.LOG_SETTINGS: "/v2/logging",
    Endpoint.METRICS: "/metrics",
}

assert TARGETS.keys() == METHODS.keys(), "an endpoint without a request here"
for _endpoint, _target in TARGETS.items():
    _found = resolve_target(_target.encode())
    assert _found is not None
    assert _found.endpoint is _endpoint

GRPC_PATHS = sorted(path.decode() for path in GRPC_CATEGORIES)


def ask(url, method, target, body=b"", headers=None):
    """Status, content type and body of one request over HTTP/1.1; `url` is `host:port`."""
    connection = http.client.HTTPConnection(url, timeout=30)
    try:
        connection.request(method, target, body=body, headers=headers or {})
        response = connection.getresponse()
        return response.status, response.getheader("Content-Type"), response.read()
    finally:
        connection.close()
