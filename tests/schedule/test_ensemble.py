import random
from collections import Counter
from collections.abc import Sequence

import pytest

from merrow.core.errors import CancelledError, InternalError, InvalidArgumentError, ServerError, UnavailableError
from merrow.core.model_config import (
    ModelConfig,
    ModelEnsembling,
    ModelEnsemblingStep,
    ModelInput,
    ModelOutput,
    ModelTransactionPolicy,
)
from merrow.core.request import SEQUENCE_END, SEQUENCE_START, Request
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.schedule.ensemble import (
    Answer,
    CancelStep,
    Decision,
    EnsemblePlan,
    EnsembleRun,
    HoldStep,
    ResumeStep,
    StartStep,
    StepModel,
    StepRun,
)

PLAIN = StepModel(has_batch_dim=False, is_decoupled=False, input_dims={"IN": (2,), "A": (2,), "B": (2,)})
BATCHING = StepModel(has_batch_dim=True, is_decoupled=False, input_dims={"IN": (2,)})
MANY = StepModel(has_batch_dim=False, is_decoupled=True, input_dims={"IN": (2,)})


class NoSink:
    def on_response(self, response: Response) -> None:
        raise AssertionError("the state machine answers nobody")


def tensor(name: str, shape: Sequence[int] = (2,), data: bytes = b"........") -> Tensor:
    return Tensor(name, "FP32", tuple(shape), data)


def config(
    steps: Sequence[tuple[dict[str, str], dict[str, str]]],
    inputs: Sequence[str] = ("X",),
    outputs: Sequence[str] = ("Z",),
    optional: Sequence[str] = (),
    max_batch_size: int = 0,
    is_decoupled: bool = False,
    max_inflight_requests: int = 0,
) -> ModelConfig:
    return ModelConfig(
        name="E",
        platform="ensemble",
        max_batch_size=max_batch_size,
        input=tuple(
            ModelInput(name=name, data_type="TYPE_FP32", dims=(2,), optional=name in optional) for name in inputs
        ),
        output=tuple(ModelOutput(name=name, data_type="TYPE_FP32", dims=(2,)) for name in outputs),
        ensemble_scheduling=ModelEnsembling(
            tuple(
                ModelEnsemblingStep(f"m{index}", -1, input_map, output_map)
                for index, (input_map, output_map) in enumerate(steps)
            ),
            max_inflight_requests,
        ),
        model_transaction_policy=ModelTransactionPolicy(is_decoupled),
    )


def request(*inputs: Tensor, requested_outputs: tuple[str, ...] = (), **fields: object) -> Request:
    given = inputs or (tensor("X"),)
    made = Request("E", 1, NoSink(), {one.name: one for one in given}, requested_outputs, **fields)  # type: ignore[arg-type]
    made.batch_size = max(1, given[0].shape[0])
    return made


def begin(
    ensemble: ModelConfig, models: Sequence[StepModel], of: Request | None = None
) -> tuple[EnsembleRun, list[Decision]]:
    run = EnsembleRun(EnsemblePlan(ensemble), of or request(), models)
    return run, run.start()


def started(decisions: Sequence[Decision]) -> list[StepRun]:
    return [decision.run for decision in decisions if isinstance(decision, StartStep)]


def reply(*outputs: Tensor, **fields: object) -> Response:
    return Response("m", 1, outputs=outputs, **fields)  # type: ignore[arg-type]


def only_answer(decisions: Sequence[Decision]) -> Answer:
    (decision,) = decisions
    assert isinstance(decision, Answer)
    return decision


def error_of(decisions: Sequence[Decision]) -> ServerError:
    assert isinstance(decisions[0], Answer)
    assert decisions[0].is_final
    assert decisions[0].error is not None
    return decisions[0].error


TWO_STEPS = config([({"IN": "X"}, {"OUT": "Y"}), ({"IN": "Y"}, {"OUT": "Z"})])


def test_a_step_runs_when_its_inputs_exist_and_takes_them_under_its_own_names():
    run, decisions = begin(TWO_STEPS, (PLAIN, PLAIN), request(tensor("X", data=b"same bytes")))

    (first,) = started(decisions)
    assert (first.step, first.outputs) == (0, ("OUT",))
    assert first.inputs["IN"].name == "IN"
    made = tensor("OUT", data=b"made")
    (second,) = started(run.on_response(first, reply(made)))
    assert second.step == 1
    assert second.inputs["IN"].data is made.data
    run.check_invariants()

    answer = only_answer(run.on_response(second, reply(tensor("OUT", data=b"result"))))
    assert [(output.name, output.data) for output in answer.outputs] == [("Z", b"result")]
    assert answer.is_final
    assert run.is_over


