import asyncio
import logging

import pytest

from merrow.backends.base import Deferral, Execution, UncountedExecution
from merrow.core.errors import CancelledError, InternalError, UnavailableError
from merrow.core.model_config import ModelConfig, ModelOutput, ModelQueuePolicy
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, Request
from merrow.core.response import Response, ResponseTimes, TimedResponse
from merrow.core.tensor import Tensor
from merrow.engine.driver import ModelDriver
from merrow.engine.validation import ResponseShaper
from merrow.observe.statistics import Duration, DurationHistogram, FailureReason, StatisticsRecorder
from merrow.schedule.dynamic_batch import BatchPolicy, DynamicBatcher
from merrow.testing.manual_clock import ManualClock
from tests.schedule.sequence_rig import SequenceRig


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
        self.resumed = []

    def submit(self, requests):
        assert self.is_healthy
        self.batches.append(tuple(requests))
        assert len(self.batches) <= self.depth

    def cancel(self, request):
        self.cancelled.append(request)

    def resume(self, request):
        self.resumed.append(request)

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

    def __init__(
        self,
        instances=1,
        depth=1,
        batching=None,
        preserves_order=False,
        is_decoupled=False,
        permits=None,
        scheduler=None,
        batch_limit=None,
        call_soon=None,
    ):
        self.clock = ManualClock()
        self.timers = Timers()
        self.statistics = StatisticsRecorder()
        batcher = scheduler
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
            is_decoupled,
            permits,
            batch_limit,
            call_soon,
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

    def defer(self, instance):
        """The batch is back; its responses are not."""
        requests = instance.batches[0]
        self.answer(instance, Deferral.DEFERRED)
        return requests

    def send(self, request, output=None, instance=None, **settings):
        outputs = [Tensor("y", "FP32", (1,), output)] if output is not None else []
        response = Response("?", 0, outputs=outputs, is_empty=output is None and "error" not in settings, **settings)
        self.driver.on_response(instance or self.instances[0], request, response)

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


def test_while_draining_a_sequence_goes_on_but_none_begins():
    async def scenario():
        batching = SequenceRig(instances=0, max_batch_size=1, controls=())
        rig = Rig(scheduler=batching.batcher)

        def step(flags):
            request = Request("m", 1, Sink(), {}, correlation_id=1, flags=flags)
            rig.driver.enqueue(request, rig.clock())
            return request

        step(SEQUENCE_START)
        drain = asyncio.ensure_future(rig.driver.drain())
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError):
            step(SEQUENCE_START)
        last = step(SEQUENCE_END)
        rig.answer(rig.instances[0])
        rig.answer(rig.instances[0])
        await drain
        assert last.sink.responses
        with pytest.raises(UnavailableError):
            step(0)
        assert rig.timers.armed == []

    asyncio.run(scenario())


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


def sent(request):
    """What the client of a request heard: the data of an output, an error's text, or None; and if it is final."""
    return [
        (
            response.error.message if response.error else bytes(response.outputs[0].data) if response.outputs else None,
            response.is_final,
        )
        for response in request.sink.responses
    ]


class Permits:
    """Lets one instance execute at a time."""

    def __init__(self):
        self.holder = None
        self.log = []

    def acquire(self, instance):
        if self.holder is not None:
            return False
        self.holder = instance
        return True

    def release(self, instance, has_executed=True):
        assert self.holder is instance
        self.holder = None
        self.log.append(has_executed)

    def remove(self, instance):
        pass


def test_a_decoupled_request_gets_what_its_model_sends_until_the_final_response():
    rig = Rig(is_decoupled=True)
    request = rig.request("a")
    rig.defer(rig.instances[0])
    assert rig.driver.in_flight_count == 1
    rig.send(request, b"1", is_final=False)
    rig.send(request, b"2", is_final=False)
    rig.send(request)

    assert sent(request) == [(b"1", False), (b"2", False), (None, True)]
    assert {(response.id, response.model_name) for response in request.sink.responses} == {("a", "m")}
    assert rig.driver.in_flight_count == 0


