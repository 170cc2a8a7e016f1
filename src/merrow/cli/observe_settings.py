"""From the given flags to what is traced and measured.

    --trace-config <setting>=<value>            level (several add up), rate, count, mode
    --trace-config <mode>,<setting>=<value>     of the modes triton and opentelemetry
    --metrics-config <setting>=<value>

The older flags of tracing do the same as `--trace-config`, which counts for more.

Source: Triton, command_line_parser.cc: ParseTraceConfigOption, ParseTraceLevelOption, VerifyOpentelemetryTraceArgs.
"""

from collections.abc import Callable, Mapping
from typing import TypeVar

from merrow.cli.flags import INT32_MAX, FlagError, FlagValues, read_int
from merrow.settings import MetricsSettings, TraceMode, TraceSettings

_LEVELS = {
    "off": 0,
    "false": 0,
    "on": 1,
    "true": 1,
    "min": 1,
    "max": 1,
    "timestamps": 1,
    "tensors": 2,
}
_TIMESTAMPS, _TENSORS = 1, 2

# Settings of the batch processor, in the order in which they are shown: default, and variable of the environment.
_BATCH_PROCESSOR = {
    "bsp_schedule_delay": ("5000", "OTEL_BSP_SCHEDULE_DELAY"),
    "bsp_max_export_batch_size": ("512", "OTEL_BSP_MAX_EXPORT_BATCH_SIZE"),
    "bsp_max_queue_size": ("2048", "OTEL_BSP_MAX_QUEUE_SIZE"),
}
_OPEN_TELEMETRY_SETTINGS = frozenset({"url", "resource", *_BATCH_PROCESSOR})

_UINT32 = 2**32

_T = TypeVar("_T")


def read_trace_setting(text: str) -> tuple[str, str, str]:
    """`<setting>=<value>` (mode empty) or `<mode>,<setting>=<value>`."""
    name, separator, value = text.partition("=")
    mode, comma, setting = name.partition(",")
    if not comma:
        mode, setting = "", name
    if not separator or not setting or not value or (comma and not mode):
        raise FlagError(f"--trace-config option format is '<trace mode>,<setting>=<value>'. Got {text}\n")
    if mode:
        read_trace_mode(mode)
    return mode, setting, value


def read_trace_mode(text: str) -> TraceMode:
    """`triton` or `opentelemetry`."""
    try:
        return TraceMode(text)
    except ValueError:
        raise FlagError(
            f'invalid value for trace mode option: {text}. Available options are "triton" and "opentelemetry"'
        ) from None


def read_trace_level(text: str) -> int:
    """A level in any case, as bits; the older names and booleans, too."""
    level = _LEVELS.get(text.lower())
    if level is None:
        raise FlagError(f"invalid value for trace level option: {text}")
    return level


def read_metrics_setting(text: str) -> tuple[str, str]:
    """`<setting>=<value>`."""
    name, separator, value = text.partition("=")
    if not separator or not name or not value or "," in name:
        raise FlagError(f"--metrics-config option format is <setting>=<value>. Got {text}\n")
    return name, value


