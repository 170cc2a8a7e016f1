"""Health, metadata, configuration, statistics and the repository over REST."""

import asyncio
import json

import pytest

from merrow.core.errors import InvalidArgumentError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelInput, ModelOutput
from merrow.engine.engine import IndexEntry
from merrow.frontends.http.admin import MAX_INLINE_BODY_BYTE_SIZE, HttpAdmin
from merrow.frontends.http.door import HttpFrontend
from merrow.frontends.http.tasks import AnswerTasks
from tests.frontends.fakes import FakeEngine, FakeExchange, FakeModel

CONFIG = ModelConfig(
    name="m",
    backend="python",
    max_batch_size=8,
    input=(ModelInput(name="I", data_type="TYPE_STRING", dims=(4,)),),
    output=(ModelOutput(name="O", data_type="TYPE_FP32", dims=(-1,)),),
)


def make_engine():
    return FakeEngine(FakeModel(CONFIG, version=3))


def ask(engine, method, target, body=b"", max_input_byte_size=1 << 20):
    """The answer to one request."""

    async def run():
        tasks = AnswerTasks()
        admin = HttpAdmin(engine, tasks, b'{"name":"triton"}', max_input_byte_size)
        exchange = FakeExchange(method, target, body)
        HttpFrontend(admin.handlers()).on_exchange(exchange)
        await tasks.close()
        return exchange

    return asyncio.run(run())


def summary(exchange):
    return exchange.status, exchange.content_type, exchange.answer


def test_a_live_and_ready_server_answers_with_nothing():
    assert summary(ask(make_engine(), b"GET", b"/v2/health/live")) == (200, b"text/plain", b"")
    assert summary(ask(make_engine(), b"GET", b"/v2/health/ready")) == (200, b"text/plain", b"")


def test_a_server_that_is_not_answers_400_with_nothing():
    engine = make_engine()
    engine.live = engine.ready = False
    assert summary(ask(engine, b"GET", b"/v2/health/live")) == (400, b"text/plain", b"")
    assert summary(ask(engine, b"GET", b"/v2/health/ready")) == (400, b"text/plain", b"")


def test_an_exiting_server_says_so():
    engine = make_engine()
    engine.is_exiting = True
    for target in (b"/v2/health/live", b"/v2/health/ready"):
        assert summary(ask(engine, b"GET", target)) == (503, b"text/plain", b'{"error":"Server exiting"}')


def test_a_model_s_readiness():
    engine = make_engine()
    assert summary(ask(engine, b"GET", b"/v2/models/m/ready")) == (200, b"text/plain", b"")
    assert summary(ask(engine, b"GET", b"/v2/models/n/ready")) == (
        404,
        b"text/plain",
        b'{"error":"Request for unknown model: \'n\' is not found"}',
    )
    engine.model_ready = False
    assert summary(ask(engine, b"GET", b"/v2/models/m/versions/3/ready")) == (
        400,
        b"text/plain",
        b'{"error":"Model version not ready"}',
    )


def test_metadata_of_the_server_and_of_models():
    engine = make_engine()
    assert summary(ask(engine, b"GET", b"/v2")) == (200, b"application/json", b'{"name":"triton"}')
    expected = (
        b'{"name":"m","versions":["3"],"platform":"python",'
        b'"inputs":[{"name":"I","datatype":"BYTES","shape":[-1,4]}],'
        b'"outputs":[{"name":"O","datatype":"FP32","shape":[-1,-1]}]}'
    )
    assert summary(ask(engine, b"GET", b"/v2/models/m")) == (200, b"application/json", expected)
    assert summary(ask(engine, b"GET", b"/v2/models/m/versions/3")) == (200, b"application/json", expected)
    assert ask(engine, b"GET", b"/v2/models/m/versions/4").status == 404


def test_the_configuration_is_the_model_s_own_text():
    assert summary(ask(make_engine(), b"GET", b"/v2/models/m/config")) == (200, b"application/json", b'{"name":"m"}')


def test_statistics_are_of_a_version_a_model_or_all():
    engine = make_engine()
    for target in (b"/v2/models/stats", b"/v2/models/m/stats", b"/v2/models/m/versions/3/stats"):
        assert summary(ask(engine, b"GET", target)) == (200, b"application/json", b'{"model_stats":[]}')
    assert engine.controls == [("statistics", "", -1), ("statistics", "m", -1), ("statistics", "m", 3)]