def test_steps_that_do_not_need_each_other_run_side_by_side():
    diamond = config([({"A": "V", "B": "W"}, {"OUT": "Z"}), ({"IN": "X"}, {"OUT": "V"}), ({"IN": "X"}, {"OUT": "W"})])
    run, decisions = begin(diamond, (PLAIN, PLAIN, PLAIN))

    left, right = started(decisions)
    assert run.on_response(right, reply(tensor("OUT"))) == []
    (last,) = started(run.on_response(left, reply(tensor("OUT"))))
    assert last.step == 0
    assert set(last.inputs) == {"A", "B"}


def test_a_tensor_may_feed_two_inputs_of_one_step():
    run, decisions = begin(config([({"A": "X", "B": "X"}, {"OUT": "Z"})]), (PLAIN,))

    assert set(started(decisions)[0].inputs) == {"A", "B"}
    run.check_invariants()


def test_only_steps_that_the_requested_outputs_need_are_run():
    forked = config([({"IN": "X"}, {"OUT": "Y"}), ({"IN": "Y"}, {"OUT": "Z"})], outputs=("Y", "Z"))
    run, decisions = begin(forked, (PLAIN, PLAIN), request(requested_outputs=("Y",)))

    (first,) = started(decisions)
    answer = only_answer(run.on_response(first, reply(tensor("OUT"))))
    assert [output.name for output in answer.outputs] == ["Y"]
    assert answer.is_final


def test_not_every_choice_of_outputs_is_remembered():
    names = [f"Z{number}" for number in range(10)]
    plan = EnsemblePlan(config([({"IN": "X"}, {"OUT": name}) for name in names], outputs=names))
    for choice in range(1, 2**10):
        wanted = [name for number, name in enumerate(names) if choice >> number & 1]
        assert plan.route(wanted).outputs == tuple(wanted)

    assert len(plan._routes) <= 256
    assert plan.route(names) is plan.route(reversed(names))


def test_an_output_may_be_the_input_of_a_step_as_well():
    forked = config([({"IN": "X"}, {"OUT": "Y"}), ({"IN": "Y"}, {"OUT": "Z"})], outputs=("Z", "Y"))
    run, decisions = begin(forked, (PLAIN, PLAIN))
    (second,) = started(run.on_response(started(decisions)[0], reply(tensor("OUT"))))

    answer = only_answer(run.on_response(second, reply(tensor("OUT"))))
    assert [output.name for output in answer.outputs] == ["Z", "Y"]


def test_what_was_left_out_or_not_made_is_no_input_of_the_next_step():
    steps = [({"A": "X", "B": "O"}, {"OUT": "Y"}), ({"A": "X", "B": "Y"}, {"OUT": "Z"})]
    two_inputs = config(steps, inputs=("X", "O"), optional=("O",))
    run, decisions = begin(two_inputs, (PLAIN, PLAIN))

    (first,) = started(decisions)
    assert set(first.inputs) == {"A"}
    (second,) = started(run.on_response(first, reply()))
    assert set(second.inputs) == {"A"}
    answer = only_answer(run.on_response(second, reply()))
    assert (answer.outputs, answer.parameters, answer.error) == ((), None, None)


def test_a_required_input_that_is_missing_is_an_error():
    _, decisions = begin(config([({"A": "X", "B": "W"}, {"OUT": "Z"})], inputs=("X", "W")), (PLAIN,))

    assert "unexpected deadlock" in error_of(decisions).message


def test_outputs_without_bytes_tell_no_sequence():
    run, decisions = begin(config([({"IN": "X"}, {"OUT": "Z"})]), (PLAIN,))

    assert only_answer(run.on_response(started(decisions)[0], reply(tensor("OUT", (0,), b"")))).parameters is None


