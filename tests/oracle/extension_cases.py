"""The generate extension, and the settings of log and traces, over both protocols.

Settings are the servers' own state: the same requests in the same order leave both in the same one, and the last of
each group put back what there was at the start.
"""

import json
import random
from collections.abc import Callable
from typing import Any

from tritonclient.grpc import service_pb2 as pb

from tests.oracle import repository
from tests.oracle.cases import Case, Group, HttpCase, listed_group, random_group
from tests.oracle.grpc_cases import unary
from tests.oracle.tensor_values import BINARY_ONLY

MakeNamed = Callable[[str], Case]

# Generate.

GENERATE_MODELS = (repository.TYPES, repository.TEXT, repository.MATRIX, repository.REQUEST_VIEW, repository.ADD_SUB)

VALUES: tuple[Any, ...] = (
    0, 1, -1, 7, 255, 256, 2**31, 2**63, 2**64 - 1, -(2**63), 1.0, 0.5, -1.25, 1e22, True, False, None, "", "x", "ü",
    'a"b', "a\0b", [], {},
    [1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5, 6], [0.5, 1], ["a"], ["a", "b"], [True], [[1]], [[1], [2]],
    [["a", "b"]], [[1, 2], [3, 4]], [1, "a"], [None],
)  # fmt: skip
PARAMETER_NAMES = (
    "temperature",
    "sequence_id",
    "sequence_start",
    "priority",
    "timeout",
    "triton_x",
    "",
    "parameters",
    "ü",
)
WHOLE_BODIES = (
    b"", b"[]", b"3", b'"x"', b"null", b"{", b'{"a"', b'{"a":1,}', b'{"a":NaN}', b'{"a":1e400}', b"\xef\xbb\xbf{}",
    b"{} x",    b'{"a":1,"a":2}',
)  # fmt: skip


def _generate(name: str, model: str, body: bytes, action: str = "generate", **options: Any) -> HttpCase:
    return HttpCase(name, "POST", f"/v2/models/{model}/{action}", body=body, **options)


def _random_generate(rng: random.Random, name: str, index: int) -> Case:
    model = rng.choice(GENERATE_MODELS)
    members: dict[str, Any] = {}
    for tensor in model.inputs:
        if rng.random() < (0.2 if tensor.is_optional else 0.9):
            members[tensor.name] = _value_for(rng, tensor.datatype)
    for _ in range(rng.choice((0, 0, 1, 2))):
        members[rng.choice(PARAMETER_NAMES)] = rng.choice(VALUES[:22])
    if rng.random() < 0.3:
        members["id"] = rng.choice(("a", "", "id with blanks", 3, None, "ü"))
    if rng.random() < 0.3:
        members["parameters"] = rng.choice(({}, {"n": 1}, {"n": None}, 3, [], {"parameters": {"n": 1}}, {"id": "x"}))
    items = list(members.items())
    rng.shuffle(items)
    action = rng.choice(("generate", "generate_stream"))
    return _generate(name, model.name, json.dumps(dict(items), ensure_ascii=False).encode(), action)


def _value_for(rng: random.Random, datatype: str) -> Any:
    """A value that may fit the datatype, or any other."""
    if rng.random() < 0.35:
        return rng.choice(VALUES)
    if datatype == "BYTES":
        made: list[Any] = [rng.choice(("", "a", "text", "ü")) for _ in range(rng.choice((1, 1, 2, 4)))]
    elif datatype == "BOOL":
        made = [rng.random() < 0.5 for _ in range(rng.choice((1, 2)))]
    elif datatype in ("FP32", "FP64", *BINARY_ONLY):
        made = [rng.choice((0.0, 0.1, 1.5, -2.0, 1e10)) for _ in range(rng.choice((1, 3, 4, 6)))]
    else:
        made = [rng.randrange(100) for _ in range(rng.choice((1, 2, 4, 6)))]
    return made[0] if len(made) == 1 and rng.random() < 0.5 else made


def _whole_bodies() -> list[MakeNamed]:
    return [
        lambda name, body=body, action=action: _generate(name, "request_view", body, action)
        for body in WHOLE_BODIES
        for action in ("generate", "generate_stream")
    ]