def test_the_instance_is_free_while_responses_are_still_to_come():
    rig = Rig(is_decoupled=True)
    first, second = rig.request(), rig.request()
    rig.defer(rig.instances[0])

    assert rig.instances[0].batches == [(second,)]
    assert rig.driver.in_flight_count == 2
    assert sent(first) == []


def test_responses_may_come_before_their_batch_is_back():
    rig = Rig(is_decoupled=True)
    request = rig.request()
    rig.send(request, b"1", is_final=False)
    rig.send(request, b"2", is_final=True)
    assert rig.driver.in_flight_count == 0
    rig.defer(rig.instances[0])

    assert sent(request) == [(b"1", False), (b"2", True)]
    assert rig.counts().success.count == 1


def test_an_error_in_between_does_not_end_a_decoupled_request():
    rig = Rig(is_decoupled=True)
    request = rig.request()
    rig.defer(rig.instances[0])
    rig.send(request, error=InternalError("one went wrong"), is_final=False)
    rig.send(request, b"2")

    assert sent(request) == [("one went wrong", False), (b"2", True)]


def test_what_is_sent_after_the_final_response_goes_nowhere():
    rig = Rig(is_decoupled=True)
    request = rig.request()
    rig.send(request, b"1")
    rig.send(request, b"2")
    rig.answer(rig.instances[0])
    rig.send(request, b"3")

    assert sent(request) == [(b"1", True)]
    assert rig.driver.in_flight_count == 0


def test_an_execution_that_fails_ends_a_request_that_was_answered_in_part():
    rig = Rig(is_decoupled=True)
    request = rig.request()
    rig.send(request, b"1", is_final=False)
    rig.answer(rig.instances[0], InternalError("boom"))

    assert sent(request) == [(b"1", False), ("boom", True)]
    assert rig.counts().fail.count == 1


def test_a_decoupled_request_is_counted_once_whatever_it_is_answered():
    rig = Rig(is_decoupled=True)
    request = rig.request(rows=3)
    rig.defer(rig.instances[0])
    rig.send(request, b"1", is_final=False)
    rig.send(request)

    counts = rig.counts()
    assert (counts.success.count, counts.inference_count, counts.execution_count) == (1, 3, 1)
    assert counts.response_stats == {}


def test_outputs_of_each_response_are_pruned():
    rig = Rig(is_decoupled=True)
    request = rig.request(requested=("z",))
    rig.send(request, b"1")

    assert request.sink.responses[0].outputs == []


def test_a_model_that_is_not_decoupled_may_send_its_one_response():
    rig = Rig()
    request, also = rig.request(), None
    rig.defer(rig.instances[0])
    rig.send(request, b"1", is_final=False)
    assert sent(request) == []
    rig.send(request)
    assert sent(request) == [(b"1", True)]
    also = rig.request()
    rig.defer(rig.instances[0])
    rig.send(also, b"2")

    assert sent(also) == [(b"2", True)]


@pytest.mark.parametrize(("count", "text"), [(0, "got 0"), (2, "got 2"), (3, "got 3")])
def test_a_model_that_is_not_decoupled_sends_one_response_or_it_is_an_error(count, text):
    rig = Rig()
    request = rig.request()
    rig.defer(rig.instances[0])
    for _ in range(count):
        rig.send(request, b"1", is_final=False)
    rig.send(request)

    assert sent(request) == [(f"expected a single response, {text}", True)]


def test_a_response_and_a_sent_one_are_two():
    rig = Rig()
    request = rig.request()
    rig.send(request, b"1", is_final=False)
    rig.answer(rig.instances[0])

    assert sent(request) == [("expected a single response, got 2", True)]


