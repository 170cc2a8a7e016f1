"""What every flag of `merrow serve` means: Triton's, by Triton's names, and merrow's own.

`SERVE_FLAGS` is the one table, in the order of the help; the flags of the network have a module of their own. A flag
becomes a field of `Settings`, or can mean nothing here (`NO_EFFECT`) and is accepted with a warning that says why.

Source: Triton, command_line_parser.cc.
"""

from merrow.cli.flags import (
    Flag,
    FlagGroup,
    integer_from,
    one_of,
    read_backend_setting,
    read_bool,
    read_float,
    read_int,
    read_int64,
    read_not_negative,
    read_port,
    read_positive,
    read_string,
    read_verbose_level,
)
from merrow.cli.network_flags import NETWORK_FLAGS, tls_flags
from merrow.cli.observe_settings import read_metrics_setting, read_trace_level, read_trace_setting
from merrow.cli.scheduling_settings import read_cache_setting, read_host_policy, read_rate_limit_resource

_ONE_THREAD = "one thread serves all connections, without locks"
_NO_GPU_MEMORY = "merrow holds no pools of pinned or device memory; the runtimes manage their own"


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
                read_not_negative,
                "Seconds that accepted requests have to finish when the server exits. Default is 30.",
                "integer",
            ),
            Flag(
                "loop-stall-limit-ms",
                read_not_negative,
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
            Flag("model-load-thread-count", read_positive, "Models loaded side by side. Default is 4.", "integer"),
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
    *NETWORK_FLAGS,
    FlagGroup(
        "Metrics",
        (
            Flag("allow-metrics", read_bool, "Offer Prometheus metrics. Default is true.", "boolean"),
            Flag("metrics-address", read_string, "Address of the metrics port. Default is that of HTTP."),
            Flag("metrics-port", read_port, "Metrics port; 0 takes a free one. Default is 8002.", "integer"),
            Flag(
                "reuse-metrics-port",
                read_bool,
                "Let several servers share the metrics port. Default is false. merrow's own.",
                "boolean",
            ),
            *tls_flags("metrics", "the metrics port", " merrow's own."),
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
                read_not_negative,
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
