"""What every flag of `merrow serve` means: Triton's, by Triton's names, and merrow's own.

A flag stands in one of three ways:

    OBEYED      it becomes a field of `Settings`
    NO_EFFECT   it can mean nothing here: accepted, with a warning that says why
    NOT_YET     merrow does not do this yet: a warning, or an error where going on without it would open what the
                operator wanted closed, or serve something else than was asked; values that ask for what merrow does
                anyway pass in silence

Source: Triton, command_line_parser.cc.
"""

import enum
from dataclasses import dataclass
from typing import Any

from merrow.cli.flags import (
    INT32_MAX,
    Flag,
    FlagGroup,
    integer_from,
    one_of,
    read_backend_setting,
    read_bool,
    read_float,
    read_int,
    read_int64,
    read_string,
    read_verbose_level,
    setting_of,
)


class Standing(enum.Enum):
    """How merrow takes a flag; see the module."""

    NO_EFFECT = enum.auto()
    NOT_YET_WARNING = enum.auto()
    NOT_YET_ERROR = enum.auto()


@dataclass(frozen=True, slots=True)
class Reservation:
    """Why a flag is not obeyed. `harmless` are the values that change nothing, and pass in silence."""

    standing: Standing
    reason: str
    harmless: tuple[Any, ...] = ()


_PORT = integer_from(0, 65535)
_POSITIVE = integer_from(1, INT32_MAX)
_NOT_NEGATIVE = integer_from(0, INT32_MAX)
_ONE_THREAD = "one thread serves all connections, without locks"
_NO_GPU_MEMORY = "merrow holds no pools of pinned or device memory; the runtimes manage their own"
_NO_PINGS = "the server sends no keepalive pings yet"
_NO_TRACING = "requests are not traced yet"
_NO_TLS = "TLS is not built yet, and this port must not be served in plain text"
_NO_CACHE = "there is no response cache yet; every request is executed"
_NO_SAGEMAKER = "there is no SageMaker endpoint yet"
_NO_VERTEX = "there is no Vertex AI endpoint yet"