def test_a_deferred_request_whose_client_left_is_told_to_its_instance():
    rig = Rig(instances=2, is_decoupled=True)
    request = rig.request()
    rig.defer(rig.instances[0])
    rig.driver.cancel(request)
    assert rig.instances[0].cancelled == [request]
    assert rig.instances[1].cancelled == []
    rig.send(request)

    assert sent(request) == [(None, True)]
    rig.driver.cancel(request)
    assert rig.instances[0].cancelled == [request]


def test_a_model_is_told_that_its_client_takes_responses_again():
    rig = Rig(is_decoupled=True)
    request = rig.request()
    rig.driver.resume(request)
    rig.defer(rig.instances[0])
    rig.driver.resume(request)
    rig.send(request)
    rig.driver.resume(request)

    assert rig.instances[0].resumed == [request, request]


def test_the_loss_of_an_instance_ends_open_requests():
    rig = Rig(is_decoupled=True)
    open_request = rig.request()
    rig.defer(rig.instances[0])
    rig.send(open_request, b"1", is_final=False)
    running = rig.request()
    rig.send(running, b"2", is_final=False)
    instance = rig.instances[0]
    instance.is_healthy = False
    rig.driver.on_failure(instance, instance.batches.pop(), InternalError("dead"))
    rig.send(open_request, error=InternalError("dead"))
    rig.driver.on_health_change(instance, False)

    assert sent(open_request) == [(b"1", False), ("dead", True)]
    assert sent(running) == [(b"2", False), ("dead", True)]
    assert rig.driver.in_flight_count == 0


def test_preserved_order_groups_the_responses_of_a_request():
    rig = Rig(instances=2, preserves_order=True, is_decoupled=True)
    first, second = rig.request("1"), rig.request("2")
    rig.send(second, b"a", is_final=False, instance=rig.instances[1])
    rig.send(first, b"b", is_final=False)
    rig.send(second, b"c", is_final=True, instance=rig.instances[1])
    assert (sent(first), sent(second)) == ([(b"b", False)], [])
    rig.send(first)

    assert sent(first) == [(b"b", False), (None, True)]
    assert sent(second) == [(b"a", False), (b"c", True)]
    assert rig.driver.in_flight_count == 0


def test_a_sink_that_asks_again_does_not_break_the_order():
    rig = Rig(instances=2, preserves_order=True, is_decoupled=True)
    first, second = rig.request("1"), rig.request("2")
    third = []
    heard = []

    class Again:
        def on_response(self, response):
            heard.append((response.id, bytes(response.outputs[0].data)))
            if not third:
                third.append(rig.request("3"))
                rig.send(third[0], b"x")

    first.sink = second.sink = Again()
    for data in (b"a", b"b"):
        rig.send(second, data, is_final=data == b"b", instance=rig.instances[1])
    rig.send(first, b"c")

    assert heard == [("1", b"c"), ("2", b"a"), ("2", b"b")]
    assert sent(third[0]) == [(b"x", True)]


def test_responses_that_a_model_measures_are_counted_one_by_one():
    rig = Rig(is_decoupled=True)
    request = rig.request()
    now = rig.clock.now_ns
    rig.driver.on_execution(
        rig.instances[0], rig.instances[0].batches.pop(), UncountedExecution([Deferral.DEFERRED], now, now, now, now)
    )

    def timed(index, output_us, end_us, **settings):
        response = TimedResponse("?", 0, is_final=False, **settings)
        response.times = ResponseTimes(index, now, now + output_us, now + end_us)
        rig.driver.on_response(rig.instances[0], request, response)

    timed(0, 10, 15, outputs=[Tensor("y", "FP32", (1,), b"")])
    timed(1, 10, 15, outputs=[Tensor("y", "FP32", (1,), b"")], error=InternalError("failed"))
    timed(2, 7, 9, is_empty=True)
    timed(2, 7, 9, is_empty=True, error=CancelledError("cancelled"))
    rig.send(request)

    assert sent(request) == [(b"", False), ("failed", False), (None, True)]
    counts = rig.counts()
    assert (counts.success.count, counts.inference_count, counts.execution_count) == (0, 0, 0)
    stats = counts.response_stats
    assert list(stats) == ["0", "1", "2"]
    assert stats["0"].success == Duration(1, 15)
    assert (stats["0"].compute_infer, stats["0"].compute_output) == (Duration(1, 10), Duration(1, 5))
    assert (stats["1"].fail, stats["1"].success) == (Duration(1, 15), Duration())
    assert stats["2"].empty_response == Duration(1, 9)
    assert stats["2"].cancel == Duration(1, 9)
    assert (stats["2"].compute_infer, stats["2"].compute_output) == (Duration(1, 9), Duration())


