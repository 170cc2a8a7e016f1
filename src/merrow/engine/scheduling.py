"""Which scheduler a configuration asks for.

sequence_batching, with or without `direct`      DirectSequenceBatcher
sequence_batching with `oldest`                  OldestSequenceBatcher, with a DynamicBatcher for each instance
dynamic_batching                                 DynamicBatcher
neither                                          none: requests run alone, in order
"""

import logging
from collections.abc import Callable, Hashable, Iterable

from merrow.core.errors import UnsupportedError
from merrow.core.model_config import ModelConfig
from merrow.core.request import Request
from merrow.engine.sequence_log import SequenceLog
from merrow.engine.validation import RequestValidator
from merrow.observe.statistics import StatisticsRecorder
from merrow.schedule.base import Scheduler
from merrow.schedule.dynamic_batch import BatchPolicy, DynamicBatcher
from merrow.schedule.hold import HeldScheduler
from merrow.schedule.sequence_batch import SequencePolicy
from merrow.schedule.sequence_direct import DirectSequenceBatcher
from merrow.schedule.sequence_oldest import OldestSequenceBatcher, oldest_batch_policy
from merrow.schedule.sequence_state import batch_key_with_states, state_rules
from merrow.settings import SchedulerHold

_LOG = logging.getLogger("merrow.engine")

_BATCH_STRATEGY_PARAMETER = "TRITON_BATCH_STRATEGY_PATH"
_BATCH_STRATEGY_FILE = "batchstrategy.so"


def make_scheduler(
    config: ModelConfig,
    validator: RequestValidator,
    statistics: StatisticsRecorder,
    read_state_file: Callable[[str], bytes],
    hold: SchedulerHold,
) -> Scheduler | None:
    """The scheduler of one model version, without instances.

    Args:
        config: normalised.
        read_state_file: the content of a file in the model's `initial_state` directory.

    Raises:
        ServerError: a setting contradicts itself, or a file is missing.
    """
    batch_key: Callable[[Request], Hashable] | None = validator.batch_key if validator.batch_key_needed() else None
    if config.sequence_batching is not None:
        policy = SequencePolicy.from_config(config, state_rules(config, read_state_file))
        batch_key = batch_key_with_states(batch_key, policy.state_rules)
        on_event = SequenceLog(config.name, statistics).on_event
        if config.sequence_batching.oldest is not None:
            batch_policy = oldest_batch_policy(config, batch_key)
            return OldestSequenceBatcher(
                policy, on_event, lambda: _hold(DynamicBatcher(batch_policy), hold.request_count)
            )
        direct = DirectSequenceBatcher.from_config(config, policy, on_event, batch_key)
        if hold.request_count:
            if hold.backlog_count:
                _LOG.info("Delaying scheduler until %d backlog queued requests...", hold.backlog_count)
            return HeldScheduler(direct, hold.request_count, hold.backlog_count, lambda: direct.backlog_count)
        return direct
    if config.dynamic_batching is not None:
        return _hold(DynamicBatcher(BatchPolicy.from_config(config, batch_key)), hold.request_count)
    return None


def refuse_batch_strategy(config: ModelConfig, version: int, paths: Iterable[str]) -> None:
    """A model with limits of its own for batches has them in a library for Triton's C API, which nothing here can call.

    Args:
        paths: the files of the model, relative to its directory.

    Raises:
        UnsupportedError: it has one.
    """
    if config.dynamic_batching is None:
        return
    found = _BATCH_STRATEGY_PARAMETER if _BATCH_STRATEGY_PARAMETER in config.parameters else None
    for path in paths:
        if path in (_BATCH_STRATEGY_FILE, f"{version}/{_BATCH_STRATEGY_FILE}"):
            found = path
    if found is not None:
        raise UnsupportedError(
            f"model '{config.name}' limits its batches by a library ({found}) that only Triton itself can load; take "
            "it away, and set max_batch_size, preferred_batch_size and max_queue_delay_microseconds"
        )


def preserves_order(config: ModelConfig) -> bool:
    """Whether responses must leave in the order of their requests."""
    if config.sequence_batching is not None:
        oldest = config.sequence_batching.oldest
        return oldest is not None and oldest.preserve_ordering
    return config.dynamic_batching is not None and config.dynamic_batching.preserve_ordering


def _hold(batcher: DynamicBatcher, request_count: int) -> Scheduler:
    return HeldScheduler(batcher, request_count) if request_count else batcher