def test_the_answer_tells_the_sequence_of_the_request():
    flags = SEQUENCE_START | SEQUENCE_END
    run, decisions = begin(TWO_STEPS, (PLAIN, PLAIN), request(correlation_id=5, flags=flags))
    (first,) = started(decisions)
    assert (first.correlation_id, first.flags) == (5, flags)
    (second,) = started(run.on_response(first, reply(tensor("OUT"))))

    answer = only_answer(run.on_response(second, reply(tensor("OUT"))))
    assert answer.parameters == {"sequence_id": 5, "sequence_start": True, "sequence_end": True}


def test_a_steps_response_may_change_the_sequence():
    run, decisions = begin(TWO_STEPS, (PLAIN, PLAIN), request(correlation_id=5))
    parameters = {"sequence_id": "new", "sequence_end": True, "other": 1}
    (second,) = started(run.on_response(started(decisions)[0], reply(tensor("OUT"), parameters=parameters)))
    assert (second.correlation_id, second.flags) == ("new", SEQUENCE_END)

    answer = only_answer(run.on_response(second, reply(tensor("OUT"), parameters={"sequence_start": True})))
    assert answer.parameters == {"sequence_id": 0, "sequence_start": True, "sequence_end": False}


@pytest.mark.parametrize(
    ("parameters", "text"),
    [
        (
            {"sequence_id": 1.5},
            "in ensemble 'E', expected parameter 'sequence_id' to be TRITONSERVER_PARAMETER_INT or "
            "TRITONSERVER_PARAMETER_STRING",
        ),
        ({"sequence_end": 1}, "in ensemble 'E', expect parameter 'sequence_end' to be TRITONSERVER_PARAMETER_BOOL"),
    ],
)
def test_a_sequence_parameter_of_the_wrong_type_fails_the_request(parameters: dict[str, object], text: str):
    run, decisions = begin(TWO_STEPS, (PLAIN, PLAIN))

    error = error_of(run.on_response(started(decisions)[0], reply(tensor("OUT"), parameters=parameters)))
    assert (type(error), error.message) == (InvalidArgumentError, text)


@pytest.mark.parametrize(
    ("shape", "model", "expected"),
    [
        ((2,), BATCHING, (1, 2)),
        ((3, 2), BATCHING, (3, 2)),
        ((2,), PLAIN, (2,)),
    ],
)
def test_a_tensor_without_batch_gets_a_batch_dimension_where_the_model_wants_one(
    shape: tuple[int, ...], model: StepModel, expected: tuple[int, ...]
):
    _, decisions = begin(config([({"IN": "X"}, {"OUT": "Z"})]), (model,), request(tensor("X", shape)))

    assert started(decisions)[0].inputs["IN"].shape == expected


@pytest.mark.parametrize(
    ("shape", "model", "expected"),
    [
        ((1, 2), PLAIN, (2,)),
        ((3, 2), PLAIN, (3, 2)),
        ((1, 2), StepModel(False, False, {"IN": (-1, 2)}), (1, 2)),
        ((3, 2), BATCHING, (3, 2)),
    ],
)
def test_a_batch_of_one_loses_its_batch_dimension_where_the_model_wants_none(
    shape: tuple[int, ...], model: StepModel, expected: tuple[int, ...]
):
    batching = config([({"IN": "X"}, {"OUT": "Z"})], max_batch_size=4)
    _, decisions = begin(batching, (model,), request(tensor("X", shape)))

    assert started(decisions)[0].inputs["IN"].shape == expected


def test_an_output_is_given_the_ensembles_shape():
    run, decisions = begin(config([({"IN": "X"}, {"OUT": "Z"})]), (BATCHING,))

    answer = only_answer(run.on_response(started(decisions)[0], reply(tensor("OUT", (1, 2)))))
    assert answer.outputs[0].shape == (2,)


def test_an_error_of_a_step_ends_the_request_and_stops_the_others():
    side_by_side = config(
        [({"IN": "X"}, {"OUT": "V"}), ({"IN": "X"}, {"OUT": "W"}), ({"A": "V", "B": "W"}, {"OUT": "Z"})]
    )
    run, decisions = begin(side_by_side, (PLAIN, PLAIN, PLAIN))
    left, right = started(decisions)

    decisions = run.on_response(left, reply(error=UnavailableError("boom")))
    error = error_of(decisions)
    assert (type(error), error.message) == (UnavailableError, "in ensemble 'E', boom")
    assert decisions[1:] == [CancelStep(right)]
    assert run.on_response(right, reply(tensor("OUT"))) == []
    run.check_invariants()


