"""What every flag of `merrow serve` means: Triton's, by Triton's names, and merrow's own.

A flag becomes a field of `Settings`, or can mean nothing here (`NO_EFFECT`) and is accepted with a warning that says
why.

Source: Triton, command_line_parser.cc.
"""

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
    read_port_range,
    read_restriction,
    read_string,
    read_verbose_level,
)
from merrow.cli.observe_settings import read_metrics_setting, read_trace_level, read_trace_setting
from merrow.cli.scheduling_settings import read_cache_setting, read_host_policy, read_rate_limit_resource

_PORT = integer_from(0, 65535)
_POSITIVE = integer_from(1, INT32_MAX)
_NOT_NEGATIVE = integer_from(0, INT32_MAX)
_ONE_THREAD = "one thread serves all connections, without locks"
_NO_GPU_MEMORY = "merrow holds no pools of pinned or device memory; the runtimes manage their own"


def _tls_flags(port_name: str, where: str, remark: str = "") -> tuple[Flag, ...]:
    """The five flags for TLS on one port; those without a name are for all."""
    prefix = f"{port_name}-" if port_name else ""
    return (
        Flag(f"{prefix}use-ssl", read_bool, f"TLS for {where}. Default is false.{remark}", "boolean"),
        Flag(
            f"{prefix}use-ssl-mutual",
            read_bool,
            f"TLS, and clients must have a certificate too. Default is false.{remark}",
            "boolean",
        ),
        Flag(f"{prefix}server-cert", read_string, f"PEM file of the server's certificate and its chain.{remark}"),
        Flag(f"{prefix}server-key", read_string, f"PEM file of the server's key.{remark}"),
        Flag(f"{prefix}root-cert", read_string, f"PEM file of those who sign clients' certificates.{remark}"),
    )


