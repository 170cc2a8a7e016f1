"""One random life of a driver and its scheduler, from a seed: what happens, and what must be true after each event.

    Simulation(seed).run()

A model (its scheduler, number of instances, whether it is decoupled or keeps order), its clients (priorities,
time-outs, sequences, some leave, some come back the moment they are answered) and its instances (which answer, fail,
defer, give back, die and recover, in any order) are drawn from the seed. At the end everything that waits is let
through.

What is checked: after each event the invariants of driver and scheduler; of each batch its size, its shape, and that a
sequence keeps its row and its instance; of each request that it gets its own responses, in order, and exactly one final
one, the last; and that answers leave in the promised order.
"""

import random
from collections import defaultdict

from merrow.backends.base import Deferral, Execution
from merrow.core.errors import InternalError, ServerError
from merrow.core.model_config import (
    ModelConfig,
    ModelDynamicBatching,
    ModelInput,
    ModelOutput,
    ModelQueuePolicy,
    ModelSequenceBatching,
    ModelSequenceBatchingControl,
    ModelSequenceBatchingControlInput,
    ModelSequenceBatchingState,
    ModelSequenceBatchingStrategyDirect,
    ModelSequenceBatchingStrategyOldest,
)
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, PaddingRequest, Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.engine.driver import ModelDriver
from merrow.engine.scheduling import make_scheduler, preserves_order
from merrow.engine.validation import RequestValidator, ResponseShaper
from merrow.observe.statistics import StatisticsRecorder
from merrow.settings import SchedulerHold
from merrow.testing.manual_clock import ManualClock

KINDS = ("none", "dynamic", "direct", "oldest")


class Client:
    """The sink of one request, and what its client does."""

    def __init__(self, simulation, number):
        self.simulation = simulation
        self.number = number
        self.responses = []
        self.request = None

    def on_response(self, response):
        assert not (self.responses and self.responses[-1].is_final), "a response after the final one"
        assert response.id == str(self.number)
        if response.error is None and not response.is_empty:
            (output,) = [output for output in response.outputs if output.name == "OUT"]
            owner, index = map(int, bytes(output.data).split(b"/"))
            assert owner == self.number, "the response to another request"
            own = [each for each in self.responses if each.error is None and not each.is_empty]
            assert index == len(own), "responses out of order"
        self.responses.append(response)
        if response.is_final:
            self.simulation.finished.append(self)
            if self.simulation.random.random() < 0.1 and not self.simulation.is_ending:
                self.simulation.new_request()


class Instance:
    """Takes batches; the simulation says what becomes of them."""

    def __init__(self, simulation, name, depth):
        self.simulation = simulation
        self.name = name
        self.depth = depth
        self.is_healthy = True
        self.batches = []
        self.told = []

    def submit(self, requests):
        assert self.is_healthy
        self.batches.append(tuple(requests))
        assert len(self.batches) <= self.depth
        self.simulation.check_batch(self, requests)

    def cancel(self, request):
        self.told.append(request)

    def resume(self, request):
        pass


class Permits:
    """A rate limiter that lets `count` instances execute at a time."""

    def __init__(self, simulation, count):
        self.simulation = simulation
        self.left = count
        self.is_wanted = False

    def acquire(self, instance):
        if not self.left:
            self.is_wanted = True
            return False
        self.left -= 1
        return True

    def release(self, instance, has_executed=True):
        self.left += 1


class Timers:
    def __init__(self):
        self.armed = []

    def call_at(self, deadline_ns, callback):
        timer = Timer(self, deadline_ns, callback)
        self.armed.append(timer)
        assert len(self.armed) == 1, "more than one timer"
        return timer


class Timer:
    def __init__(self, timers, deadline_ns, callback):
        self.timers, self.deadline_ns, self.callback = timers, deadline_ns, callback

    def cancel(self):
        self.timers.armed.remove(self)