def test_a_refused_step_ends_the_request():
    run, decisions = begin(TWO_STEPS, (PLAIN, PLAIN))

    error = error_of(run.on_refusal(started(decisions)[0], InvalidArgumentError("wrong shape")))
    assert (type(error), error.message) == (InvalidArgumentError, "in ensemble 'E', wrong shape")


def test_a_request_can_fail_before_it_begins():
    run = EnsembleRun(EnsemblePlan(TWO_STEPS), request(), ())

    assert only_answer(run.fail(InternalError("no model"))).error is not None
    assert run.fail(InternalError("again")) == []


def test_a_client_that_leaves_stops_what_runs_and_nothing_more_starts():
    made = request()
    run, decisions = begin(TWO_STEPS, (PLAIN, PLAIN), made)
    (first,) = started(decisions)
    made.is_cancelled = True

    assert run.cancel() == [CancelStep(first)]
    error = error_of(run.on_response(first, reply(tensor("OUT"))))
    assert (type(error), error.message) == (CancelledError, "in ensemble 'E', ")
    assert run.cancel() == []


DECOUPLED = config([({"IN": "X"}, {"OUT": "Y"}), ({"IN": "Y"}, {"OUT": "Z"})], is_decoupled=True)


def test_each_response_of_a_decoupled_step_runs_the_next_step_once():
    run, decisions = begin(DECOUPLED, (MANY, PLAIN))
    (many,) = started(decisions)
    (first,) = started(run.on_response(many, reply(tensor("OUT"), is_final=False)))
    (second,) = started(run.on_response(many, reply(tensor("OUT"), is_final=False)))

    answer = only_answer(run.on_response(first, reply(tensor("OUT", data=b"0"))))
    assert (answer.outputs[0].data, answer.is_final) == (b"0", False)
    assert run.on_response(many, reply(is_empty=True)) == []
    answer = only_answer(run.on_response(second, reply(tensor("OUT", data=b"1"))))
    assert (answer.outputs[0].data, answer.is_final) == (b"1", True)


def test_responses_leave_in_the_order_of_the_iterations():
    run, decisions = begin(DECOUPLED, (MANY, PLAIN))
    (many,) = started(decisions)
    (first,) = started(run.on_response(many, reply(tensor("OUT"), is_final=False)))
    (second,) = started(run.on_response(many, reply(tensor("OUT"), is_final=False)))

    assert run.on_response(second, reply(tensor("OUT", data=b"1"))) == []
    answers = run.on_response(first, reply(tensor("OUT", data=b"0")))
    assert [answer.outputs[0].data for answer in answers if isinstance(answer, Answer)] == [b"0", b"1"]
    assert only_answer(run.on_response(many, reply(is_empty=True))) == Answer(is_empty=True)


def test_a_decoupled_step_may_answer_nothing():
    run, decisions = begin(DECOUPLED, (MANY, PLAIN))

    assert only_answer(run.on_response(started(decisions)[0], reply(is_empty=True))) == Answer(is_empty=True)


def test_the_last_response_of_a_decoupled_step_may_have_outputs():
    one_step = config([({"IN": "X"}, {"OUT": "Z"})], is_decoupled=True)
    run, decisions = begin(one_step, (MANY,))

    answer = only_answer(run.on_response(started(decisions)[0], reply(tensor("OUT"))))
    assert (len(answer.outputs), answer.is_final) == (1, True)


def test_a_decoupled_step_after_a_decoupled_step_counts_its_own_iterations():
    run, decisions = begin(DECOUPLED, (MANY, MANY))
    (many,) = started(decisions)
    (first,) = started(run.on_response(many, reply(tensor("OUT"), is_final=False)))
    (second,) = started(run.on_response(many, reply(tensor("OUT"), is_final=True)))

    sent = []
    for inner, data in ((second, b"a"), (first, b"b"), (second, b"c")):
        sent += run.on_response(inner, reply(tensor("OUT", data=data), is_final=False))
    assert [answer.outputs[0].data for answer in sent if isinstance(answer, Answer)] == [b"a", b"b", b"c"]
    assert run.on_response(first, reply(is_empty=True)) == []
    assert only_answer(run.on_response(second, reply(is_empty=True))) == Answer(is_empty=True)