def _requests_about_generate() -> list[MakeNamed]:
    body = b'{"A":[1,2]}'
    encodings = ("gzip", "identity", "br", "GZIP", "identity, gzip")
    made: list[MakeNamed] = [
        lambda name, value=value: _generate(name, "request_view", body, headers=(("Content-Encoding", value),))
        for value in encodings
    ]
    made.append(lambda name: _generate(name, "request_view", body, headers=(("Accept-Encoding", "gzip"),)))
    made.append(lambda name: _generate(name, "request_view", body, headers=(("Inference-Header-Content-Length", "5"),)))
    for model in (
        "unknown",
        "broken_config",
        "versions/versions/2",
        "request_view/versions/1",
        "request_view/versions/9",
    ):
        made.append(lambda name, model=model: _generate(name, model, body))
        made.append(lambda name, model=model: _generate(name, model, body, "generate_stream"))
    for method in ("GET", "PUT", "DELETE"):
        for action in ("generate", "generate_stream"):
            made.append(
                lambda name, method=method, action=action: HttpCase(name, method, f"/v2/models/request_view/{action}")
            )
    for code in range(10):
        text = json.dumps({"CODE": code}).encode()
        made.append(lambda name, text=text: _generate(name, "failing", text))
        made.append(lambda name, text=text: _generate(name, "failing", text, "generate_stream"))
    return made


# Settings.

TRACE_VALUES: dict[str, tuple[Any, ...]] = {
    "trace_level": (
        None, [], ["OFF"], ["OFF", "OFF"], ["OFF", "TIMESTAMPS"], ["x"], ["timestamps"], [3], "OFF", 5, {}, ["x", 3],
        ["TIMESTAMPS"], ["TENSORS"],
    ),
    "trace_rate": (
        None, "5", "5abc", " 7", "+8", "-1", "0", "abc", "", "99999999999", "2147483647", "0x10", 5, ["5"], True,
    ),
    "trace_count": (None, "-1", "-2", "3", "abc", "99999999999", "+4", 3, {}),
    "log_frequency": (None, "4", "-2", "x", "99999999999", 1, "1.5"),
    "trace_file": (None, "x", 3),
    "trace_mode": ("opentelemetry", None, 3),
    "other": (1, "x"),
}  # fmt: skip
LOG_VALUES: dict[str, tuple[Any, ...]] = {
    "log_file": (None, "x", 3, ""),
    "log_info": (True, False, None, 1, "true"),
    "log_warning": (True, False, None, 0, []),
    "log_error": (True, False, None, "x"),
    "log_verbose_level": (0, 1, None, -1, 1.0, "1", 4294967297, 2**64, True),
    "log_format": ("default", "ISO8601", "x", None, 3, "", "iso8601", "default\0x"),
    "other": (1,),
}
TRACE_START = b'{"trace_level":null,"trace_rate":null,"trace_count":null,"log_frequency":null}'
LOG_START = b'{"log_info":true,"log_warning":true,"log_error":true,"log_verbose_level":0,"log_format":"default"}'
SETTING_BODIES = (b"", b"[]", b"3", b"null", b"{", b'{"a":1,}', b"{}", b'{"trace_rate":"2","trace_rate":null}')


def _members(rng: random.Random, values: dict[str, tuple[Any, ...]]) -> bytes:
    names = rng.sample(list(values), rng.choice((1, 1, 2, 3)))
    return json.dumps({name: rng.choice(values[name]) for name in names}).encode()


def _random_trace(rng: random.Random, name: str, index: int) -> Case:
    target = rng.choice(("/v2/trace/setting", "/v2/models/ident/trace/setting", "/v2/models/versions/trace/setting"))
    if rng.random() < 0.2:
        return HttpCase(name, "GET", target)
    return HttpCase(name, "POST", target, body=_members(rng, TRACE_VALUES))


def _random_log(rng: random.Random, name: str, index: int) -> Case:
    if rng.random() < 0.2:
        return HttpCase(name, "GET", "/v2/logging")
    return HttpCase(name, "POST", "/v2/logging", body=_members(rng, LOG_VALUES))