SERVE_FLAGS: tuple[FlagGroup, ...] = (
    FlagGroup(
        "Server",
        (
            Flag("help", read_string, "Print this and exit.", is_switch=True),
            Flag("id", read_string, "Name of this server in its metadata. Default is triton."),
            Flag(
                "exit-timeout-secs",
                _NOT_NEGATIVE,
                "Seconds that accepted requests have to finish when the server exits. Default is 30.",
                "integer",
            ),
        ),
    ),
    FlagGroup(
        "Logging",
        (
            Flag(
                "log-verbose",
                read_verbose_level,
                "Level of verbose logging; zero, the default, is none.",
                "integer",
            ),
            Flag("log-info", read_bool, "Log lines of level info. Default is true.", "boolean"),
            Flag("log-warning", read_bool, "Log lines of level warning. Default is true.", "boolean"),
            Flag("log-error", read_bool, "Log lines of level error. Default is true.", "boolean"),
            Flag("log-format", one_of("log-format", "default", "ISO8601"), "Line format: default or ISO8601."),
            Flag("log-file", read_string, "File to log to; the console without it."),
        ),
    ),
    FlagGroup(
        "Model Repository",
        (
            Flag("model-repository", read_string, "A directory of models. May be given several times."),
            Flag("model-store", read_string, "The same as --model-repository."),
            Flag(
                "exit-on-error",
                read_bool,
                "Exit when a model fails to load at start-up. Default is true.",
                "boolean",
            ),
            Flag(
                "disable-auto-complete-config",
                read_string,
                "Do not complete configurations from the models: what is missing is an error.",
                is_switch=True,
            ),
            Flag(
                "strict-readiness",
                read_bool,
                "Be ready only while every model is; with false, as soon as the server answers. Default is true.",
                "boolean",
            ),
            Flag(
                "model-control-mode",
                one_of("model-control-mode", "none", "poll", "explicit"),
                "none: load everything at start-up, change nothing after. explicit: load what --load-model names, and "
                "let clients load and unload. Default is none.",
            ),
            Flag(
                "load-model",
                read_string,
                "A model to load at start-up, with --model-control-mode=explicit. May be given several times; "
                "* alone loads all.",
            ),
            Flag("model-load-thread-count", _POSITIVE, "Models loaded side by side. Default is 4.", "integer"),
            Flag("repository-poll-secs", read_int, "Period of --model-control-mode=poll.", "integer"),
            Flag("model-config-name", read_string, "Use configs/<name>.pbtxt of each model."),
            Flag("model-load-retry-count", read_int, "Retries of a failed load.", "integer"),
            Flag("model-namespacing", read_bool, "Models of one name in several repositories.", "boolean"),
            Flag("enable-peer-access", read_bool, "Memory access between GPUs.", "boolean"),
            Flag(
                "execution-place",
                one_of("execution-place", "inline", "thread", "process"),
                "Where models run that do not say so themselves (parameter EXECUTION_PLACE): inline, thread or "
                "process. merrow's own.",
            ),
        ),
    ),
    FlagGroup(
        "Network",
        (
            Flag(
                "port",
                _PORT,
                "Serve everything (REST, gRPC and metrics) on this one port. The other ports are then closed unless "
                "they are set too. merrow's own.",
                "integer",
            ),
            Flag(
                "address",
                read_string,
                "Address of --port, and of every port whose own address is not set. Default is 127.0.0.1; 0.0.0.0 "
                "lets other machines in. merrow's own.",
            ),
        ),
    ),
    FlagGroup(
        "HTTP",
        (
            Flag("allow-http", read_bool, "Listen for HTTP requests. Default is true.", "boolean"),
            Flag("http-address", read_string, "Address of the HTTP port. Default is --address."),
            Flag("http-port", _PORT, "HTTP port; 0 takes a free one. Default is 8000.", "integer"),
            Flag("reuse-http-port", read_bool, "Let several servers share the HTTP port. Default is false.", "boolean"),
            Flag(
                "http-max-input-size",
                read_int64,
                "Bytes that JSON, or a body after decompression, may have. Default is 67108864.",
                "integer",
            ),
            Flag("http-header-forward-pattern", read_string, "Headers to forward as request parameters."),
            Flag("http-thread-count", read_int, "Threads for HTTP requests.", "integer"),
            Flag("http-restricted-api", read_string, "APIs that need a header.", "<string>:<string>=<string>"),
        ),
    ),
    FlagGroup(
        "GRPC",
        (
            Flag("allow-grpc", read_bool, "Listen for gRPC requests. Default is true.", "boolean"),
            Flag("grpc-address", read_string, "Address of the gRPC port. Default is --address."),
            Flag("grpc-port", _PORT, "gRPC port; 0 takes a free one. Default is 8001.", "integer"),
            Flag("reuse-grpc-port", read_bool, "Let several servers share the gRPC port. Default is false.", "boolean"),
            Flag("grpc-header-forward-pattern", read_string, "Metadata to forward as request parameters."),
            Flag("grpc-infer-thread-count", read_int, "Threads for inference requests.", "integer"),
            Flag("grpc-infer-allocation-pool-size", read_int, "Request objects kept for reuse.", "integer"),
            Flag("grpc-max-response-pool-size", read_int, "Response objects kept for reuse.", "integer"),
            Flag("grpc-use-ssl", read_bool, "TLS.", "boolean"),
            Flag("grpc-use-ssl-mutual", read_bool, "TLS with client certificates.", "boolean"),
            Flag("grpc-server-cert", read_string, "PEM file of the server's certificate."),
            Flag("grpc-server-key", read_string, "PEM file of the server's key."),
            Flag("grpc-root-cert", read_string, "PEM file of the root certificate."),
            Flag(
                "grpc-infer-response-compression-level",
                one_of("grpc-infer-response-compression-level", "none", "low", "medium", "high"),
                "Compression of inference responses.",
            ),
            Flag("grpc-keepalive-time", read_int, "Milliseconds between keepalive pings.", "integer"),
            Flag("grpc-keepalive-timeout", read_int, "Milliseconds to wait for a ping's answer.", "integer"),
            Flag("grpc-keepalive-permit-without-calls", read_bool, "Pings without calls.", "boolean"),
            Flag("grpc-http2-max-pings-without-data", read_int, "Pings without data.", "integer"),
            Flag("grpc-http2-min-recv-ping-interval-without-data", read_int, "Least time between pings.", "integer"),
            Flag("grpc-http2-max-ping-strikes", read_int, "Bad pings before a connection is closed.", "integer"),
            Flag("grpc-max-connection-age", read_int, "Milliseconds that a connection may live.", "integer"),
            Flag("grpc-max-connection-age-grace", read_int, "Milliseconds after that age.", "integer"),
            Flag("grpc-restricted-protocol", read_string, "RPCs that need metadata.", "<string>:<string>=<string>"),
        ),
    ),
    FlagGroup(
        "Connection limits (merrow's own; for every port)",
        (
            Flag("max-header-byte-size", _POSITIVE, "Request line and headers of one request.", "integer"),
            Flag("max-header-count", _POSITIVE, "Headers of one request.", "integer"),
            Flag("max-body-byte-size", _POSITIVE, "One request body or gRPC message.", "integer"),
            Flag("max-connections", _POSITIVE, "Open connections of one port.", "integer"),
            Flag("max-concurrent-streams", _POSITIVE, "Open HTTP/2 streams of one connection.", "integer"),
            Flag("max-resets-per-second", _POSITIVE, "Stream resets by the client, on one connection.", "integer"),
            Flag("max-control-frames-per-second", _POSITIVE, "PING, SETTINGS and the like, likewise.", "integer"),
            Flag("max-pipelined-requests", _POSITIVE, "HTTP/1.1 requests waiting behind another.", "integer"),
            Flag("idle-timeout-secs", _POSITIVE, "Life of a connection without requests.", "integer"),
            Flag("receive-timeout-secs", _POSITIVE, "Wait for the rest of a request.", "integer"),
            Flag("max-write-buffer-byte-size", _POSITIVE, "Answer bytes waiting for a slow client.", "integer"),
            Flag("stream-window-byte-size", integer_from(65535, INT32_MAX), "HTTP/2 window of a stream.", "integer"),
            Flag("max-frame-byte-size", integer_from(16384, 2**24 - 1), "One HTTP/2 frame.", "integer"),
        ),
    ),
    FlagGroup(
        "Sagemaker",
        (
            Flag("allow-sagemaker", read_bool, "Listen for SageMaker requests.", "boolean"),
            Flag("sagemaker-port", read_int, "SageMaker port.", "integer"),
            Flag("sagemaker-safe-port-range", read_string, "Ports of the other endpoints.", "<integer>-<integer>"),
            Flag("sagemaker-thread-count", read_int, "Threads for SageMaker requests.", "integer"),
        ),
    ),
    FlagGroup(
        "Vertex",
        (
            Flag("allow-vertex-ai", read_bool, "Listen for Vertex AI requests.", "boolean"),
            Flag("vertex-ai-port", read_int, "Vertex AI port.", "integer"),
            Flag("vertex-ai-thread-count", read_int, "Threads for Vertex AI requests.", "integer"),
            Flag("vertex-ai-default-model", read_string, "Model of plain predict requests."),
        ),
    ),
    FlagGroup(
        "Metrics",
        (
            Flag("allow-metrics", read_bool, "Offer Prometheus metrics. Default is true.", "boolean"),
            Flag("metrics-address", read_string, "Address of the metrics port. Default is that of HTTP."),
            Flag("metrics-port", _PORT, "Metrics port; 0 takes a free one. Default is 8002.", "integer"),
            Flag("allow-gpu-metrics", read_bool, "Metrics of GPUs.", "boolean"),
            Flag("allow-cpu-metrics", read_bool, "Metrics of the CPU.", "boolean"),
            Flag("metrics-interval-ms", read_float, "Period of metrics that are polled.", "float"),
            Flag(
                "metrics-config",
                setting_of("--metrics-config option format is <setting>=<value>"),
                "A setting of the metrics.",
                "<string>=<string>",
            ),
        ),
    ),
    FlagGroup(
        "Tracing",
        (
            Flag(
                "trace-config",
                setting_of("--trace-config option format is '<trace mode>,<setting>=<value>'"),
                "A setting of tracing.",
                "<string>,<string>=<string>",
            ),
        ),
    ),
    FlagGroup(
        "Backend",
        (
            Flag(
                "backend-config",
                read_backend_setting,
                "A backend's setting, <backend>,<setting>=<value>, or one for all backends, <setting>=<value>. "
                "May be given several times.",
                "<string>,<string>=<string>",
            ),
            Flag("backend-directory", read_string, "Directory of backend libraries."),
        ),
    ),
    FlagGroup(
        "Repository Agent",
        (Flag("repoagent-directory", read_string, "Directory of repository agent libraries."),),
    ),
    FlagGroup(
        "Response Cache",
        (
            Flag(
                "cache-config",
                setting_of("--cache-config option format is '<cache name>,<setting>=<value>'"),
                "A setting of the response cache.",
                "<string>,<string>=<string>",
            ),
            Flag("cache-directory", read_string, "Directory of cache libraries."),
        ),
    ),
    FlagGroup(
        "Rate Limiter",
        (
            Flag("rate-limit", one_of("rate-limit", "off", "execution_count"), "off or execution_count."),
            Flag("rate-limit-resource", read_string, "A resource and its amount.", "<string>:<integer>:<integer>"),
        ),
    ),
    FlagGroup(
        "Memory/Device Management",
        (
            Flag("pinned-memory-pool-byte-size", read_int64, "Pool of pinned memory.", "integer"),
            Flag("cuda-memory-pool-byte-size", read_string, "Pool of device memory.", "<integer>:<integer>"),
            Flag("cuda-virtual-address-size", read_string, "Address space of state.", "<integer>:<integer>"),
            Flag("min-supported-compute-capability", read_float, "Oldest GPU to use.", "float"),
            Flag("buffer-manager-thread-count", read_int, "Threads for copies.", "integer"),
            Flag("host-policy", read_string, "NUMA node and CPU cores.", "<string>,<string>=<string>"),
            Flag("model-load-gpu-limit", read_string, "GPU memory that loads may use.", "<device_id>:<fraction>"),
            Flag("allow-client-shm", read_bool, "Let clients register shared memory.", "boolean"),
        ),
    ),
    FlagGroup(
        "DEPRECATED",
        (
            Flag(
                "strict-model-config",
                read_bool,
                "DEPRECATED: true is --disable-auto-complete-config.",
                "boolean",
            ),
            Flag("response-cache-byte-size", read_int64, "DEPRECATED: use --cache-config.", "integer"),
            Flag("trace-file", read_string, "DEPRECATED: use --trace-config."),
            Flag("trace-level", read_string, "DEPRECATED: use --trace-config."),
            Flag("trace-rate", read_int, "DEPRECATED: use --trace-config.", "integer"),
            Flag("trace-count", read_int, "DEPRECATED: use --trace-config.", "integer"),
            Flag("trace-log-frequency", read_int, "DEPRECATED: use --trace-config.", "integer"),
        ),
    ),
)