def test_an_ensemble_that_was_not_told_of_a_decoupled_step_ends_with_an_error():
    run, decisions = begin(TWO_STEPS, (MANY, PLAIN))

    assert error_of(run.on_response(started(decisions)[0], reply(is_empty=True))).message == (
        "in ensemble 'E', [request id: <id_unknown>] unexpected deadlock, at least one output is not set while no more "
        "ensemble steps can be made"
    )


def test_so_many_runs_of_a_step_are_under_way_and_the_step_before_it_is_held():
    limited = config(
        [({"IN": "X"}, {"OUT": "Y"}), ({"IN": "Y"}, {"OUT": "Z"})], is_decoupled=True, max_inflight_requests=1
    )
    run, decisions = begin(limited, (MANY, PLAIN))
    (many,) = started(decisions)
    (first,) = started(run.on_response(many, reply(tensor("OUT"), is_final=False)))

    assert run.on_response(many, reply(tensor("OUT"), is_final=False)) == [HoldStep(many)]
    assert run.on_response(many, reply(tensor("OUT"), is_final=False)) == []
    run.check_invariants()
    decisions = run.on_response(first, reply(tensor("OUT")))
    (second,) = started(decisions)
    assert ResumeStep(many) not in decisions
    decisions = run.on_response(second, reply(tensor("OUT")))
    assert ResumeStep(many) in decisions
    run.check_invariants()


def test_what_waits_for_its_turn_is_dropped_with_the_request():
    limited = config(
        [({"IN": "X"}, {"OUT": "Y"}), ({"IN": "Y"}, {"OUT": "Z"})], is_decoupled=True, max_inflight_requests=1
    )
    run, decisions = begin(limited, (MANY, PLAIN))
    (many,) = started(decisions)
    (first,) = started(run.on_response(many, reply(tensor("OUT"), is_final=False)))
    run.on_response(many, reply(tensor("OUT"), is_final=False))

    decisions = run.on_response(first, reply(error=InternalError("no")))
    assert started(decisions) == []
    assert CancelStep(many) in decisions
    run.check_invariants()


@pytest.mark.parametrize("seed", range(400))
def test_whatever_happens_a_request_gets_one_final_answer(seed: int):
    """Random graphs, models, orders, errors, refusals and cancellations; invariants after every event."""
    random_ = random.Random(seed)
    ensemble, models = _random_ensemble(random_)
    made = request(requested_outputs=_random_outputs(random_, ensemble))
    plan = EnsemblePlan(ensemble)
    run = EnsembleRun(plan, made, models)
    running: list[StepRun] = []
    budget = Counter(dict.fromkeys(range(len(models)), 3))
    answers: list[Answer] = []

    def act(decisions: Sequence[Decision]) -> None:
        for decision in decisions:
            if isinstance(decision, StartStep):
                assert not run.is_over
                running.append(decision.run)
            elif isinstance(decision, Answer):
                assert not (answers and answers[-1].is_final), "an answer after the final one"
                answers.append(decision)
            else:
                assert decision.run in running or run.is_over
        run.check_invariants()

    act(run.start())
    while running:
        step_run = random_.choice(running)
        chance = random_.random()
        if chance < 0.02:
            running.remove(step_run)
            act(run.on_refusal(step_run, InternalError("refused")))
        elif chance < 0.04:
            running.remove(step_run)
            act(run.on_response(step_run, reply(error=InternalError("failed"))))
        elif chance < 0.05:
            made.is_cancelled = True
            act(run.cancel())
        else:
            outputs = [tensor(name) for name in step_run.outputs if random_.random() < 0.9]
            is_many = models[step_run.step].is_decoupled and budget[step_run.step] > 0
            budget[step_run.step] -= 1
            is_final = not is_many or random_.random() < 0.3
            if is_final:
                running.remove(step_run)
            is_empty = is_final and models[step_run.step].is_decoupled and random_.random() < 0.5
            response = reply(*(() if is_empty else outputs), is_final=is_final, is_empty=is_empty)
            act(run.on_response(step_run, response))
    assert [answer.is_final for answer in answers].count(True) == 1
    assert answers[-1].is_final


