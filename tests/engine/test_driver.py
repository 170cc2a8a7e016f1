import asyncio

import pytest

from merrow.backends.base import Execution
from merrow.core.errors import InternalError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelOutput, ModelQueuePolicy
from merrow.core.request import Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.engine.driver import ModelDriver
from merrow.engine.validation import ResponseShaper
from merrow.observe.statistics import FailureReason, StatisticsRecorder
from merrow.schedule.dynamic_batch import BatchPolicy, DynamicBatcher
from merrow.testing.manual_clock import ManualClock


class Sink:
    def __init__(self):
        self.responses = []

    def on_response(self, response):
        self.responses.append(response)


class LateInstance:
    """Takes batches and answers only when the test says so."""

    def __init__(self, name="m_0", depth=1):
        self.name = name
        self.depth = depth
        self.is_healthy = True
        self.batches = []
        self.cancelled = []

    def submit(self, requests):
        assert self.is_healthy
        self.batches.append(tuple(requests))
        assert len(self.batches) <= self.depth

    def cancel(self, request):
        self.cancelled.append(request)

    async def close(self):
        pass


class Timers:
    def __init__(self):
        self.armed = []

    def call_at(self, deadline_ns, callback):
        timer = Timer(self, deadline_ns, callback)
        self.armed.append(timer)
        return timer

    def fire(self, clock):
        for timer in [timer for timer in self.armed if timer.deadline_ns <= clock.now_ns]:
            self.armed.remove(timer)
            timer.callback()


class Timer:
    def __init__(self, timers, deadline_ns, callback):
        self.timers, self.deadline_ns, self.callback = timers, deadline_ns, callback

    def cancel(self):
        self.timers.armed.remove(self)


class Rig:
    """A driver with instances, a clock and timers of the test's own."""

    def __init__(self, instances=1, depth=1, batching=None, preserves_order=False):
        self.clock = ManualClock()
        self.timers = Timers()
        self.statistics = StatisticsRecorder()
        batcher = None
        if batching is not None:
            policy = {
                "max_batch_size": 8,
                "preferred_batch_sizes": frozenset({8}),
                "max_queue_delay_ns": 0,
                "priority_levels": 0,
                "default_priority_level": 0,
                "default_queue_policy": ModelQueuePolicy(),
                "priority_queue_policies": {},
            }
            batcher = DynamicBatcher(BatchPolicy(**{**policy, **batching}))
        self.driver = ModelDriver(
            "m",
            1,
            batcher,
            ResponseShaper(ModelConfig(name="m", output=(ModelOutput(name="y"), ModelOutput(name="z")))),
            self.statistics,
            self.clock,
            self.timers.call_at,
            preserves_order,
        )
        self.instances = [LateInstance(f"m_{i}", depth) for i in range(instances)]
        for instance in self.instances:
            self.driver.add_instance(instance)

    def request(self, id="", rows=1, requested=()):
        request = Request("m", 1, Sink(), {}, requested, id)
        request.batch_size = rows
        request.arrival_ns = self.clock()
        self.driver.enqueue(request, self.clock())
        return request

    def answer(self, instance, outcome=None):
        requests = instance.batches.pop(0)
        outcomes = [outcome or Response("?", 0, outputs=[Tensor("y", "FP32", (1,), b"")]) for _ in requests]
        now = self.clock.now_ns
        self.driver.on_execution(instance, requests, Execution(outcomes, now, now, now, now))

    def counts(self):
        return self.statistics.snapshot("m", 1, self.clock.now_ns, 0)


def test_a_request_goes_straight_to_an_idle_instance_and_is_answered_with_its_id():
    rig = Rig()
    request = rig.request("a")
    rig.answer(rig.instances[0])

    (response,) = request.sink.responses
    assert (response.model_name, response.model_version, response.id) == ("m", 1, "a")
    assert rig.driver.in_flight_count == 0


def test_requests_wait_their_turn_behind_a_busy_instance():
    rig = Rig()
    first, second = rig.request(), rig.request()

    assert rig.instances[0].batches == [(first,)]
    assert rig.driver.pending_count == 1
    rig.answer(rig.instances[0])
    assert rig.instances[0].batches == [(second,)]


def test_the_idle_instance_takes_the_next_request():
    rig = Rig(instances=2, depth=4)
    first, second, third = rig.request(), rig.request(), rig.request()

    assert rig.instances[0].batches == [(first,), (third,)]
    assert rig.instances[1].batches == [(second,)]


def test_statistics_count_each_success():
    rig = Rig(batching={})
    rig.request(rows=2)
    rig.clock.advance(1000)
    rig.request(rows=1)
    rig.request(rows=3)
    rig.answer(rig.instances[0])
    rig.answer(rig.instances[0])

    counts = rig.counts()
    assert (counts.success.count, counts.inference_count, counts.execution_count) == (3, 6, 2)
    assert [(batch.batch_size, batch.compute_infer.count) for batch in counts.batch_stats] == [(2, 1), (4, 1)]
    assert counts.queue.count == counts.compute_infer.count == 3


def test_a_failed_execution_counts_as_an_execution_and_a_failure():
    rig = Rig()
    request = rig.request()
    rig.answer(rig.instances[0], InternalError("boom"))

    assert request.sink.responses[0].error.message == "boom"
    counts = rig.counts()
    assert (counts.success.count, counts.fail.count, counts.execution_count, counts.inference_count) == (0, 1, 1, 0)
    assert counts.failures[FailureReason.BACKEND] == 1