SERVE_FLAGS: tuple[FlagGroup, ...] = (
    FlagGroup(
        "Server",
        (
            Flag("help", read_string, "Print this and exit.", is_switch=True),
            Flag(
                "config",
                read_string,
                "A file of settings (TOML): each key is a flag's name. What the command line or the environment says "
                "counts for more. merrow's own.",
                "file",
            ),
            Flag("id", read_string, "Name of this server in its metadata. Default is triton."),
            Flag(
                "exit-timeout-secs",
                _NOT_NEGATIVE,
                "Seconds that accepted requests have to finish when the server exits. Default is 30.",
                "integer",
            ),
            Flag(
                "loop-stall-limit-ms",
                _NOT_NEGATIVE,
                "Milliseconds that the event loop may be held up; beyond, the server is not live for a while, and the "
                "log says what held it up. 0: nobody looks. Default is 5000. merrow's own.",
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
            Flag(
                "access-log",
                read_bool,
                "Log a line for each answer: what was asked for, the status, sizes and how long it took. Default is "
                "false. merrow's own.",
                "boolean",
            ),
        ),
    ),
    FlagGroup(
        "Model Repository",
        (
            Flag(
                "model-repository",
                read_string,
                "A directory of models, or a place of s3://, gs://, as://, hf://, http:// or https://. May be given "
                "several times. Without it, the variable AIP_STORAGE_URI counts.",
                may_repeat=True,
            ),
            Flag("model-store", read_string, "The same as --model-repository.", may_repeat=True),
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
                "none: load everything at start-up, change nothing after. poll: follow what changes in the "
                "repositories. explicit: load what --load-model names, and let clients load and unload. Default is "
                "none.",
            ),
            Flag(
                "load-model",
                read_string,
                "A model to load at start-up, with --model-control-mode=explicit. May be given several times; "
                "* alone loads all.",
                may_repeat=True,
            ),
            Flag("model-load-thread-count", _POSITIVE, "Models loaded side by side. Default is 4.", "integer"),
            Flag(
                "repository-poll-secs",
                read_int,
                "Seconds between looks at the repositories, with --model-control-mode=poll. Default is 15.",
                "integer",
            ),
            Flag(
                "model-config-name",
                read_string,
                "Use configs/<name>.pbtxt of each model that has it, instead of config.pbtxt.",
            ),
            Flag(
                "model-load-retry-count",
                read_int,
                "How often a load that failed is tried again. Default is 0.",
                "integer",
            ),
            Flag(
                "model-namespacing",
                read_bool,
                "Let several repositories have models of the same name; ensembles take those beside them. Default is "
                "false.",
                "boolean",
            ),
            Flag(
                "remote-cache-directory",
                read_string,
                "Where models from s3://, gs://, as://, hf:// and http:// are copied to. Default is merrow/models in "
                "the user's cache directory. merrow's own.",
            ),
            Flag(
                "remote-cache-byte-size",
                integer_from(0),
                "Bytes of such copies to keep that no model uses any more. Default is 34359738368. merrow's own.",
                "integer",
            ),
            Flag("enable-peer-access", read_bool, "Memory access between GPUs.", "boolean"),
            Flag(
                "debug-model",
                read_string,
                "Run this model in the server's process, one instance on a thread, so that breakpoint() and debuggers "
                "reach it; others are served as usual. merrow's own.",
            ),
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
                "lets other machines in; unix:PATH is a Unix socket. merrow's own.",
            ),
            Flag(
                "reuse-port",
                read_bool,
                "Let several servers share --port, and every port whose own flag for that is not set. Default is "
                "false. merrow's own.",
                "boolean",
            ),
            *_tls_flags("", "--port, and every port whose own flag is not set", " merrow's own."),
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
            Flag(
                "http-header-forward-pattern",
                read_string,
                "Headers that inference requests get as parameters: a regular expression (of RE2), found anywhere in "
                "their names, in any case.",
            ),
            Flag("http-thread-count", read_int, "Threads for HTTP requests.", "integer"),
            Flag(
                "http-restricted-api",
                read_restriction("http-restricted-api", "api"),
                "<api>,<api>...:<key>=<value>: these APIs (health, metadata, inference, shared-memory, model-config, "
                "model-repository, statistics, trace, logging) need the header <key>: <value>. May be given several "
                "times.",
                "<string>:<string>=<string>",
                may_repeat=True,
            ),
            *_tls_flags("http", "the HTTP port", " merrow's own."),
        ),
    ),
    FlagGroup(
        "GRPC",
        (
            Flag("allow-grpc", read_bool, "Listen for gRPC requests. Default is true.", "boolean"),
            Flag("grpc-address", read_string, "Address of the gRPC port. Default is --address."),
            Flag("grpc-port", _PORT, "gRPC port; 0 takes a free one. Default is 8001.", "integer"),
            Flag("reuse-grpc-port", read_bool, "Let several servers share the gRPC port. Default is false.", "boolean"),
            Flag(
                "grpc-header-forward-pattern",
                read_string,
                "Metadata that inference requests get as parameters; as --http-header-forward-pattern.",
            ),
            Flag("grpc-infer-thread-count", read_int, "Threads for inference requests.", "integer"),
            Flag("grpc-infer-allocation-pool-size", read_int, "Request objects kept for reuse.", "integer"),
            Flag("grpc-max-response-pool-size", read_int, "Response objects kept for reuse.", "integer"),
            *_tls_flags("grpc", "the gRPC port"),
            Flag(
                "grpc-infer-response-compression-level",
                one_of("grpc-infer-response-compression-level", "none", "low", "medium", "high"),
                "Compression of inference responses: none, low, medium or high. Default is none.",
            ),
            Flag(
                "grpc-keepalive-time",
                _POSITIVE,
                "Milliseconds after which the server asks a silent client whether it is there, with a ping. Default is "
                "7200000 (2 hours).",
                "integer",
            ),
            Flag(
                "grpc-keepalive-timeout",
                _POSITIVE,
                "Milliseconds to wait for the answer, before the connection is closed. Default is 20000.",
                "integer",
            ),
            Flag(
                "grpc-keepalive-permit-without-calls",
                read_bool,
                "Pings, the server's and clients', also while there are no calls. Default is false.",
                "boolean",
            ),
            Flag(
                "grpc-http2-max-pings-without-data",
                _NOT_NEGATIVE,
                "Pings that the server sends without any data in between; 0 is any number. Default is 2.",
                "integer",
            ),
            Flag(
                "grpc-http2-min-recv-ping-interval-without-data",
                _NOT_NEGATIVE,
                "Milliseconds that clients must leave between pings without data; sooner is a strike. Default is "
                "300000 (5 minutes).",
                "integer",
            ),
            Flag(
                "grpc-http2-max-ping-strikes",
                _NOT_NEGATIVE,
                "Strikes that a client may have before its connection is closed; 0 is any number. Default is 2.",
                "integer",
            ),
            Flag(
                "grpc-max-connection-age",
                _NOT_NEGATIVE,
                "Milliseconds after which a connection takes no new calls; 0, the default, is no limit.",
                "integer",
            ),
            Flag(
                "grpc-max-connection-age-grace",
                _NOT_NEGATIVE,
                "Milliseconds that the calls of such a connection then have; 0, the default, is no limit.",
                "integer",
            ),
            Flag(
                "grpc-restricted-protocol",
                read_restriction("grpc-restricted-protocol", "protocol"),
                "<protocol>,<protocol>...:<key>=<value>: these protocols (as the APIs of --http-restricted-api) need "
                "the metadata triton-grpc-protocol-<key>: <value>. May be given several times.",
                "<string>:<string>=<string>",
                may_repeat=True,
            ),
            Flag(
                "grpc-reflection",
                read_bool,
                "Tell clients that ask which services there are (grpcurl and the like). Default is true. merrow's own.",
                "boolean",
            ),
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
            Flag("max-stream-requests", _POSITIVE, "Unanswered requests of one ModelStreamInfer.", "integer"),
            Flag(
                "max-stream-buffer-byte-size",
                _POSITIVE,
                "Responses of one ModelStreamInfer that wait for a client that does not read; beyond, it ends.",
                "integer",
            ),
            Flag(
                "max-receiving-byte-size",
                integer_from(1),
                "All bodies that are being received at the time, over all ports. Default is 8589934592.",
                "integer",
            ),
        ),
    ),
    FlagGroup(
        "Sagemaker",
        (
            Flag("allow-sagemaker", read_bool, "Listen for SageMaker requests. Default is false.", "boolean"),
            Flag("sagemaker-port", _PORT, "SageMaker port. Default is 8080.", "integer"),
            Flag(
                "sagemaker-safe-port-range",
                read_port_range,
                "The ports that other endpoints may use beside SageMaker's.",
                "<integer>-<integer>",
            ),
            Flag("sagemaker-thread-count", read_int, "Threads for SageMaker requests.", "integer"),
        ),
    ),
    FlagGroup(
        "Vertex",
        (
            Flag(
                "allow-vertex-ai",
                read_bool,
                "Listen for Vertex AI requests. Default is true where AIP_MODE is PREDICTION, else false.",
                "boolean",
            ),
            Flag("vertex-ai-port", _PORT, "Vertex AI port. Default is AIP_HTTP_PORT, or 8080.", "integer"),
            Flag("vertex-ai-thread-count", read_int, "Threads for Vertex AI requests.", "integer"),
            Flag(
                "vertex-ai-default-model",
                read_string,
                "The model that predicts; without it, the repository must hold exactly one.",
            ),
        ),
    ),
    FlagGroup(
        "Metrics",
        (
            Flag("allow-metrics", read_bool, "Offer Prometheus metrics. Default is true.", "boolean"),
            Flag("metrics-address", read_string, "Address of the metrics port. Default is that of HTTP."),
            Flag("metrics-port", _PORT, "Metrics port; 0 takes a free one. Default is 8002.", "integer"),
            Flag(
                "reuse-metrics-port",
                read_bool,
                "Let several servers share the metrics port. Default is false. merrow's own.",
                "boolean",
            ),
            *_tls_flags("metrics", "the metrics port", " merrow's own."),
            Flag(
                "allow-gpu-metrics",
                read_bool,
                "Metrics of NVIDIA GPUs, where the driver's library is found. Default is true.",
                "boolean",
            ),
            Flag(
                "allow-cpu-metrics", read_bool, "Metrics of the machine's CPU and memory. Default is true.", "boolean"
            ),
            Flag(
                "metrics-interval-ms",
                read_float,
                "How old the figures of CPU, memory and GPUs may be; nothing is read while nobody asks. Default is "
                "2000.",
                "float",
            ),
            Flag(
                "metrics-config",
                read_metrics_setting,
                "A setting of the metrics: counter_latencies (default true), summary_latencies (false), "
                "summary_quantiles (<quantile>:<error>,...), histogram_latencies (false), and merrow's own "
                "merrow_histograms (true). May be given several times.",
                "<string>=<string>",
                may_repeat=True,
                has_settings=True,
            ),
        ),
    ),
    FlagGroup(
        "Tracing",
        (
            Flag(
                "trace-config",
                read_trace_setting,
                "A setting of tracing: level (OFF, TIMESTAMPS, TENSORS; several add up), rate (default 1000), count "
                "(-1), mode (triton or opentelemetry); triton,file and triton,log-frequency (0); opentelemetry,url "
                "(http://localhost:4318/v1/traces), opentelemetry,resource=<key>=<value> and opentelemetry,bsp_*. May "
                "be given several times.",
                "<string>,<string>=<string>",
                may_repeat=True,
                has_settings=True,
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
                may_repeat=True,
                has_settings=True,
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
                read_cache_setting,
                "A setting of the response cache: local,size=<bytes>, or those of redis (host, port, user, password, "
                "db, connect_timeout, socket_timeout, pool_size, max_pending, tls_enabled, cert, key, cacert, "
                "cacert_dir). May be given several times.",
                "<string>,<string>=<string>",
                may_repeat=True,
                has_settings=True,
            ),
            Flag("cache-directory", read_string, "Directory of cache libraries."),
        ),
    ),
    FlagGroup(
        "Rate Limiter",
        (
            Flag(
                "rate-limit",
                one_of("rate-limit", "off", "execution_count"),
                "off, the default, or execution_count: instances execute only while they hold the resources of their "
                "group's rate_limiter.",
            ),
            Flag(
                "rate-limit-resource",
                read_rate_limit_resource,
                "<name>:<amount>[:<device>]: how much there is of a resource; by default what the instance with the "
                "largest need needs. May be given several times.",
                "<string>:<integer>:<integer>",
                may_repeat=True,
            ),
        ),
    ),
    FlagGroup(
        "Memory/Device Management",
        (
            Flag("pinned-memory-pool-byte-size", read_int64, "Pool of pinned memory.", "integer"),
            Flag(
                "cuda-memory-pool-byte-size",
                read_string,
                "Pool of device memory.",
                "<integer>:<integer>",
                may_repeat=True,
            ),
            Flag(
                "cuda-virtual-address-size",
                read_string,
                "Address space of state.",
                "<integer>:<integer>",
                may_repeat=True,
            ),
            Flag("min-supported-compute-capability", read_float, "Older GPUs are not used. Default is 6.0.", "float"),
            Flag("buffer-manager-thread-count", read_int, "Threads for copies.", "integer"),
            Flag(
                "host-policy",
                read_host_policy,
                "<policy>,numa-node=<node> or <policy>,cpu-cores=<first>-<last>: where instances run whose group has "
                "this host_policy; without one it is cpu, gpu_<number> or model. May be given several times.",
                "<string>,<string>=<string>",
                may_repeat=True,
                has_settings=True,
            ),
            Flag(
                "model-load-gpu-limit",
                read_string,
                "Load nothing onto a GPU of whose memory more than this fraction is in use.",
                "<device_id>:<fraction>",
                may_repeat=True,
            ),
            Flag(
                "allow-client-shm",
                read_bool,
                "Let clients register shared memory, and name it in requests. They can then name any that this process "
                "may open. Default is false.",
                "boolean",
            ),
            Flag(
                "max-shared-memory-regions",
                _NOT_NEGATIVE,
                "Regions that clients may register. Default is 1024. merrow's own.",
                "integer",
            ),
            Flag(
                "max-shared-memory-tensor-byte-size",
                integer_from(1),
                "Bytes of one input or output in shared memory. Default is 4294967296. merrow's own.",
                "integer",
            ),
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
            Flag("trace-file", read_string, "DEPRECATED: use --trace-config triton,file."),
            Flag("trace-level", read_trace_level, "DEPRECATED: use --trace-config level.", may_repeat=True),
            Flag("trace-rate", read_int, "DEPRECATED: use --trace-config rate.", "integer"),
            Flag("trace-count", read_int, "DEPRECATED: use --trace-config count.", "integer"),
            Flag("trace-log-frequency", read_int, "DEPRECATED: use --trace-config triton,log-frequency.", "integer"),
        ),
    ),
)


# Why a flag of Triton's can mean nothing here.
NO_EFFECT: dict[str, str] = {
    "enable-peer-access": "merrow moves no data between GPUs",
    "http-thread-count": _ONE_THREAD,
    "grpc-infer-thread-count": _ONE_THREAD,
    "grpc-infer-allocation-pool-size": "requests are not pooled",
    "grpc-max-response-pool-size": "responses are not pooled",
    "sagemaker-thread-count": _ONE_THREAD,
    "vertex-ai-thread-count": _ONE_THREAD,
    "backend-directory": "backends are Python modules of merrow",
    "repoagent-directory": "repository agents are built in (checksum); libraries are not loaded",
    "cache-directory": "merrow loads no cache libraries; its caches are part of it",
    "pinned-memory-pool-byte-size": _NO_GPU_MEMORY,
    "cuda-memory-pool-byte-size": _NO_GPU_MEMORY,
    "cuda-virtual-address-size": _NO_GPU_MEMORY,
    "buffer-manager-thread-count": "tensors are not copied by threads",
}