class Simulation:
    """See the module."""

    def __init__(self, seed):
        self.random = random.Random(seed)
        draw = self.random
        self.kind = draw.choice(KINDS)
        self.is_decoupled = draw.random() < 0.4
        self.is_iterative = self.kind in ("direct", "oldest") and draw.random() < 0.3
        self.max_batch_size = draw.choice((0, 1, 2, 3, 8)) if self.kind != "none" else 0
        self.config = self.draw_config()
        self.clock = ManualClock()
        self.timers = Timers()
        self.statistics = StatisticsRecorder()
        validator = RequestValidator(self.config)
        hold = SchedulerHold(draw.randrange(4)) if draw.random() < 0.05 else SchedulerHold()
        self.hold_count = hold.request_count
        self.permits = Permits(self, draw.randint(1, 2)) if draw.random() < 0.2 else None
        self.driver = ModelDriver(
            "m",
            1,
            make_scheduler(self.config, validator, self.statistics, lambda name: b"", hold),
            ResponseShaper(self.config),
            self.statistics,
            self.clock,
            self.timers.call_at,
            preserves_order(self.config),
            self.is_decoupled,
            self.permits,
        )
        depth = draw.randint(1, 2) if self.kind == "none" else 1
        self.instances = [Instance(self, f"m_{number}", depth) for number in range(draw.randint(1, 3))]
        for instance in self.instances:
            self.driver.add_instance(instance)
        self.clients = []
        self.accepted = []
        self.finished = []
        # What deferred and iterated requests were sent so far, by client; and which may still be sent more.
        self.sent = defaultdict(int)
        self.deferred = []
        self.executions = defaultdict(list)
        self.rows_of = {}
        # How often a correlation id was used to start a sequence; the checks are for those that did so once.
        self.starts = defaultdict(int)
        self.is_ending = False
        self.next_correlation_id = 1
        self.open_ids = []

    def draw_config(self):
        draw = self.random
        values = {
            "name": "m",
            "max_batch_size": self.max_batch_size,
            "input": (ModelInput(name="IN", data_type="TYPE_UINT8", dims=(-1,)),),
            "output": (ModelOutput(name="OUT", data_type="TYPE_UINT8", dims=(-1,)),),
        }
        preferred = tuple(sorted({draw.randint(1, self.max_batch_size or 1) for _ in range(draw.randint(1, 2))}))
        delay_us = draw.choice((0, 0, 5, 50))
        if self.kind == "dynamic":
            keeps_order = draw.random() < 0.4
            levels = 0 if keeps_order else draw.choice((0, 0, 1, 3))
            values["dynamic_batching"] = ModelDynamicBatching(
                preferred_batch_size=preferred,
                max_queue_delay_microseconds=delay_us,
                preserve_ordering=keeps_order,
                priority_levels=levels,
                default_priority_level=draw.randint(1, levels) if levels else 0,
                default_queue_policy=self.draw_queue_policy(keeps_order),
                priority_queue_policy={level: self.draw_queue_policy(False) for level in range(1, levels)},
            )
        elif self.kind in ("direct", "oldest"):
            controls = tuple(
                ModelSequenceBatchingControlInput(
                    kind, (ModelSequenceBatchingControl(f"CONTROL_SEQUENCE_{kind}", int32_false_true=(0, 1)),)
                )
                for kind in ("START", "END", "READY")
            )
            values["sequence_batching"] = ModelSequenceBatching(
                direct=ModelSequenceBatchingStrategyDirect(delay_us, draw.choice((0.0, 0.0, 0.5, 1.0)))
                if self.kind == "direct"
                else None,
                oldest=ModelSequenceBatchingStrategyOldest(draw.randint(0, 4), preferred, delay_us, draw.random() < 0.4)
                if self.kind == "oldest"
                else None,
                max_sequence_idle_microseconds=draw.choice((10, 100, 1000)),
                control_input=controls,
                state=(ModelSequenceBatchingState("STATE_IN", "STATE_OUT", "TYPE_UINT8", (-1,)),),
                iterative_sequence=self.is_iterative,
            )
        return ModelConfig(**values)

    def draw_queue_policy(self, keeps_order):
        draw = self.random
        return ModelQueuePolicy(
            timeout_action="REJECT" if keeps_order else draw.choice(("REJECT", "DELAY")),
            default_timeout_microseconds=draw.choice((0, 0, 20)),
            allow_timeout_override=draw.random() < 0.5,
            max_queue_size=draw.choice((0, 0, 3)),
        )

    # Running it.

    def run(self, event_count=60):
        events = (
            (self.new_request, 10),
            (self.pass_time, 4),
            (self.finish_batch, 8),
            (self.send_response, 5),
            (self.cancel, 2),
            (self.lose_instance, 0.5),
            (self.restore_instance, 1),
        )
        actions, weights = [event for event, _ in events], [weight for _, weight in events]
        for action in self.random.choices(actions, weights, k=event_count):
            action()
            self.settle()
        self.end()

    def settle(self):
        """What must be true, and what must happen at once, after each event."""
        if self.permits is not None and self.permits.is_wanted and self.permits.left:
            self.permits.is_wanted = False
            self.driver.on_permit()
        self.driver.check_invariants()
        assert self.driver.in_flight_count == len(self.accepted) - len(self.finished)

    def end(self):
        self.is_ending = True
        for _ in range(10_000):
            while any(not instance.is_healthy for instance in self.instances):
                self.restore_instance()
                self.settle()
            if not self.driver.in_flight_count:
                break
            if self.deferred or any(instance.batches for instance in self.instances):
                self.finish_batch()
                self.send_response()
            elif self.timers.armed:
                self.clock.now_ns = max(self.clock.now_ns, self.timers.armed[0].deadline_ns)
                self.fire_timers()
            else:
                # Held back, or an iterative sequence is all there is: its client leaves.
                assert self.hold_count, "nothing will ever happen again"
                for client in self.accepted:
                    self.driver.cancel(client.request)
            self.settle()
        assert self.driver.in_flight_count == 0
        for client in self.accepted:
            assert [response.is_final for response in client.responses[:-1]] == [False] * (len(client.responses) - 1)
            assert client.responses[-1].is_final
            if not self.is_decoupled:
                assert len(client.responses) == 1
        for client in self.clients:
            assert client in self.accepted or not client.responses
        self.check_order()

    def check_order(self):
        dynamic = self.config.dynamic_batching
        if dynamic is not None and dynamic.preserve_ordering:
            assert [client.number for client in self.finished] == sorted(client.number for client in self.finished)
        for correlation_id, numbers in self.executions.items():
            # Of a sequence, each request is executed after those that came before it.
            assert self.starts[correlation_id] != 1 or numbers == sorted(numbers)

    # Events.

    def new_request(self):
        draw = self.random
        client = Client(self, len(self.clients))
        rows = 1
        if self.kind == "dynamic" and self.max_batch_size:
            rows = draw.randint(1, min(3, self.max_batch_size))
        width = draw.choice((1, 1, 1, 2))
        shape = (rows, width) if self.max_batch_size else (width,)
        request = Request(
            "m", 1, client, {"IN": Tensor("IN", "UINT8", shape, bytes(rows * width))}, id=str(client.number)
        )
        request.batch_size = rows
        request.priority = draw.randrange(5)
        request.timeout_us = draw.choice((0, 0, 5, 100))
        if self.kind in ("direct", "oldest") and not (self.is_iterative and draw.random() < 0.7):
            self.draw_sequence(request)
        request.arrival_ns = self.clock()
        client.request = request
        self.clients.append(client)
        # It may be answered before `enqueue` returns.
        self.accepted.append(client)
        try:
            self.driver.enqueue(request, self.clock())
        except ServerError:
            assert not client.responses
            self.accepted.remove(client)
        else:
            self.starts[request.correlation_id] += bool(request.flags & SEQUENCE_START)

    def draw_sequence(self, request):
        draw = self.random
        is_new = not self.open_ids or draw.random() < 0.3
        if is_new:
            request.correlation_id = self.next_correlation_id
            self.next_correlation_id += 1
            request.flags = SEQUENCE_START if draw.random() < 0.95 else 0
            self.open_ids.append(request.correlation_id)
        else:
            request.correlation_id = draw.choice(self.open_ids)
            request.flags = SEQUENCE_START if draw.random() < 0.05 else 0
        if draw.random() < 0.25:
            request.flags |= SEQUENCE_END
            self.open_ids.remove(request.correlation_id)

    def pass_time(self):
        self.clock.advance(self.random.choice((1, 10, 100, 1000)) * 1000)
        self.fire_timers()

    def fire_timers(self):
        for timer in [timer for timer in self.timers.armed if timer.deadline_ns <= self.clock.now_ns]:
            self.timers.armed.remove(timer)
            timer.callback()

    def finish_batch(self):
        busy = [instance for instance in self.instances if instance.batches]
        if not busy:
            return
        draw = self.random
        instance = draw.choice(busy)
        batch = instance.batches.pop(0)
        for request in batch:
            if draw.random() < 0.2 and not isinstance(request, PaddingRequest):
                self.send_one(instance, request, is_early=True)
        outcomes = [self.draw_outcome(instance, request) for request in batch]
        now_ns = self.clock()
        self.driver.on_execution(instance, batch, Execution(outcomes, now_ns, now_ns, now_ns, now_ns))

    def draw_outcome(self, instance, request):
        draw = self.random
        if isinstance(request, PaddingRequest):
            return Response("?", 0)
        was_sent = any(each is request for _, each in self.deferred) or self.is_over(request)
        choice = draw.random()
        if choice < 0.1:
            self.deferred = [pair for pair in self.deferred if pair[1] is not request]
            return InternalError("boom")
        if self.is_iterative and choice < 0.5 and not self.is_ending:
            return Deferral.RESCHEDULED
        if was_sent or choice < 0.4:
            if not was_sent:
                self.deferred.append((instance, request))
            return Deferral.DEFERRED
        return self.response(request)

    def is_over(self, request):
        return request.owner is None

    def response(self, request, is_final=True):
        number = request.sink.number
        content = b"%d/%d" % (number, self.sent[number])
        self.sent[number] += 1
        outputs = [
            Tensor("OUT", "UINT8", (len(content),), content),
            Tensor("STATE_OUT", "UINT8", (1, len(content)) if self.max_batch_size else (len(content),), content),
        ]
        return Response("?", 0, outputs=outputs, is_final=is_final)

    def send_response(self):
        if self.deferred:
            self.send_one(*self.random.choice(self.deferred))

    def send_one(self, instance, request, is_early=False):
        """Send the next response of a request; a model that is not decoupled sends one, and then the end."""
        draw = self.random
        known = next((pair for pair in self.deferred if pair[1] is request), None)
        if is_early and self.is_iterative and not self.is_decoupled:
            return
        if self.is_over(request):
            response = self.response(request)
        elif not self.is_decoupled and self.sent[request.sink.number]:
            response = Response("?", 0, is_empty=True)
        elif not self.is_decoupled:
            response = self.response(request, is_final=draw.random() < 0.5)
        elif draw.random() < 0.5:
            response = self.response(request, is_final=False)
        else:
            response = self.response(request) if draw.random() < 0.5 else Response("?", 0, is_empty=True)
        if known is None and not self.is_over(request) and not response.is_final:
            self.deferred.append((instance, request))
        elif known is not None and response.is_final:
            self.deferred.remove(known)
        self.driver.on_response(instance, request, response)

    def cancel(self):
        if self.accepted:
            client = self.random.choice(self.accepted[-20:])
            self.driver.cancel(client.request)

    def lose_instance(self):
        healthy = [instance for instance in self.instances if instance.is_healthy]
        if not healthy:
            return
        instance = self.random.choice(healthy)
        instance.is_healthy = False
        error = InternalError("dead")
        steps = [lambda: self.driver.on_health_change(instance, False)]
        batches, instance.batches = instance.batches, []
        for batch in batches:
            steps.insert(
                self.random.randint(0, len(steps)), lambda batch=batch: self.driver.on_failure(instance, batch, error)
            )
        in_batches = {id(request) for batch in batches for request in batch}
        for pair in [pair for pair in self.deferred if pair[0] is instance]:
            self.deferred.remove(pair)
            if id(pair[1]) not in in_batches and pair[1].owner is not None:
                response = Response("?", 0, error=error)
                steps.append(lambda pair=pair, response=response: self.driver.on_response(*pair, response))
        for step in steps:
            step()

    def restore_instance(self):
        dead = [instance for instance in self.instances if not instance.is_healthy]
        if dead:
            instance = self.random.choice(dead)
            instance.is_healthy = True
            self.driver.on_health_change(instance, True)

    # What an instance is given.

    def check_batch(self, instance, requests):
        real = [request for request in requests if not isinstance(request, PaddingRequest)]
        assert real, "a batch of padding"
        assert sum(request.batch_size for request in requests) <= max(1, self.max_batch_size) or self.kind == "none"
        for request in real:
            assert request.owner is self.driver, "an answered request is run"
            assert not (request.is_cancelled and self.kind == "dynamic" and not self.executions.get(id(request)))
        if len(real) > 1:
            widths = {request.inputs["IN"].shape[-1] for request in real}
            assert len(widths) == 1, "shapes that may not share a batch"
            states = {request.inputs["STATE_IN"].shape for request in real if "STATE_IN" in request.inputs}
            assert len(states) < 2, "states that may not share a batch"
        if self.kind in ("direct", "oldest"):
            for row, request in enumerate(requests):
                if not isinstance(request, PaddingRequest):
                    self.check_sequence(instance, row, request)

    def check_sequence(self, instance, row, request):
        assert "STATE_IN" in request.inputs
        place = (instance.name, row) if self.kind == "direct" else instance.name
        # A generation is one request, and there may be others of its id.
        key = (request.correlation_id, request.sink.number if self.is_iterative else None)
        is_start = bool(request.flags & SEQUENCE_START)
        assert bool(request.inputs["START"].data[0]) == is_start
        if not is_start and (key in self.rows_of if self.is_iterative else self.starts[request.correlation_id] == 1):
            assert self.rows_of[key] == place, "a sequence moved"
        self.rows_of[key] = place
        assert request.inputs["READY"].data[0]
        if not self.is_iterative:
            self.executions[key].append(request.sink.number)
