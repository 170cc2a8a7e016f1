"""Which endpoint a request target names."""

import pytest

from merrow.frontends.http.routes import ERROR_HEADERS, METHODS, Endpoint, Target, resolve_target


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        (b"/v2", Target(Endpoint.SERVER_METADATA)),
        (b"/v2?x=/v2/models", Target(Endpoint.SERVER_METADATA)),
        (b"/v2/health/live", Target(Endpoint.SERVER_LIVE)),
        (b"/v2/health/ready", Target(Endpoint.SERVER_READY)),
        (b"http://host:80/v2/health/ready?a", Target(Endpoint.SERVER_READY)),
        (b"/v2/models/stats", Target(Endpoint.ALL_STATISTICS)),
        (b"/v2/models/stats/config", Target(Endpoint.MODEL_CONFIG, "stats")),
        (b"/v2/models/stats/stats", Target(Endpoint.MODEL_STATISTICS, "stats")),
        (b"/v2/models/m", Target(Endpoint.MODEL_METADATA, "m")),
        (b"/v2/models/m/versions/3", Target(Endpoint.MODEL_METADATA, "m", "3")),
        (b"/v2/models/m/infer", Target(Endpoint.MODEL_INFER, "m")),
        (b"/v2/models/m/versions/007/infer", Target(Endpoint.MODEL_INFER, "m", "007")),
        (b"/v2/models/m/generate", Target(Endpoint.MODEL_GENERATE, "m")),
        (b"/v2/models/m/versions/2/generate_stream?x", Target(Endpoint.MODEL_GENERATE_STREAM, "m", "2")),
        (b"/v2/models/m/trace/setting", Target(Endpoint.TRACE_SETTINGS, "m")),
        (b"/v2/trace/setting", Target(Endpoint.TRACE_SETTINGS)),
        (b"/v2/logging", Target(Endpoint.LOG_SETTINGS)),
        (b"/v2/models/m/ready", Target(Endpoint.MODEL_READY, "m")),
        (b"/v2/models/m/versions/1/stats", Target(Endpoint.MODEL_STATISTICS, "m", "1")),
        (b"/v2/models/iden%74/config", Target(Endpoint.MODEL_CONFIG, "iden%74")),
        (b"/v2/models/h\xc3\xa9", Target(Endpoint.MODEL_METADATA, "hé")),
        (b"/v2/models/a;b#c", Target(Endpoint.MODEL_METADATA, "a;b#c")),
        (b"/v2/models/infer", Target(Endpoint.MODEL_METADATA, "infer")),
        (b"/v2/repository/index", Target(Endpoint.REPOSITORY_INDEX)),
        (b"/v2/repository/r/index", Target(Endpoint.REPOSITORY_INDEX)),
        (b"/v2/repository/models/m/load", Target(Endpoint.REPOSITORY_MODEL_LOAD, "m")),
        (b"/v2/repository/r/models/m/unload", Target(Endpoint.REPOSITORY_MODEL_UNLOAD, "m", repository="r")),
        (b"/metrics", Target(Endpoint.METRICS)),
    ],
)
def test_a_target_names_an_endpoint(target, expected):
    assert resolve_target(target) == expected


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"*",
        b"",
        b"/V2",
        b"/v2/",
        b"//v2",
        b"/v2/health",
        b"/v2/health/live/",
        b"/v2/health/live;x",
        b"/v2/models",
        b"/v2/models/",
        b"/v2/models//infer",
        b"/v2/models/m/",
        b"/v2/models/m/versions",
        b"/v2/models/m/versions/abc",
        b"/v2/models/m/versions/1x/infer",
        b"/v2/models/m/versions/-1",
        b"/v2/models/m/infer/",
        b"/v2/models/m/Infer",
        b"/v2/models/m/generate/",
        b"/v2/models/m/generate_streams",
        b"/v2/models/m/versions/1/trace/setting",
        b"/v2/trace/setting/",
        b"/v2/models/a/b/infer",
        b"/v2/models/\xff\xfe",
        b"/v2/repository",
        b"/v2/repository/models/m",
        b"/v2/repository/models/m/reload",
        b"/v2/repository/a/b/index",
        b"/v2/logging/",
        b"ftp://h/v2",
    ],
)
def test_anything_else_names_none(target):
    assert resolve_target(target) is None


@pytest.mark.parametrize("endpoint", list(Endpoint))
def test_every_endpoint_has_a_method_and_a_content_type_of_errors(endpoint):
    assert METHODS[endpoint] in (b"GET", b"POST")
    assert ERROR_HEADERS[endpoint][0][0] == b"Content-Type"
