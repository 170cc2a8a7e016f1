"""How many threads the sessions of a model have, and how many of its batches execute at once.

A session takes any number of runs at once, each on its caller's thread and on those of the session's pool that are
free. Instances that share a session get as many threads, pool and callers together, as there are cores; instances in
processes of their own divide the cores. A model can choose the threads of a run (`intra_op_thread_count`). The figures
are in docs/decisions/0012-one-session-on-the-cpu.md.
"""

import os
from collections.abc import Mapping

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig

INTRA_OP = "intra_op_thread_count"
INTER_OP = "inter_op_thread_count"


def batches_at_once(config: ModelConfig, cores: int) -> int:
    """How many batches of a model to execute at once on the CPU.

    No more than cores: they would only be smaller. Half as many where requests are batched dynamically: a large batch
    on two cores takes no longer than two small ones on a core each, and reads the weights once.
    """
    limit = cores if config.dynamic_batching is None else cores // 2
    return max(1, min(limit, instance_count(config)))


def thread_budget(config: ModelConfig, has_own_process: bool) -> int:
    """Threads of a run, its caller's among them; with the callers of other runs at once they are as many as cores."""
    cores = core_count()
    if has_own_process:
        return max(1, cores // max(1, instance_count(config)))
    return max(1, cores - batches_at_once(config, cores) + 1)


def chosen_thread_count(config: ModelConfig) -> int:
    """The threads that a model's parameters ask for; 0 where they leave it to the server."""
    return thread_count({key: parameter.string_value for key, parameter in config.parameters.items()}, INTRA_OP)


def core_count() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def instance_count(config: ModelConfig) -> int:
    """The instances that share the cores."""
    return sum(group.count for group in config.instance_group if group.kind != "KIND_GPU" and not group.passive)


def thread_count(parameters: Mapping[str, str], key: str) -> int:
    """A number of threads; 0 (the default) where there is none, or a negative one."""
    return max(0, integer(key, parameters.get(key), 0))


def integer(key: str, text: str | None, default: int) -> int:
    if text is None or not text.strip():
        return default
    try:
        return int(text)
    except ValueError:
        raise InvalidArgumentError(f"failed to convert {key} '{text}' to integral number") from None
