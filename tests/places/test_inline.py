import asyncio
import logging

from merrow.backends.base import Execution, Instance
from merrow.core.response import Response
from merrow.places.base import Caller
from merrow.places.inline import BUDGET_NS, InlineInstance
from merrow.places.local_host import LocalEnvironment
from tests.places.recording_services import RecordingServices


class Fixed(Instance):
    def __init__(self, execution_ns):
        self.execution_ns = execution_ns
        self.is_closed = False

    def execute(self, requests):
        return Execution([Response("m", 1) for _ in requests], 0, 0, self.execution_ns, self.execution_ns)

    def close(self):
        self.is_closed = True


class Events:
    def __init__(self):
        self.executions = []

    def on_execution(self, instance, requests, execution):
        self.executions.append((instance, requests, execution))


def make_instance(name, model, events=None):
    environment = LocalEnvironment(None, RecordingServices(), 1000)
    return InlineInstance(Caller("m", 1, name), lambda host: model, events or Events(), environment)


def test_submit_reports_before_it_returns():
    events = Events()
    instance = make_instance("m_0", Fixed(1), events)
    instance.submit(["a"])

    ((reporter, requests, execution),) = events.executions
    assert reporter is instance
    assert requests == ["a"]
    assert len(execution.outcomes) == 1


def test_closing_closes_the_model():
    model = Fixed(1)
    asyncio.run(make_instance("m_0", model).close())

    assert model.is_closed


def test_a_model_over_the_budget_is_named_once(caplog):
    caplog.set_level(logging.WARNING)
    instance = make_instance("slow_0", Fixed(BUDGET_NS * 2))
    for _ in range(200):
        instance.submit(["a"])

    (record,) = caplog.records
    assert "instance 'slow_0' runs inline but takes 200 us per execution" in record.getMessage()


def test_a_model_within_the_budget_is_not_mentioned(caplog):
    caplog.set_level(logging.WARNING)
    instance = make_instance("quick_0", Fixed(BUDGET_NS // 2))
    for _ in range(200):
        instance.submit(["a"])

    assert caplog.records == []
