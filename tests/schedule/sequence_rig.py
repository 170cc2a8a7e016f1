"""A sequence batcher with a clock and a list of what it reported, for tests by value."""

from merrow.core.model_config import (
    ModelConfig,
    ModelInput,
    ModelOutput,
    ModelSequenceBatching,
    ModelSequenceBatchingControl,
    ModelSequenceBatchingControlInput,
    ModelSequenceBatchingStrategyDirect,
    ModelSequenceBatchingStrategyOldest,
)
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, PaddingRequest, Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.engine.validation import RequestValidator
from merrow.schedule.dynamic_batch import DynamicBatcher
from merrow.schedule.sequence_batch import SequencePolicy
from merrow.schedule.sequence_direct import DirectSequenceBatcher
from merrow.schedule.sequence_oldest import OldestSequenceBatcher, oldest_batch_policy
from merrow.schedule.sequence_state import batch_key_with_states, state_rules

START, END = SEQUENCE_START, SEQUENCE_END


class NoSink:
    def on_response(self, response):
        raise AssertionError("a scheduler answers nobody")


def boolean_control(kind, **values):
    """A control tensor named as its kind; of INT32 unless `values` says otherwise."""
    control = ModelSequenceBatchingControl(f"CONTROL_SEQUENCE_{kind}", **(values or {"int32_false_true": (0, 1)}))
    return ModelSequenceBatchingControlInput(kind, (control,))


def correlation_control(data_type):
    control = ModelSequenceBatchingControl("CONTROL_SEQUENCE_CORRID", data_type=data_type)
    return ModelSequenceBatchingControlInput("CORRID", (control,))


CONTROLS = tuple(boolean_control(kind) for kind in ("START", "END", "READY"))


def config(max_batch_size=4, dims=(1,), controls=CONTROLS, direct=None, oldest=None, **batching):
    return ModelConfig(
        name="m",
        max_batch_size=max_batch_size,
        input=(ModelInput(name="IN", data_type="TYPE_INT32", dims=dims),),
        output=(ModelOutput(name="OUT", data_type="TYPE_INT32", dims=dims),),
        sequence_batching=ModelSequenceBatching(
            direct=direct,
            oldest=oldest,
            control_input=controls,
            **{"max_sequence_idle_microseconds": 1000, **batching},
        ),
    )


class SequenceRig:
    """`request(...)` enqueues, `run(instance)` dispatches and remembers, `done(instance)` gives the batch back."""

    def __init__(self, instances=1, read_file=lambda name: b"", **settings):
        self.config = config(**settings)
        self.now_ns = 1_000_000
        self.events = []
        validator = RequestValidator(self.config)
        key = validator.batch_key if validator.batch_key_needed() else None
        policy = SequencePolicy.from_config(self.config, state_rules(self.config, read_file))
        key = batch_key_with_states(key, policy.state_rules)

        def on_event(event, request, correlation_id):
            self.events.append((event.value, correlation_id))

        if self.config.sequence_batching.oldest is None:
            self.batcher = DirectSequenceBatcher.from_config(self.config, policy, on_event, key)
        else:
            batch_policy = oldest_batch_policy(self.config, key)
            self.batcher = OldestSequenceBatcher(policy, on_event, lambda: DynamicBatcher(batch_policy))
        self.running = {}
        for _ in range(instances):
            self.batcher.add_instance()

    def request(self, correlation_id, flags=0, shape=(1,), timeout_us=0):
        shape = (1, *shape) if self.config.max_batch_size else shape
        count = 1
        for dim in shape:
            count *= dim
        request = Request("m", 1, NoSink(), {"IN": Tensor("IN", "INT32", shape, b"\7\0\0\0" * count)})
        request.correlation_id = correlation_id
        request.flags = flags
        request.timeout_us = timeout_us
        self.batcher.enqueue(request, self.now_ns)
        self.batcher.check_invariants()
        return request

    def run(self, instance=0):
        """The next batch of an idle instance; None stands for a row of padding."""
        batch = self.batcher.decide(self.now_ns, instance)
        self.batcher.check_invariants()
        if batch is None:
            return None
        self.running[instance] = batch.requests
        self.cut = batch.cut
        return [None if isinstance(request, PaddingRequest) else request for request in batch.requests]

    def done(self, instance=0, outputs=()):
        for request in self.running.pop(instance):
            self.batcher.release(request, Response("m", 1, outputs=list(outputs)), self.now_ns)
        self.batcher.check_invariants()

    def pass_time(self, us):
        self.now_ns += us * 1000
        refused = [(refusal.request, refusal.error.message) for refusal in self.batcher.expire(self.now_ns)]
        self.batcher.check_invariants()
        return refused


def oldest(candidates=0, preferred=(), delay_us=0, preserve_ordering=False):
    return ModelSequenceBatchingStrategyOldest(candidates, tuple(preferred), delay_us, preserve_ordering)


def direct(delay_us=0, utilization=0.0):
    return ModelSequenceBatchingStrategyDirect(delay_us, utilization)