def _setting_bodies() -> list[MakeNamed]:
    targets = ("/v2/trace/setting", "/v2/models/ident/trace/setting", "/v2/logging")
    made: list[MakeNamed] = [
        lambda name, target=target, body=body: HttpCase(name, "POST", target, body=body)
        for target in targets
        for body in SETTING_BODIES
    ]
    made += [
        lambda name, target=target, method=method: HttpCase(name, method, target)
        for target in targets
        for method in ("PUT", "DELETE", "PATCH")
    ]
    made += [
        lambda name, target=target: HttpCase(name, "GET", target)
        for target in (
            "/v2/trace/setting?x",
            "/v2/trace/setting/",
            "/v2/trace",
            "/v2/logging/",
            "/v2/logging?x=1",
            "/v2/models/ident/versions/1/trace/setting",
            "/v2/models/trace/setting",
        )
    ]
    return [*made, *_back_to_the_start()]


def _back_to_the_start() -> list[MakeNamed]:
    made: list[MakeNamed] = [
        lambda name, target=target: HttpCase(name, "POST", target, body=TRACE_START)
        for target in ("/v2/models/ident/trace/setting", "/v2/models/versions/trace/setting", "/v2/trace/setting")
    ]
    made.append(lambda name: HttpCase(name, "POST", "/v2/logging", body=LOG_START))
    return made


GRPC_TRACE_VALUES: dict[str, tuple[list[str], ...]] = {
    "trace_level": ([], ["OFF"], ["OFF", "TIMESTAMPS"], ["zz"], ["TIMESTAMPS"], ["OFF", "OFF"]),
    "trace_rate": ([], ["5"], ["5", "6"], ["abc"], ["0"], ["-1"], ["99999999999"]),
    "trace_count": ([], ["-1"], ["-2"], ["1", "2"], ["abc"]),
    "log_frequency": ([], ["4"], ["x"], ["1", "2"]),
    "trace_file": ([], ["x"], ["a", "b"]),
    "trace_mode": (["x"],),
    "other": (["1"],),
}
GRPC_LOG_VALUES: tuple[tuple[str, str, Any], ...] = (
    ("log_file", "string_param", "x"), ("log_info", "bool_param", False), ("log_info", "bool_param", True),
    ("log_info", "string_param", "true"), ("log_warning", "bool_param", False), ("log_warning", "uint32_param", 1),
    ("log_error", "bool_param", True), ("log_error", "string_param", ""), ("log_verbose_level", "uint32_param", 2),
    ("log_verbose_level", "string_param", "1"), ("log_verbose_level", "bool_param", True),
    ("log_format", "string_param", "x"), ("log_format", "string_param", "ISO8601"),
    ("log_format", "string_param", "default"), ("log_format", "bool_param", True), ("other", "bool_param", True),
)  # fmt: skip


def _random_grpc_trace(rng: random.Random, name: str, index: int) -> Case:
    request = pb.TraceSettingRequest(model_name=rng.choice(("", "", "ident", "versions")))
    for key in rng.sample(list(GRPC_TRACE_VALUES), rng.choice((0, 1, 1, 2))):
        request.settings[key].value.extend(rng.choice(GRPC_TRACE_VALUES[key]))
    return unary(name, "TraceSetting", request)


def _random_grpc_log(rng: random.Random, name: str, index: int) -> Case:
    request = pb.LogSettingsRequest()
    for key, field, value in rng.sample(GRPC_LOG_VALUES, rng.choice((0, 1, 1, 2))):
        setattr(request.settings[key], field, value)
    return unary(name, "LogSettings", request)


GROUPS: dict[str, Group] = {
    "http-generate": random_group("http-generate", 250, _random_generate),
    "http-generate-bodies": listed_group("http-generate-bodies", _whole_bodies),
    "http-generate-requests": listed_group("http-generate-requests", _requests_about_generate),
    "http-trace-settings": random_group("http-trace-settings", 120, _random_trace),
    "http-log-settings": random_group("http-log-settings", 80, _random_log),
    "grpc-trace-settings": random_group("grpc-trace-settings", 80, _random_grpc_trace),
    "grpc-log-settings": random_group("grpc-log-settings", 60, _random_grpc_log),
    "http-settings-bodies": listed_group("http-settings-bodies", _setting_bodies),
}
