"""How the cores are divided among the runs of a model."""

import pytest

from merrow.backends.onnx.threads import batches_at_once, chosen_thread_count, integer, thread_budget
from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelDynamicBatching, ModelInstanceGroup, ModelParameter


def config(count, is_batched=False, **parameters):
    return ModelConfig(
        instance_group=(ModelInstanceGroup(kind="KIND_CPU", count=count),),
        dynamic_batching=ModelDynamicBatching() if is_batched else None,
        parameters={key: ModelParameter(value) for key, value in parameters.items()},
    )


@pytest.mark.parametrize(
    ("instances", "is_batched", "cores", "limit"),
    [
        (1, False, 8, 1),
        (3, False, 8, 3),
        (8, False, 2, 2),
        (1, True, 8, 1),
        (3, True, 8, 3),
        (8, True, 8, 4),
        (8, True, 2, 1),
        (2, True, 1, 1),
    ],
)
def test_batches_at_once(instances, is_batched, cores, limit):
    assert batches_at_once(config(instances, is_batched), cores) == limit


@pytest.mark.parametrize("cores", [1, 2, 3, 4, 16])
@pytest.mark.parametrize("instances", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("is_batched", [False, True])
def test_runs_at_once_and_the_pool_are_as_many_threads_as_cores(monkeypatch, cores, instances, is_batched):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(cores)), raising=False)
    model = config(instances, is_batched)

    callers = batches_at_once(model, cores)
    pool = thread_budget(model, has_own_process=False) - 1

    assert callers + pool == cores


@pytest.mark.parametrize(("instances", "threads"), [(1, 8), (3, 2), (8, 1), (20, 1)])
def test_instances_in_processes_of_their_own_divide_the_cores(monkeypatch, instances, threads):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(8)), raising=False)

    assert thread_budget(config(instances), has_own_process=True) == threads


def test_a_model_may_choose():
    assert chosen_thread_count(config(1)) == 0
    assert chosen_thread_count(config(1, intra_op_thread_count="3")) == 3
    assert chosen_thread_count(config(1, intra_op_thread_count="0")) == 0
    assert chosen_thread_count(config(1, intra_op_thread_count="-1")) == 0


def test_what_is_no_number_is_refused():
    assert integer("threads", None, 4) == 4
    assert integer("threads", " ", 4) == 4
    with pytest.raises(InvalidArgumentError) as refusal:
        integer("threads", "two", 4)
    assert refusal.value.message == "failed to convert threads 'two' to integral number"