def _random_ensemble(random_: random.Random) -> tuple[ModelConfig, list[StepModel]]:
    """A graph whose tensors have one origin: all after the first decoupled step come from it."""
    tensors = ["X"]
    steps: list[tuple[dict[str, str], dict[str, str]]] = []
    models: list[StepModel] = []
    for index in range(random_.randint(1, 6)):
        is_decoupled = random_.random() < 0.2
        read = random_.sample(tensors, random_.randint(1, min(2, len(tensors))))
        names = [f"T{index}_{number}" for number in range(random_.randint(1, 2))]
        steps.append(
            (dict(zip(("A", "B"), read, strict=False)), {f"OUT{number}": name for number, name in enumerate(names)})
        )
        models.append(MANY if is_decoupled else random_.choice((PLAIN, BATCHING)))
        tensors = names if is_decoupled else tensors + names
    made = [name for name in tensors if name != "X"]
    outputs = random_.sample(made, random_.randint(1, len(made)))
    return (
        config(
            steps,
            outputs=outputs,
            is_decoupled=any(model.is_decoupled for model in models),
            max_inflight_requests=random_.choice((0, 0, 1, 2)),
        ),
        models,
    )


def _random_outputs(random_: random.Random, ensemble: ModelConfig) -> tuple[str, ...]:
    names = [output.name for output in ensemble.output]
    return tuple(random_.sample(names, random_.randint(0, len(names))))


@pytest.mark.parametrize("seed", range(300))
def test_every_output_is_what_the_graph_says(seed: int):
    """Steps answer in any order; a tensor's bytes tell what it was made of, and with which iteration's tensors."""
    random_ = random.Random(seed)
    ensemble, models = _random_ensemble(random_)
    plan = EnsemblePlan(ensemble)
    made = request(tensor("X", data=b"X"), requested_outputs=_random_outputs(random_, ensemble))
    run = EnsembleRun(plan, made, models)
    running: list[StepRun] = []
    sent = Counter[int]()
    answers: list[Answer] = []

    def act(decisions: Sequence[Decision]) -> None:
        running.extend(started(decisions))
        answers.extend(decision for decision in decisions if isinstance(decision, Answer))

    def content(step_run: StepRun, output: str, number: str) -> bytes:
        inputs = ",".join(bytes(step_run.inputs[name].data).decode() for name in sorted(step_run.inputs))
        return f"{step_run.step}.{output}{number}({inputs})".encode()

    act(run.start())
    while running:
        step_run = random_.choice(running)
        is_decoupled = models[step_run.step].is_decoupled
        number = f"#{sent[step_run.step]}" if is_decoupled else ""
        outputs = [tensor(name, data=content(step_run, name, number)) for name in step_run.outputs]
        sent[step_run.step] += 1
        is_final = not is_decoupled or random_.random() < 0.5
        if is_final:
            running.remove(step_run)
        act(run.on_response(step_run, reply(*outputs, is_final=is_final)))

    producers = {name: (index, key) for index, step in enumerate(plan.steps) for key, name in step.output_map.items()}
    numbers: dict[int, list[int]] = {}

    def check(name: str, data: str) -> None:
        """Compare a tensor's bytes with the graph, down to the client's tensor."""
        if name == "X":
            assert data == "X"
            return
        index, key = producers[name]
        head, _, rest = data.partition("(")
        step_output, _, number = head.partition("#")
        assert step_output == f"{index}.{key}"
        if number:
            numbers.setdefault(index, []).append(int(number))
        parts = _split(rest.removesuffix(")"))
        read = plan.steps[index].input_map
        assert len(parts) == len(read)
        for (_, source), part in zip(sorted(read.items()), parts, strict=True):
            check(source, part)

    for answer in answers:
        assert answer.error is None
        numbers.clear()
        for output in answer.outputs:
            check(output.name, bytes(output.data).decode())
        assert all(len(set(found)) == 1 for found in numbers.values()), "tensors of two iterations in one answer"
    wanted = made.requested_outputs or tuple(output.name for output in ensemble.output)
    assert all({output.name for output in answer.outputs} == set(wanted) for answer in answers if not answer.is_empty)
    assert answers[-1].is_final


def _split(text: str) -> list[str]:
    """Apart at the commas outside of brackets."""
    parts, depth, start = [], 0, 0
    for position, letter in enumerate(text):
        depth += (letter == "(") - (letter == ")")
        if letter == "," and not depth:
            parts.append(text[start:position])
            start = position + 1
    return [*parts, text[start:]]
