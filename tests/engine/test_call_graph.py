"""Instances are named by their model and a letter (`A/1:x`), requests by words."""

import pytest

from merrow.engine.call_graph import Call, CallGraph, DeadlockError, TooDeepError


def make_graph(max_depth=16, **instance_counts):
    return CallGraph(
        max_depth,
        lambda caller: caller.partition(":")[0],
        lambda model: instance_counts.get(model.partition("/")[0], 1),
    )


def call(request, model, caller=None, parents=(), targets=None):
    names = targets or (model,)
    return Call(
        request,
        model,
        None if caller is None else caller.replace(":", "/1:"),
        frozenset(f"{name}/1" for name in names),
        parents,
    )


def test_models_may_call_one_another_in_a_row():
    graph = make_graph()
    graph.open(call("b", "B", "A:x", ["client"]))
    graph.open(call("c", "C", "B:x", ["b"]))
    graph.close("c")
    graph.close("b")

    assert len(graph) == 0


def test_a_model_with_one_instance_cannot_call_itself():
    graph = make_graph()
    with pytest.raises(DeadlockError, match=r"^A -> A$"):
        graph.open(call("a", "A", "A:x", ["client"]))
    assert len(graph) == 0


def test_a_ring_of_calls_is_refused_where_it_would_close():
    graph = make_graph()
    graph.open(call("b", "B", "A:x", ["client"]))
    graph.open(call("c", "C", "B:x", ["b"]))
    with pytest.raises(DeadlockError, match=r"^A -> B -> C -> A$"):
        graph.open(call("a", "A", "C:x", ["c"]))
    graph.close("c")
    graph.open(call("d", "D", "B:x", ["b"]))


def test_a_ring_is_fine_while_there_are_instances():
    graph = make_graph(A=2)
    graph.open(call("b", "B", "A:x", ["client"]))
    graph.open(call("a", "A", "B:x", ["b"]))
    with pytest.raises(DeadlockError):
        graph.open(call("b2", "B", "A:y", ["a"]))


def test_two_chains_may_hold_all_instances_between_them():
    graph = make_graph(A=2)
    graph.open(call("a1", "A", "A:x", ["one"]))
    # The other instance is free no longer: now each waits for the other.
    with pytest.raises(DeadlockError):
        graph.open(call("a2", "A", "A:y", ["two"]))


def test_a_busy_instance_that_waits_for_something_else_is_worth_waiting_for():
    graph = make_graph()
    graph.open(call("b", "B", "A:x", ["client"]))
    # Another client's request of C calls A, whose only instance waits for B, which waits for nothing.
    graph.open(call("a", "A", "C:x", ["other"]))
    # B, called by A, calls D: still no ring.
    graph.open(call("d", "D", "B:x", ["b"]))
    with pytest.raises(DeadlockError):
        graph.open(call("c", "C", "D:x", ["d"]))


def test_an_instance_that_waits_for_several_calls_needs_them_all():
    graph = make_graph()
    graph.open(call("b", "B", "A:x", ["client"]))
    graph.open(call("c", "C", "A:x", ["client"]))
    with pytest.raises(DeadlockError):
        graph.open(call("a", "A", "C:x", ["c"]))
    graph.close("c")
    graph.open(call("c2", "C", "B:x", ["b"]))


def test_a_call_that_keeps_no_instance_waits_as_long_as_it_takes():
    graph = make_graph()
    graph.open(call("a", "A", None, ["client"]))
    graph.open(call("b", "B", "A:x", ["a"]))
    graph.release("b")
    graph.open(call("a2", "A", "B:x", ["b"]))
    graph.release("nothing")
    graph.close("nothing")


def test_an_ensemble_needs_each_of_its_models():
    graph = make_graph()
    with pytest.raises(DeadlockError, match=r"^A -> E$"):
        graph.open(call("e", "E", "A:x", ["client"], targets=("B", "A")))
    graph.open(call("f", "F", "A:x", ["client"], targets=("B", "C")))
    with pytest.raises(DeadlockError, match=r"^A -> F -> A$"):
        graph.open(call("a", "A", "B:x", ["f"]))


def test_chains_are_bounded():
    graph = make_graph(max_depth=2, A=100)
    graph.open(call("1", "A", "A:0", ["client"]))
    graph.open(call("2", "A", "A:1", ["1"]))
    with pytest.raises(TooDeepError, match=r"^A -> A -> A -> A$"):
        graph.open(call("3", "A", "A:2", ["2"]))
    graph.open(call("other", "A", "A:3", ["another client"]))