def test_only_an_iterative_model_may_ask_for_another_turn():
    rig = Rig()
    request = rig.request()
    rig.answer(rig.instances[0], Deferral.RESCHEDULED)

    ((text, is_final),) = sent(request)
    assert text.startswith("Request is released with TRITONSERVER_REQUEST_RELEASE_RESCHEDULE, while the model is not")
    assert is_final
    assert rig.counts().success.count == 1


def test_an_instance_without_a_permit_waits_for_one():
    permits = Permits()
    rig = Rig(instances=2, permits=permits)
    first, second = rig.request(), rig.request()
    assert [instance.batches for instance in rig.instances] == [[(first,)], []]
    rig.answer(rig.instances[0])
    assert [instance.batches for instance in rig.instances] == [[(second,)], []]
    rig.answer(rig.instances[0])

    assert permits.log == [True, True]


def test_a_permit_that_comes_later_lets_the_waiting_run():
    permits = Permits()
    rig = Rig(permits=permits, batching={})
    permits.holder = "another model"
    request = rig.request()
    assert rig.instances[0].batches == []
    permits.holder = None
    rig.driver.on_permit()

    assert rig.instances[0].batches == [(request,)]


def test_nobody_asks_for_a_permit_without_a_batch():
    permits = Permits()
    rig = Rig(permits=permits, batching={"max_queue_delay_ns": 5000})
    rig.request()
    assert permits.holder is None
    rig.clock.advance(5000)
    rig.timers.fire(rig.clock)

    assert permits.holder is rig.instances[0]


def test_instances_ask_for_permits_for_their_own_sequences():
    permits = Permits()
    batching = SequenceRig(instances=0, max_batch_size=1, controls=())
    rig = Rig(instances=2, scheduler=batching.batcher, permits=permits)
    requests = []
    for correlation_id in (1, 2):
        request = Request("m", 1, Sink(), {}, correlation_id=correlation_id, flags=SEQUENCE_START)
        rig.driver.enqueue(request, rig.clock())
        requests.append(request)
    first, second = rig.instances
    assert (permits.holder, second.batches) == (first, [])
    rig.answer(first)

    assert (permits.holder, second.batches) == (second, [(requests[1],)])


class Trace:
    def __init__(self):
        self.log = []

    def record_queued(self, queue_ns):
        self.log.append("queued")

    def record_batch(self, cut, now_ns):
        self.log.append(cut)

    def record_execution(self, start_ns, input_end_ns, output_start_ns, end_ns):
        self.log.append("executed")

    def record_response(self, response, now_ns):
        self.log.append("final" if response.is_final else "response")


@pytest.mark.parametrize("batching", [None, {}])
def test_a_traced_request_is_followed(batching):
    rig = Rig(is_decoupled=True, batching=batching)
    request = Request("m", 1, Sink(), {})
    request.trace = Trace()
    rig.driver.enqueue(request, rig.clock())
    rig.send(request, b"1", is_final=False)
    rig.defer(rig.instances[0])
    rig.send(request)

    cut = [] if batching is None else ["NOTHING_TO_WAIT_FOR"]
    assert request.trace.log == ["queued", *cut, "response", "executed", "final"]


