from merrow.core.model_config import (
    ModelConfig,
    ModelEnsembling,
    ModelEnsemblingStep,
    ModelInput,
    ModelOutput,
)
from merrow.repository.dependencies import DependencyGraph, NodeState
from merrow.repository.layout import ModelId

INPUT = (ModelInput(name="IN", data_type="TYPE_FP32", dims=(2,)),)
OUTPUT = (ModelOutput(name="OUT", data_type="TYPE_FP32", dims=(2,)),)


def plain(name, max_batch_size=4):
    return ModelConfig(name=name, backend="identity", max_batch_size=max_batch_size, input=INPUT, output=OUTPUT)


def ensemble(name, *models, version=-1, max_batch_size=4):
    """A chain through these models."""
    tensors = ["IN", *(f"t{index}" for index in range(1, len(models))), "OUT"]
    steps = tuple(
        ModelEnsemblingStep(
            model_name=model,
            model_version=version,
            input_map={"IN": tensors[index]},
            output_map={"OUT": tensors[index + 1]},
        )
        for index, model in enumerate(models)
    )
    return ModelConfig(
        name=name,
        platform="ensemble",
        max_batch_size=max_batch_size,
        input=INPUT,
        output=OUTPUT,
        ensemble_scheduling=ModelEnsembling(step=steps),
    )


def graph_of(*configs, namespace=""):
    graph = DependencyGraph()
    for config in configs:
        graph.put(ModelId(namespace, config.name), config)
    return graph


def ids(*names):
    return [ModelId("", name) for name in names]


def loaded(graph_configs):
    """Every model is in service, as version 1."""
    return lambda model_id: NodeState({1: graph_configs[model_id.name]})


A, B, E, F = plain("a"), plain("b"), ensemble("e", "a", "b"), ensemble("f", "e", "b")
CONFIGS = {config.name: config for config in (A, B, E, F)}


def test_models_are_loaded_before_what_is_made_of_them():
    graph = graph_of(F, E, B, A)

    assert list(graph.rounds(ids("a", "b", "e", "f"))) == [ids("a", "b"), ids("e"), ids("f")]
    assert list(graph.rounds(ids("f", "nobody"))) == [ids("f")]


def test_a_change_reaches_every_ensemble_above_it():
    graph = graph_of(A, B, E, F, plain("c"))

    assert graph.affected(ids("a")) == set(ids("a", "e", "f"))
    assert graph.affected(ids("c", "gone")) == set(ids("c", "gone"))


def test_a_node_that_left_is_missing_above_and_no_longer_elsewhere():
    graph = graph_of(A, B, E)
    graph.remove(ModelId("", "a"))
    graph.remove(ModelId("", "a"))

    assert ModelId("", "a") not in graph
    assert graph.has_missing(ModelId("", "e"))
    assert graph.ids_of("a") == []
    assert graph.problem(ModelId("", "e"), loaded(CONFIGS)).message == (
        "ensemble e contains models that are not available or ambiguous: a"
    )


def test_a_model_that_is_no_ensemble_has_no_problem():
    assert graph_of(A).problem(ModelId("", "a"), loaded(CONFIGS)) is None


def test_an_ensemble_whose_models_are_in_service_has_no_problem():
    assert graph_of(A, B, E, F).problem(ModelId("", "f"), loaded(CONFIGS)) is None


def test_why_an_ensemble_cannot_be_loaded():
    graph = graph_of(A, B, E, F, ensemble("v", "a", version=7), ensemble("big", "a", max_batch_size=16))

    def problem(name, **states):
        known = {other: NodeState({1: config}) for other, config in CONFIGS.items()}
        error = graph.problem(ModelId("", name), lambda model_id: {**known, **states}[model_id.name])
        assert error is not None
        return error.message

    assert problem("e", a=NodeState(failure="boom")) == (
        "ensemble 'e' depends on 'a' which has no loaded version. Model 'a' loading failed with error: boom"
    )
    assert problem("f", e=NodeState(failure="no", is_invalid=True)) == (
        "ensemble 'f' depends on 'e' which is not valid. Model 'e' failed with error: no"
    )
    assert problem("v") == "ensemble 'v' depends on 'a' whose required version 7 is not loaded."
    assert problem("big") == (
        "ensemble big allows maximum batch size 16, but it contains model a which only allows maximum batch size to be "
        "4"
    )


def test_ensembles_that_contain_themselves_are_refused_in_one_last_round():
    graph = graph_of(ensemble("x", "y"), ensemble("y", "x"), ensemble("z", "x"), A)

    assert list(graph.rounds(ids("a", "x", "y", "z"))) == [ids("a"), ids("x", "y", "z")]
    error = graph.problem(ModelId("", "x"), loaded({}))
    assert error is not None
    assert error.message == "circular dependency between ensembles: x -> ... -> y -> x"


def test_what_was_loaded_for_an_ensemble_alone_goes_with_it():
    graph = graph_of(A, B, E, F, ensemble("g", "b"))

    assert graph.unload_with_dependents(ids("f"), explicit=ids("f")) == set(ids("f", "e", "a"))
    assert graph.unload_with_dependents(ids("f"), explicit=ids("f", "a")) == set(ids("f", "e"))
    assert graph.unload_with_dependents(ids("e"), explicit=[]) == set(ids("e", "a"))


def test_with_namespaces_an_ensemble_takes_the_models_beside_it():
    graph = graph_of(A, ensemble("e", "a"), namespace="r1")
    graph.put(ModelId("r2", "a"), A)
    graph.put(ModelId("r2", "only"), plain("only"))
    graph.put(ModelId("r3", "e"), ensemble("e", "a"))
    graph.put(ModelId("r3", "h"), ensemble("h", "only"))

    assert graph.composing(ModelId("r1", "e")) == [ModelId("r1", "a")]
    assert graph.composing(ModelId("r3", "h")) == [ModelId("r2", "only")]
    assert graph.has_missing(ModelId("r3", "e"))
    assert graph.ids_of("a") == [ModelId("r1", "a"), ModelId("r2", "a")]
    assert str(ModelId("r1", "a")) == "r1::a"


def test_the_latest_version_is_the_largest_in_service():
    state = NodeState({1: A, 3: B})

    assert state.config_of(-1) is B
    assert state.config_of(1) is A
    assert state.config_of(2) is None
    assert NodeState().config_of(-1) is None