def test_the_index_is_an_array():
    engine = make_engine()
    engine.index = [IndexEntry("m", 3, "READY", ""), IndexEntry("n", None, "", "")]
    assert summary(ask(engine, b"POST", b"/v2/repository/index")) == (
        200,
        b"application/json",
        b'[{"name":"m","version":"3","state":"READY"},{"name":"n"}]',
    )
    ask(engine, b"POST", b"/v2/repository/ignored/index", b'{"ready":true}')
    assert engine.controls == [("index", False), ("index", True)]


def test_a_body_that_is_no_json_is_an_internal_error():
    assert summary(ask(make_engine(), b"POST", b"/v2/repository/index", b"{")) == (
        500,
        b"application/json",
        b'{"error":"failed to parse the request JSON buffer: Missing a name for object member. at 1"}',
    )


def test_a_load_is_answered_with_nothing_when_it_is_done():
    engine = make_engine()
    assert summary(ask(engine, b"POST", b"/v2/repository/models/m/load")) == (200, b"application/json", b"")
    ask(engine, b"POST", b"/v2/repository/models/m/load", b'{"parameters":{"config":"{}","file:1/a":"YWI="}}')
    assert engine.controls == [("load", "m", None, None), ("load", "m", "{}", {"1/a": b"ab"})]


def test_a_large_load_is_read_off_the_loop():
    engine = make_engine()
    content = "YWJj" * (MAX_INLINE_BODY_BYTE_SIZE // 4)
    body = json.dumps({"parameters": {"config": "{}", "file:1/a": content}}).encode()
    assert ask(engine, b"POST", b"/v2/repository/models/m/load", body).status == 200
    assert engine.controls == [("load", "m", "{}", {"1/a": b"abc" * (MAX_INLINE_BODY_BYTE_SIZE // 4)})]


def test_a_failed_load_is_answered_with_its_error():
    engine = make_engine()
    engine.control_error = InvalidArgumentError("load failed for model 'm': why;\n")
    assert summary(ask(engine, b"POST", b"/v2/repository/models/m/load")) == (
        400,
        b"application/json",
        b'{"error":"load failed for model \'m\': why;\\n"}',
    )


def test_a_defect_in_a_load_is_answered_and_logged(caplog):
    engine = make_engine()
    engine.control_error = ZeroDivisionError("secret")
    exchange = ask(engine, b"POST", b"/v2/repository/models/m/load")
    assert exchange.status == 500
    assert b"secret" not in exchange.answer
    assert "secret" in caplog.text


def test_broken_options_of_a_load_are_refused_first():
    engine = make_engine()
    exchange = ask(engine, b"POST", b"/v2/repository/models/m/load", b'{"parameters":{"foo":"x"}}')
    assert summary(exchange) == (
        500,
        b"application/json",
        b'{"error":"unexpected error on creating Triton parameter"}',
    )
    assert engine.controls == []


def test_an_unload_may_take_dependents_along():
    engine = make_engine()
    assert summary(ask(engine, b"POST", b"/v2/repository/models/m/unload")) == (200, b"application/json", b"")
    ask(engine, b"POST", b"/v2/repository/models/m/unload", b'{"parameters":{"unload_dependents":true}}')
    assert engine.controls == [("unload", "m", False), ("unload", "m", True)]


@pytest.mark.parametrize("body", [b"{", b'{"parameters":5}', b'{"parameters":{"unload_dependents":1}}', b"[]"])
def test_broken_options_of_an_unload_are_ignored_as_by_triton(body):
    engine = make_engine()
    assert ask(engine, b"POST", b"/v2/repository/models/m/unload", body).status == 200
    assert engine.controls == [("unload", "m", False)]


def test_control_that_is_not_allowed_is_answered():
    engine = make_engine()
    engine.control_error = UnavailableError("explicit model load / unload is not allowed if polling is enabled")
    for action in (b"load", b"unload"):
        assert summary(ask(engine, b"POST", b"/v2/repository/models/m/" + action)) == (
            503,
            b"application/json",
            b'{"error":"explicit model load / unload is not allowed if polling is enabled"}',
        )


@pytest.mark.parametrize("action", [b"load", b"unload"])
def test_a_repository_cannot_be_named(action):
    engine = make_engine()
    assert summary(ask(engine, b"POST", b"/v2/repository/r/models/m/" + action)) == (
        501,
        b"application/json",
        b'{"error":"\'repository_name\' specification is not supported"}',
    )
    assert engine.controls == []


def test_a_body_over_the_limit_is_refused():
    exchange = ask(make_engine(), b"POST", b"/v2/repository/models/m/load", b" " * 100, max_input_byte_size=99)
    assert summary(exchange) == (
        400,
        b"application/json",
        b'{"error":"request JSON size of 100 bytes exceeds the maximum allowed input size of 99 bytes. '
        b'Use --http-max-input-size to increase the limit."}',
    )