def test_a_traced_request_with_one_answer_is_followed():
    rig = Rig()
    request = Request("m", 1, Sink(), {})
    request.trace = Trace()
    rig.driver.enqueue(request, rig.clock())
    rig.answer(rig.instances[0])

    assert request.trace.log == ["queued", "executed", "final"]


def test_why_a_batch_was_cut_is_said_in_the_verbose_log(caplog):
    caplog.set_level(logging.DEBUG, "merrow.engine")
    rig = Rig(batching={"preferred_batch_sizes": frozenset({2})})
    rig.request(rows=2)

    assert caplog.messages == [
        "model 'm' version 1: batch of 1 requests (2 rows) for instance 'm_0', cut because a preferred size was reached"
    ]


def test_an_instance_that_runs_where_it_is_called_makes_no_stack_of_calls():
    class InlineInstance(LateInstance):
        def submit(self, requests):
            now = rig.clock.now_ns
            rig.driver.on_execution(self, requests, Execution([Response("?", 0)] * len(requests), now, now, now, now))

    rig = Rig(batching={"max_batch_size": 1, "max_queue_delay_ns": 5000, "preferred_batch_sizes": frozenset({4000})})
    rig.instances[0] = instance = InlineInstance("m_1")
    instance.is_healthy = False
    rig.driver.add_instance(instance)
    requests = [rig.request() for _ in range(3000)]
    instance.is_healthy = True
    rig.clock.advance(5000)
    rig.driver.on_health_change(instance, True)

    assert rig.driver.in_flight_count <= 1
    assert sum(len(request.sink.responses) for request in requests) >= 2999


def test_a_generation_on_an_instance_that_runs_where_it_is_called_lets_others_have_a_turn():
    class InlineInstance(LateInstance):
        def submit(self, requests):
            nonlocal turns
            turns += 1
            outcome = Deferral.RESCHEDULED if turns < 1000 else Response("?", 0)
            now = rig.clock.now_ns
            rig.driver.on_execution(self, requests, Execution([outcome], now, now, now, now))

    turns = 0
    batching = SequenceRig(instances=0, max_batch_size=1, controls=(), iterative_sequence=True)
    rig = Rig(instances=0, scheduler=batching.batcher)
    rig.driver.add_instance(InlineInstance())
    request = rig.request()
    waits = 0
    while not request.sink.responses:
        assert turns <= 64 * (waits + 1)
        rig.timers.fire(rig.clock)
        waits += 1

    assert turns == 1000
    assert waits == 15


def test_first_responses_are_observed_where_it_is_wanted():
    rig = Rig(is_decoupled=True)
    rig.driver._statistics = statistics = StatisticsRecorder((1000, 2000))
    request, other = rig.request(), rig.request()
    rig.clock.advance(1500)
    rig.send(request, b"1", is_final=False)
    rig.clock.advance(1500)
    rig.send(request)
    rig.answer(rig.instances[0])
    rig.answer(rig.instances[0])

    histogram = statistics.snapshot("m", 1, rig.clock.now_ns, 0).first_response_histogram
    assert histogram == DurationHistogram((1000, 2000), (0, 1, 1), 4500)
    assert sent(other)


def test_an_instance_leaves_when_its_sequences_have_ended():
    async def scenario():
        batching = SequenceRig(instances=0, max_batch_size=1, controls=())
        rig = Rig(instances=2, scheduler=batching.batcher)
        leaving, staying = rig.instances

        def step(correlation_id, flags):
            request = Request("m", 1, Sink(), {}, correlation_id=correlation_id, flags=flags)
            rig.driver.enqueue(request, rig.clock())
            return request

        step(1, SEQUENCE_START)
        rig.answer(leaving)
        closing = asyncio.ensure_future(rig.driver.close_instance(leaving))
        await asyncio.sleep(0)
        assert not closing.done()
        step(2, SEQUENCE_START)
        assert len(staying.batches) == 1
        step(1, SEQUENCE_END)
        rig.answer(leaving)
        await closing
        assert rig.driver.instances == [staying]

    asyncio.run(scenario())