def test_a_response_that_carries_an_error_counts_as_success():
    rig = Rig()
    rig.request()
    rig.answer(rig.instances[0], Response("m", 1, error=InternalError("mine")))

    assert rig.counts().success.count == 1


def test_unrequested_outputs_are_dropped():
    rig = Rig()
    outputs = [Tensor("y", "FP32", (1,), b""), Tensor("z", "FP32", (1,), b""), Tensor("unknown", "FP32", (1,), b"")]
    some, everything = rig.request(requested=("z",)), None
    rig.answer(rig.instances[0], Response("m", 1, outputs=list(outputs)))
    everything = rig.request()
    rig.answer(rig.instances[0], Response("m", 1, outputs=list(outputs)))

    assert [output.name for output in some.sink.responses[0].outputs] == ["z"]
    assert [output.name for output in everything.sink.responses[0].outputs] == ["y", "z"]


def test_the_death_of_the_only_instance_fails_everything_at_once():
    rig = Rig()
    running, waiting = rig.request(), rig.request()
    instance = rig.instances[0]
    instance.is_healthy = False
    rig.driver.on_failure(instance, instance.batches.pop(), InternalError("Stub process 'm_0' is not healthy."))
    rig.driver.on_health_change(instance, False)
    late = rig.request()

    for request in (running, waiting, late):
        (response,) = request.sink.responses
        assert response.error.message == "Stub process 'm_0' is not healthy."
    assert rig.driver.in_flight_count == 0
    assert rig.counts().fail.count == 3
    assert not rig.driver.is_healthy


def test_what_waits_for_another_instance_survives_a_death():
    rig = Rig(instances=2)
    rig.request(), rig.request()
    waiting = rig.request()
    dead, alive = rig.instances
    dead.is_healthy = False
    rig.driver.on_failure(dead, dead.batches.pop(), InternalError("dead"))
    rig.driver.on_health_change(dead, False)
    assert waiting.sink.responses == []
    rig.answer(alive)

    assert alive.batches == [(waiting,)]


def test_a_recovered_instance_takes_what_waits():
    rig = Rig(instances=2)
    rig.instances[1].is_healthy = False
    rig.request()
    waiting = rig.request()
    rig.instances[1].is_healthy = True
    rig.driver.on_health_change(rig.instances[1], True)

    assert rig.instances[1].batches == [(waiting,)]


def test_a_queued_request_whose_client_left_is_answered_cancelled_and_never_run():
    rig = Rig()
    rig.request()
    gone = rig.request()
    rig.driver.cancel(gone)
    rig.answer(rig.instances[0])

    assert gone.sink.responses[0].error.code.name == "CANCELLED"
    assert rig.instances[0].batches == []
    assert rig.counts().failures[FailureReason.CANCELED] == 1


def test_a_running_model_is_told_that_the_client_left():
    rig = Rig()
    gone = rig.request()
    rig.driver.cancel(gone)

    assert gone.is_cancelled
    assert rig.instances[0].cancelled == [gone]


def test_a_batch_waits_for_the_queue_delay_and_then_runs():
    rig = Rig(batching={"max_queue_delay_ns": 5000})
    first = rig.request()
    rig.clock.advance(4000)
    second = rig.request()
    rig.timers.fire(rig.clock)
    assert rig.instances[0].batches == []
    rig.clock.advance(1000)
    rig.timers.fire(rig.clock)

    assert rig.instances[0].batches == [(first, second)]
    assert rig.timers.armed == []


def test_a_batch_grows_while_the_instance_is_busy():
    rig = Rig(batching={})
    first = rig.request()
    others = [rig.request() for _ in range(3)]
    rig.answer(rig.instances[0])

    assert first.sink.responses
    assert rig.instances[0].batches == [tuple(others)]


def test_a_queue_timeout_is_answered_while_the_instance_is_busy():
    rig = Rig(batching={"default_queue_policy": ModelQueuePolicy(default_timeout_microseconds=5)})
    rig.request()
    late = rig.request()
    rig.clock.advance(5000)
    rig.timers.fire(rig.clock)

    assert isinstance(late.sink.responses[0].error, UnavailableError)
    assert late.sink.responses[0].error.message == "Request timeout expired"
    assert rig.counts().failures[FailureReason.REJECTED] == 1


def test_a_full_queue_refuses_and_counts_nothing():
    rig = Rig(batching={"default_queue_policy": ModelQueuePolicy(max_queue_size=1)})
    rig.request(), rig.request()

    with pytest.raises(UnavailableError):
        rig.request()
    assert rig.counts().fail.count == 0
    assert rig.driver.in_flight_count == 2


def test_preserved_order_holds_back_an_early_answer():
    rig = Rig(instances=2, preserves_order=True)
    first, second = rig.request("1"), rig.request("2")
    rig.answer(rig.instances[1])
    assert second.sink.responses == []
    rig.answer(rig.instances[0])

    assert first.sink.responses
    assert second.sink.responses


def test_draining_refuses_new_requests_and_waits_for_the_old():
    async def scenario():
        rig = Rig()
        rig.request()
        drain = asyncio.ensure_future(rig.driver.drain())
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="has stopped accepting new inference requests"):
            rig.request()
        assert not drain.done()
        rig.answer(rig.instances[0])
        await drain

    asyncio.run(scenario())