def build_trace_settings(values: FlagValues, environment: Mapping[str, str], warnings: list[str]) -> TraceSettings:
    """The settings of tracing; what must be said about them is appended to `warnings`.

    Raises:
        FlagError: a setting has an impossible value.
    """
    for name in ("trace-file", "trace-level", "trace-rate", "trace-count", "trace-log-frequency"):
        if values.has(name):
            warnings.append(
                f"'--{name}' has been deprecated and will be removed in future releases. Please use "
                "'--trace-config' instead."
            )
    defaults = TraceSettings()
    levels = list(values.all("trace-level"))
    found: dict[str, object] = {
        "file": values.last("trace-file", defaults.file),
        "rate": values.last("trace-rate", defaults.rate),
        "count": values.last("trace-count", defaults.count),
        "log_frequency": values.last("trace-log-frequency", defaults.log_frequency),
        "mode": defaults.mode,
    }
    config_levels: list[int] = []
    options: list[tuple[str, str]] = []
    for mode, setting, value in values.all("trace-config"):
        name = f"{mode},{setting}" if mode else setting
        if name == "level":
            config_levels.append(_read(name, read_trace_level, value))
        elif name == "mode":
            found["mode"] = _read(name, read_trace_mode, value)
        elif name in ("rate", "count"):
            found[name] = _read(name, read_int, value)
        elif name == "triton,file":
            found["file"] = value
        elif name == "triton,log-frequency":
            found["log_frequency"] = _read(name, read_int, value)
        elif mode == TraceMode.OPENTELEMETRY.value and setting in _OPEN_TELEMETRY_SETTINGS:
            if setting in _BATCH_PROCESSOR:
                _read_positive(name, value)
            elif setting == "resource" and "=" not in value:
                raise _bad_option(name, f"a resource attribute is <key>=<value>. Got {value}")
            options.append((setting, value))
        else:
            warnings.append(f"--trace-config {name} is not known, and has no effect")
    level = 0
    for each in config_levels or levels:
        level |= each
    is_open_telemetry = found["mode"] is TraceMode.OPENTELEMETRY
    given = {name for name, _ in options}
    for setting, (default, variable) in _BATCH_PROCESSOR.items():
        if is_open_telemetry and setting not in given:
            value = environment.get(variable) or default
            _read_positive(variable, value)
            options.append((setting, value))
    rate, log_frequency = found["rate"], found["log_frequency"]
    assert isinstance(rate, int)
    assert isinstance(log_frequency, int)
    # A negative number is a large one, where Triton keeps it without a sign.
    found["rate"], found["log_frequency"] = rate % _UINT32, log_frequency % _UINT32
    settings = TraceSettings(
        **found,  # type: ignore[arg-type]  # each has been read as its field's type
        timestamps=bool(level & _TIMESTAMPS),
        tensors=bool(level & _TENSORS),
        opentelemetry=tuple(options) if is_open_telemetry else (),
    )
    if level and not is_open_telemetry and not settings.file:
        warnings.append("nothing is traced: --trace-config triton,file=<path> is missing")
    return settings


def build_metrics_settings(values: FlagValues, warnings: list[str]) -> MetricsSettings:
    """The settings of the metrics; what must be said about them is appended to `warnings`.

    Raises:
        FlagError: a setting has an impossible value.
    """
    defaults = MetricsSettings()
    switches = {
        "counter_latencies": defaults.counter_latencies,
        "summary_latencies": defaults.summary_latencies,
        "histogram_latencies": defaults.histogram_latencies,
        "merrow_histograms": defaults.merrow_histograms,
    }
    quantiles = defaults.summary_quantiles
    for name, value in values.all("metrics-config"):
        if name in switches and value in ("true", "false"):
            switches[name] = value == "true"
        elif name in switches:
            warnings.append(f"--metrics-config {name}={value} has no effect: only true and false mean something")
        elif name == "summary_quantiles":
            quantiles = _read_quantiles(value, warnings)
        else:
            warnings.append(f"--metrics-config {name} is not known, and has no effect")
    interval_ms = values.last("metrics-interval-ms", float(defaults.interval_ms))
    if not 0 <= interval_ms <= INT32_MAX:
        text = f"Provided option value is out of bound. Got {interval_ms:g}"
        raise FlagError(f'Bad option: "--metrics-interval-ms".\n{text}')
    return MetricsSettings(
        summary_quantiles=quantiles,
        allow_gpu_metrics=values.last("allow-gpu-metrics", defaults.allow_gpu_metrics),
        allow_cpu_metrics=values.last("allow-cpu-metrics", defaults.allow_cpu_metrics),
        interval_ms=int(interval_ms),
        **switches,
    )


def _read_quantiles(text: str, warnings: list[str]) -> tuple[tuple[float, float], ...]:
    """`<quantile>:<error>,...`; pairs that are none are left out, with a warning."""
    quantiles = []
    for pair in text.split(","):
        rank_text, _, error_text = pair.partition(":")
        try:
            rank, error = float(rank_text), float(error_text)
        except ValueError:
            rank = error = -1.0
        if 0 <= rank <= 1 and 0 <= error <= 1:
            quantiles.append((rank, error))
        else:
            warnings.append(f"--metrics-config summary_quantiles: {pair} is no <quantile>:<error>, and is left out")
    return tuple(quantiles)


def _read(name: str, read: Callable[[str], _T], value: str) -> _T:
    try:
        return read(value)
    except FlagError as error:
        raise _bad_option(name, str(error)) from None


def _read_positive(name: str, value: str) -> None:
    try:
        is_positive = read_int(value) > 0
    except FlagError:
        is_positive = False
    if not is_positive:
        raise _bad_option(name, f"Invalid option value. Got {value}")


def _bad_option(name: str, text: str) -> FlagError:
    return FlagError(f'Bad option: "--trace-config {name}".\n{text}')