@pytest.mark.parametrize("batching", [None, {}])
def test_no_more_batches_than_the_limit_execute_at_once(batching):
    rig = Rig(instances=4, batching=batching, batch_limit=2)
    for _ in range(6):
        rig.request()
    assert [len(instance.batches) for instance in rig.instances] == [1, 1, 0, 0]

    rig.answer(rig.instances[1])
    assert [len(instance.batches) for instance in rig.instances] == [1, 1, 0, 0]
    assert len(rig.instances[1].batches[0]) == (1 if batching is None else 4)


def test_what_the_response_cache_knows_is_answered_in_turn():
    rig = Rig(preserves_order=True)
    first = rig.request("first")
    second = Request("m", 1, Sink(), {}, (), "second")
    rig.driver.answer_at_once(second, Response("?", 0, "second"), rig.clock())
    assert (second.sink.responses, rig.driver.in_flight_count) == ([], 2)

    rig.answer(rig.instances[0])
    assert [response.id for response in (*first.sink.responses, *second.sink.responses)] == ["first", "second"]
    assert second.sink.responses[0].model_name == "m"
    third = Request("m", 1, Sink(), {}, (), "third")
    Rig().driver.answer_at_once(third, Response("?", 0, "third"), 0)
    assert [response.id for response in third.sink.responses] == ["third"]


def test_requests_that_come_in_one_turn_of_the_loop_share_a_batch():
    soon = []
    rig = Rig(batching={}, call_soon=soon.append)
    for _ in range(3):
        rig.request()
    assert (rig.instances[0].batches, len(soon)) == ([], 1)

    soon.pop()()
    assert [len(batch) for batch in rig.instances[0].batches] == [3]
    rig.request()
    assert len(soon) == 1


def test_a_queue_is_not_full_while_instances_have_nothing_to_do():
    soon = []
    policy = ModelQueuePolicy(max_queue_size=1)
    rig = Rig(instances=2, batching={"max_batch_size": 1, "default_queue_policy": policy}, call_soon=soon.append)
    for _ in range(3):
        rig.request()
    with pytest.raises(UnavailableError, match="Exceeds maximum queue size"):
        rig.request()

    soon.pop()()
    assert [len(instance.batches) for instance in rig.instances] == [1, 1]
    assert rig.driver.pending_count == 1


def test_instances_below_the_limit_get_batches_in_advance_and_the_others_none():
    rig = Rig(instances=4, depth=2, batch_limit=2)

    for number in range(6):
        rig.request(str(number))

    assert [len(instance.batches) for instance in rig.instances] == [2, 2, 0, 0]
    assert rig.driver.pending_count == 4
    rig.driver.check_invariants()


@pytest.mark.parametrize("batching", [None, {}])
def test_a_model_without_instances_that_take_requests_says_so(batching):
    rig = Rig(instances=0, batching=batching)

    request = rig.request()

    (response,) = request.sink.responses
    assert isinstance(response.error, UnavailableError)
    assert response.error.message == (
        "model 'm' has no instance that takes requests: all of its instance groups are passive"
    )
    assert rig.driver.in_flight_count == 0


def test_the_limit_may_change_with_the_instances():
    rig = Rig(instances=2, batch_limit=1)
    rig.request()
    rig.request()
    assert [len(instance.batches) for instance in rig.instances] == [1, 0]

    rig.driver.batch_limit = 2
    rig.request()
    assert [len(instance.batches) for instance in rig.instances] == [1, 0]
    rig.answer(rig.instances[0])
    assert [len(instance.batches) for instance in rig.instances] == [1, 1]
