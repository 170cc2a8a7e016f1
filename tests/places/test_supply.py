from merrow.backends.base import Execution
from merrow.places.supply import Supply


def depth_of(duration_ns, max_depth):
    """After so many executions of this length that nothing else is remembered."""
    supply = Supply()
    execution = Execution([], 0, 0, 0, duration_ns)
    return [supply.depth_after(execution, max_depth) for _ in range(400)][-1]


def test_a_quick_model_is_kept_supplied():
    assert depth_of(0, max_depth=4) == 4
    assert depth_of(124_999, max_depth=4) == 4
    assert depth_of(125_010, max_depth=4) == 3
    assert depth_of(200_000, max_depth=4) == 2
    assert depth_of(10_000, max_depth=32) == 32


def test_a_slow_one_gets_its_batches_singly():
    assert depth_of(250_010, max_depth=4) == 1
    assert depth_of(500_000, max_depth=4) == 1
    assert depth_of(10**12, max_depth=4) == 1


def test_one_execution_says_little():
    supply = Supply()

    assert supply.depth_after(Execution([], 0, 0, 0, 0), max_depth=4) == 1
    assert [supply.depth_after(Execution([], 0, 0, 0, 0), max_depth=4) for _ in range(20)][-1] == 4
    assert supply.depth_after(Execution([], 0, 0, 0, 10**9), max_depth=4) == 1


def test_a_limit_of_one_holds_for_quick_models_too():
    assert depth_of(0, max_depth=1) == 1
