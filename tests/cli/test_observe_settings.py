"""Flags of tracing and metrics, with the errors of Triton 2.51."""

import pytest

from merrow.cli.flags import FlagError, FlagValues, parse_flags
from merrow.cli.observe_settings import build_metrics_settings, build_trace_settings
from merrow.cli.serve_flags import SERVE_FLAGS
from merrow.settings import MetricsSettings, TraceMode, TraceSettings


def values_of(*arguments):
    return FlagValues(parse_flags(arguments, SERVE_FLAGS))


def trace(*settings, environment=None, flags=()):
    """The settings and warnings of these values of --trace-config."""
    warnings = []
    arguments = [f"--trace-config={setting}" for setting in settings]
    return build_trace_settings(values_of(*arguments, *flags), environment or {}, warnings), warnings


def metrics(*settings, flags=()):
    warnings = []
    arguments = [f"--metrics-config={setting}" for setting in settings]
    return build_metrics_settings(values_of(*arguments, *flags), warnings), warnings


def test_nothing_is_traced_by_default():
    assert trace() == (TraceSettings(), [])


def test_traces_to_files_have_their_settings():
    settings = ("level=TIMESTAMPS", "level=tensors", "rate=5", "count=7", "triton,file=/t", "triton,log-frequency=3")

    assert trace(*settings) == (
        TraceSettings(timestamps=True, tensors=True, rate=5, count=7, file="/t", log_frequency=3),
        [],
    )


@pytest.mark.parametrize("level", ["OFF", "off", "false"])
def test_levels_that_are_off(level):
    assert trace(f"level={level}") == (TraceSettings(), [])


@pytest.mark.parametrize("level", ["min", "MAX", "true", "On", "timestamps"])
def test_older_levels(level):
    assert trace(f"level={level}", "triton,file=/t")[0].timestamps


def test_a_missing_file_is_told():
    assert trace("level=TIMESTAMPS")[1] == ["nothing is traced: --trace-config triton,file=<path> is missing"]


def test_negative_numbers_are_large_ones():
    settings = trace("rate=-1", "triton,log-frequency=-2")[0]

    assert (settings.rate, settings.log_frequency) == (4294967295, 4294967294)


OTEL = (
    "mode=opentelemetry",
    "opentelemetry,url=http://x",
    "opentelemetry,resource=a=b=c",
    "opentelemetry,resource=d=e",
    "opentelemetry,bsp_schedule_delay=7",
)


def test_settings_of_opentelemetry_keep_their_order():
    settings, warnings = trace(*OTEL, environment={"OTEL_BSP_MAX_QUEUE_SIZE": "9"})

    assert settings.mode is TraceMode.OPENTELEMETRY
    assert settings.opentelemetry == (
        ("url", "http://x"),
        ("resource", "a=b=c"),
        ("resource", "d=e"),
        ("bsp_schedule_delay", "7"),
        ("bsp_max_export_batch_size", "512"),
        ("bsp_max_queue_size", "9"),
    )
    assert warnings == []


def test_settings_of_the_other_mode_wait():
    assert trace("opentelemetry,url=http://x")[0] == TraceSettings()


def test_what_is_not_known_is_told():
    assert trace("zzz=1", "triton,zzz=1", "opentelemetry,zzz=1")[1] == [
        "--trace-config zzz is not known, and has no effect",
        "--trace-config triton,zzz is not known, and has no effect",
        "--trace-config opentelemetry,zzz is not known, and has no effect",
    ]


FORMAT = "--trace-config option format is '<trace mode>,<setting>=<value>'. Got "
MODES = '. Available options are "triton" and "opentelemetry"'