def _no_effect(reason: str, *harmless: Any) -> Reservation:
    return Reservation(Standing.NO_EFFECT, reason, harmless)


def _not_yet(reason: str, *harmless: Any) -> Reservation:
    return Reservation(Standing.NOT_YET_WARNING, reason, harmless)


def _refused(reason: str, *harmless: Any) -> Reservation:
    return Reservation(Standing.NOT_YET_ERROR, reason, harmless)


RESERVATIONS: dict[str, Reservation] = {
    "repository-poll-secs": _not_yet("repositories are not polled yet"),
    "model-config-name": _refused("configurations by name are not built yet, and other ones would be served", ""),
    "model-load-retry-count": _not_yet("a failed load is not tried again yet", 0),
    "model-namespacing": _refused("namespaces are not built yet", False),
    "enable-peer-access": _no_effect("merrow moves no data between GPUs"),
    "http-header-forward-pattern": _refused("headers are not forwarded yet, and models would miss them", ""),
    "http-thread-count": _no_effect(_ONE_THREAD),
    "http-restricted-api": _refused("restrictions are not built yet, and these APIs would be open"),
    "grpc-header-forward-pattern": _refused("metadata is not forwarded yet, and models would miss it", ""),
    "grpc-infer-thread-count": _no_effect(_ONE_THREAD),
    "grpc-infer-allocation-pool-size": _no_effect("requests are not pooled"),
    "grpc-max-response-pool-size": _no_effect("responses are not pooled"),
    "grpc-use-ssl": _refused(_NO_TLS, False),
    "grpc-use-ssl-mutual": _refused(_NO_TLS, False),
    "grpc-server-cert": _not_yet("TLS is not built yet", ""),
    "grpc-server-key": _not_yet("TLS is not built yet", ""),
    "grpc-root-cert": _not_yet("TLS is not built yet", ""),
    "grpc-infer-response-compression-level": _not_yet("gRPC responses are not compressed yet", "none"),
    "grpc-keepalive-time": _not_yet(_NO_PINGS),
    "grpc-keepalive-timeout": _not_yet(_NO_PINGS),
    "grpc-keepalive-permit-without-calls": _not_yet(_NO_PINGS),
    "grpc-http2-max-pings-without-data": _not_yet(_NO_PINGS),
    "grpc-http2-min-recv-ping-interval-without-data": _not_yet(
        "clients' pings are bounded by --max-control-frames-per-second alone"
    ),
    "grpc-http2-max-ping-strikes": _not_yet("clients' pings are bounded by --max-control-frames-per-second alone"),
    "grpc-max-connection-age": _not_yet("connections are not closed for their age yet"),
    "grpc-max-connection-age-grace": _not_yet("connections are not closed for their age yet"),
    "grpc-restricted-protocol": _refused("restrictions are not built yet, and these RPCs would be open"),
    "allow-sagemaker": _refused(_NO_SAGEMAKER, False),
    "sagemaker-port": _not_yet(_NO_SAGEMAKER),
    "sagemaker-safe-port-range": _not_yet(_NO_SAGEMAKER),
    "sagemaker-thread-count": _no_effect(_ONE_THREAD),
    "allow-vertex-ai": _refused(_NO_VERTEX, False),
    "vertex-ai-port": _not_yet(_NO_VERTEX),
    "vertex-ai-thread-count": _no_effect(_ONE_THREAD),
    "vertex-ai-default-model": _not_yet(_NO_VERTEX),
    "allow-gpu-metrics": _not_yet("there are no metrics of GPUs yet", False),
    "allow-cpu-metrics": _not_yet("metrics of the CPU cannot be switched off yet", True),
    "metrics-interval-ms": _no_effect(
        "metrics are taken when they are asked for, those of CPU and memory at most every 2 seconds"
    ),
    "metrics-config": _not_yet(
        "metrics cannot be configured yet",
        ("counter_latencies", "true"),
        ("summary_latencies", "false"),
        ("histogram_latencies", "false"),
    ),
    "trace-config": _not_yet(_NO_TRACING, ("level", "OFF")),
    "trace-file": _not_yet(_NO_TRACING, ""),
    "trace-level": _not_yet(_NO_TRACING, "OFF"),
    "trace-rate": _not_yet(_NO_TRACING),
    "trace-count": _not_yet(_NO_TRACING),
    "trace-log-frequency": _not_yet(_NO_TRACING),
    "backend-directory": _no_effect("backends are Python modules of merrow"),
    "repoagent-directory": _no_effect("merrow loads no repository agent libraries"),
    "cache-config": _not_yet(_NO_CACHE),
    "cache-directory": _no_effect("merrow loads no cache libraries"),
    "response-cache-byte-size": _not_yet(_NO_CACHE, 0),
    "rate-limit": _refused("rate limiting is not built yet, and models would run without their limits", "off"),
    "rate-limit-resource": _not_yet("rate limiting is not built yet"),
    "pinned-memory-pool-byte-size": _no_effect(_NO_GPU_MEMORY),
    "cuda-memory-pool-byte-size": _no_effect(_NO_GPU_MEMORY),
    "cuda-virtual-address-size": _no_effect(_NO_GPU_MEMORY),
    "min-supported-compute-capability": _no_effect("the runtimes decide which GPUs they can use"),
    "buffer-manager-thread-count": _no_effect("tensors are not copied by threads"),
    "host-policy": _not_yet("models are not bound to CPUs or NUMA nodes yet"),
    "model-load-gpu-limit": _not_yet("loads are not limited by GPU memory yet"),
    "allow-client-shm": _refused("clients' shared memory is not built yet", False),
}
