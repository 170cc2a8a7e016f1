import pytest

from merrow.core.errors import UnsupportedError
from merrow.core.model_config import (
    ModelConfig,
    ModelDynamicBatching,
    ModelParameter,
    ModelSequenceBatchingInitialState,
    ModelSequenceBatchingState,
)
from merrow.engine.scheduling import make_scheduler, preserves_order, refuse_batch_strategy
from merrow.engine.validation import RequestValidator
from merrow.observe.statistics import StatisticsRecorder
from merrow.schedule.dynamic_batch import DynamicBatcher
from merrow.schedule.hold import HeldScheduler
from merrow.schedule.sequence_direct import DirectSequenceBatcher
from merrow.schedule.sequence_oldest import OldestSequenceBatcher
from merrow.settings import SchedulerHold
from tests.schedule.sequence_rig import config, oldest

DYNAMIC = ModelConfig(name="m", max_batch_size=4, dynamic_batching=ModelDynamicBatching())


NO_HOLD = SchedulerHold()


def make(model_config, hold=NO_HOLD, read_state_file=lambda name: b""):
    return make_scheduler(model_config, RequestValidator(model_config), StatisticsRecorder(), read_state_file, hold)


@pytest.mark.parametrize(
    ("model_config", "scheduler"),
    [
        (ModelConfig(name="m", max_batch_size=4), type(None)),
        (DYNAMIC, DynamicBatcher),
        (config(), DirectSequenceBatcher),
        (config(oldest=oldest(2)), OldestSequenceBatcher),
    ],
)
def test_a_configuration_chooses_its_scheduler(model_config, scheduler):
    assert type(make(model_config)) is scheduler


@pytest.mark.parametrize("model_config", [DYNAMIC, config()])
def test_a_scheduler_can_be_held(model_config, caplog):
    caplog.set_level("INFO", "merrow.engine")
    held = make(model_config, SchedulerHold(2, 3))

    assert isinstance(held, HeldScheduler)
    assert caplog.messages == (
        [] if model_config is DYNAMIC else ["Delaying scheduler until 3 backlog queued requests..."]
    )


def test_the_hold_of_the_oldest_strategy_is_in_each_instances_batcher():
    held = make(config(oldest=oldest(2)), SchedulerHold(2))
    held.add_instance()

    assert isinstance(held, OldestSequenceBatcher)
    assert isinstance(held._batchers[0], HeldScheduler)


def test_initial_states_are_read():
    initial = ModelSequenceBatchingInitialState("TYPE_INT32", (1,), data_file="seed", name="seed")
    state = ModelSequenceBatchingState("IN", "OUT", "TYPE_INT32", (1,), (initial,))
    read = []

    def read_file(name):
        read.append(name)
        return b"\5\0\0\0"

    make(config(state=(state,)), read_state_file=read_file)
    assert read == ["seed"]


@pytest.mark.parametrize(
    ("model_config", "order"),
    [
        (ModelConfig(name="m"), False),
        (DYNAMIC, False),
        (ModelConfig(name="m", dynamic_batching=ModelDynamicBatching(preserve_ordering=True)), True),
        (config(), False),
        (config(oldest=oldest(2)), False),
        (config(oldest=oldest(2, preserve_ordering=True)), True),
    ],
)
def test_order_is_kept_where_it_is_asked_for(model_config, order):
    assert preserves_order(model_config) is order


@pytest.mark.parametrize(
    ("parameters", "paths", "found"),
    [
        ({"TRITON_BATCH_STRATEGY_PATH": ModelParameter("/x.so")}, [], "TRITON_BATCH_STRATEGY_PATH"),
        ({}, ["config.pbtxt", "batchstrategy.so"], "batchstrategy.so"),
        ({}, ["1", "1/batchstrategy.so"], "1/batchstrategy.so"),
    ],
)
def test_limits_in_a_library_are_refused(parameters, paths, found):
    model_config = ModelConfig(
        name="m", max_batch_size=4, dynamic_batching=ModelDynamicBatching(), parameters=parameters
    )
    with pytest.raises(UnsupportedError) as refusal:
        refuse_batch_strategy(model_config, 1, paths)
    assert refusal.value.message == (
        f"model 'm' limits its batches by a library ({found}) that only Triton itself can load; take it away, and set "
        "max_batch_size, preferred_batch_size and max_queue_delay_microseconds"
    )


def test_a_library_that_nothing_asks_for_is_left_alone():
    refuse_batch_strategy(ModelConfig(name="m"), 1, ["batchstrategy.so"])
    refuse_batch_strategy(DYNAMIC, 1, ["2/batchstrategy.so", "model.py"])