@pytest.mark.parametrize(
    ("setting", "text"),
    [
        ("level", f'Bad option: "--trace-config".\n{FORMAT}level\n'),
        ("level=", f'Bad option: "--trace-config".\n{FORMAT}level=\n'),
        ("=x", f'Bad option: "--trace-config".\n{FORMAT}=x\n'),
        (",a=x", f'Bad option: "--trace-config".\n{FORMAT},a=x\n'),
        ("foo,bar=1", f'Bad option: "--trace-config".\ninvalid value for trace mode option: foo{MODES}'),
        ("mode=x", f'Bad option: "--trace-config mode".\ninvalid value for trace mode option: x{MODES}'),
        ("level=x", 'Bad option: "--trace-config level".\ninvalid value for trace level option: x'),
        ("rate=x", 'Bad option: "--trace-config rate".\nInvalid option value. Got x\n'),
        ("count=x", 'Bad option: "--trace-config count".\nInvalid option value. Got x\n'),
        (
            "triton,log-frequency=x",
            'Bad option: "--trace-config triton,log-frequency".\nInvalid option value. Got x\n',
        ),
        (
            "opentelemetry,bsp_max_queue_size=0",
            'Bad option: "--trace-config opentelemetry,bsp_max_queue_size".\nInvalid option value. Got 0',
        ),
        (
            "opentelemetry,resource=x",
            'Bad option: "--trace-config opentelemetry,resource".\na resource attribute is <key>=<value>. Got x',
        ),
    ],
)
def test_what_cannot_be_read(setting, text):
    with pytest.raises(FlagError) as caught:
        trace(setting)
    assert str(caught.value) == text


def test_a_variable_that_cannot_be_read():
    with pytest.raises(FlagError, match="OTEL_BSP_SCHEDULE_DELAY"):
        trace("mode=opentelemetry", environment={"OTEL_BSP_SCHEDULE_DELAY": "x"})


def test_the_older_flags_do_the_same_and_count_for_less():
    flags = [
        "--trace-file=/t",
        "--trace-level=TIMESTAMPS",
        "--trace-rate=5",
        "--trace-count=6",
        "--trace-log-frequency=7",
    ]
    settings, warnings = trace(flags=flags)

    assert settings == TraceSettings(timestamps=True, rate=5, count=6, file="/t", log_frequency=7)
    assert len(warnings) == 5
    assert warnings[0] == (
        "'--trace-file' has been deprecated and will be removed in future releases. Please use '--trace-config' "
        "instead."
    )
    assert trace("level=TENSORS", "rate=9", flags=flags)[0] == TraceSettings(
        tensors=True, rate=9, count=6, file="/t", log_frequency=7
    )
    with pytest.raises(FlagError, match="invalid value for trace level option: x"):
        trace(flags=["--trace-level=x"])


def test_metrics_by_default():
    assert metrics() == (MetricsSettings(), [])


def test_metrics_as_they_are_configured():
    settings = (
        "counter_latencies=false",
        "summary_latencies=true",
        "histogram_latencies=true",
        "merrow_histograms=false",
    )
    flags = ["--metrics-interval-ms=250.5", "--allow-gpu-metrics=false", "--allow-cpu-metrics=false"]

    assert metrics(*settings, "summary_quantiles=0.5:0.05,0.9:0.01", flags=flags) == (
        MetricsSettings(
            counter_latencies=False,
            summary_latencies=True,
            summary_quantiles=((0.5, 0.05), (0.9, 0.01)),
            histogram_latencies=True,
            merrow_histograms=False,
            allow_gpu_metrics=False,
            allow_cpu_metrics=False,
            interval_ms=250,
        ),
        [],
    )


def test_metrics_that_mean_nothing_are_told():
    settings, warnings = metrics("summary_latencies=1", "zzz=true", "summary_quantiles=x,0.5:0.05,2:0.1,0.5")

    assert settings == MetricsSettings(summary_quantiles=((0.5, 0.05),))
    assert warnings == [
        "--metrics-config summary_latencies=1 has no effect: only true and false mean something",
        "--metrics-config zzz is not known, and has no effect",
        "--metrics-config summary_quantiles: x is no <quantile>:<error>, and is left out",
        "--metrics-config summary_quantiles: 2:0.1 is no <quantile>:<error>, and is left out",
        "--metrics-config summary_quantiles: 0.5 is no <quantile>:<error>, and is left out",
    ]


@pytest.mark.parametrize("setting", ["x", "=y", "x=", "a,b=c"])
def test_metrics_that_cannot_be_read(setting):
    with pytest.raises(FlagError, match="--metrics-config option format is <setting>=<value>"):
        metrics(setting)


@pytest.mark.parametrize("value", ["-1", "1e30"])
def test_intervals_have_bounds(value):
    with pytest.raises(FlagError, match="Provided option value is out of bound"):
        metrics(flags=[f"--metrics-interval-ms={value}"])
