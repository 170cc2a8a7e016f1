"""Log and trace settings over REST."""

import asyncio
import io
import json

import pytest

from merrow.core.model_config import ModelConfig
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.settings import HttpSettings
from merrow.frontends.http.tasks import AnswerTasks
from merrow.observe.logs import start_logging, stop_logging
from merrow.observe.trace import Tracer
from merrow.observe.trace_file import TraceFile
from merrow.settings import LogSettings, TraceSettings
from tests.frontends.fakes import FakeEngine, FakeExchange, FakeModel

SETTING = b"/v2/trace/setting"
OF_M = b"/v2/models/m/trace/setting"


def ask(*requests, log=None, file="/nowhere"):
    """Send requests one after another; returns status and parsed body of each."""

    async def run():
        engine = FakeEngine(FakeModel(ModelConfig(name="m")), FakeModel(ModelConfig(name="sick")))
        tasks = AnswerTasks()
        settings = TraceSettings(file=file)
        tracer = Tracer(settings, TraceFile(file), lambda: 0)
        frontend = HttpFrontend(HttpSettings(engine, tasks, tracer, log, 1000).handlers())
        answers = []
        for method, target, body in requests:
            engine.model_ready = b"sick" not in target
            exchange = FakeExchange(method, target, body)
            frontend.on_exchange(exchange)
            await tasks.close()
            assert exchange.content_type == b"application/json"
            answers.append((exchange.status, json.loads(exchange.answer)))
        await tracer.close()
        return answers

    return asyncio.run(run())


START = {
    "trace_level": ["OFF"],
    "trace_rate": "1000",
    "trace_count": "-1",
    "log_frequency": "0",
    "trace_file": "/nowhere",
    "trace_mode": "triton",
}


def test_trace_settings_are_read_and_changed():
    assert ask(
        (b"GET", SETTING, b""),
        (b"POST", SETTING, b'{"trace_rate":"5"}'),
        (b"POST", OF_M, b'{"trace_count":"7"}'),
        (b"GET", OF_M, b""),
        (b"POST", SETTING, b'{"trace_rate":null}'),
        (b"GET", OF_M, b""),
        (b"POST", SETTING, b"{}"),
    ) == [
        (200, START),
        (200, {**START, "trace_rate": "5"}),
        (200, {**START, "trace_rate": "5", "trace_count": "7"}),
        (200, {**START, "trace_rate": "5", "trace_count": "7"}),
        (200, START),
        (200, {**START, "trace_count": "7"}),
        (200, START),
    ]


def test_trace_settings_that_cannot_be():
    on = b'{"trace_level":["TIMESTAMPS"],"trace_rate":"0"}'
    prefix = "Attempting to set invalid trace setting :"

    assert ask((b"POST", SETTING, on)) == [(400, {"error": f"{prefix}sample rate must be non-zero"})]
    assert ask((b"POST", SETTING, b'{"trace_level":["TIMESTAMPS"]}'), file="") == [
        (400, {"error": f"{prefix}trace file name is not given"})
    ]


@pytest.mark.parametrize("method", [b"GET", b"POST"])
def test_models_that_are_not_there(method):
    assert ask(
        (method, b"/v2/models/nope/trace/setting", b"{}"), (method, b"/v2/models/sick/trace/setting", b"{}")
    ) == [
        (404, {"error": "Request for unknown model: 'nope' is not found"}),
        (400, {"error": "Request for unknown model : sick"}),
    ]


@pytest.mark.parametrize("method", [b"PUT", b"DELETE", b"HEAD"])
def test_other_methods_are_not_allowed(method):
    for target in (SETTING, OF_M, b"/v2/logging"):
        assert ask((method, target, b"{}")) == [(405, {"error": "Method Not Allowed"})]


def test_log_settings_are_read_and_changed():
    log = start_logging(LogSettings(), io.StringIO())
    try:
        answers = ask(
            (b"GET", b"/v2/logging", b""),
            (b"POST", b"/v2/logging", b'{"log_info":false,"log_verbose_level":2}'),
            (b"POST", b"/v2/logging", b'{"log_error":false,"log_format":"x"}'),
            (b"GET", b"/v2/logging", b""),
            log=log,
        )
    finally:
        stop_logging(log)
    start = {
        "log_file": "",
        "log_info": True,
        "log_warning": True,
        "log_error": True,
        "log_verbose_level": 0,
        "log_format": "default",
    }
    changed = {**start, "log_info": False, "log_verbose_level": 2}
    assert answers == [
        (200, start),
        (200, changed),
        (503, {"error": "invalid argument for --log_format, got: x"}),
        (200, {**changed, "log_error": False}),
    ]


def test_a_log_that_is_not_the_servers_cannot_be_changed():
    assert ask((b"GET", b"/v2/logging", b"")) == [(503, {"error": "the server does not support dynamic logging"})]
