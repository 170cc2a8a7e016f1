import numpy as np
import pytest

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import ModelSequenceBatchingInitialState, ModelSequenceBatchingState
from merrow.core.response import Response
from merrow.core.tensor import Tensor
from merrow.schedule.sequence_state import SequenceStates, state_rules
from tests.schedule.sequence_rig import END, START, SequenceRig, config, oldest


def state(dims=(2,), data_type="TYPE_INT32", initial=(), input_name="S_IN", **settings):
    return ModelSequenceBatchingState(input_name, "S_OUT", data_type, dims, tuple(initial), **settings)


def initial(dims=(2,), data_type="TYPE_INT32", name="start", **data):
    return ModelSequenceBatchingInitialState(data_type, dims, name=name, **(data or {"zero_data": True}))


def rules_of(*states, max_batch_size=0, read_file=lambda name: b""):
    return state_rules(config(max_batch_size=max_batch_size, state=states), read_file)


def values(states):
    return {name: tensor.as_numpy().tolist() for name, tensor in states.inputs().items()}


def answer(*numbers, shape=None):
    array = np.array(numbers, np.int32)
    return Response("m", 1, outputs=[Tensor.from_numpy("S_OUT", array.reshape(shape or array.shape))])


def test_a_state_starts_with_zeros():
    for zero_data in (True, False):
        # Triton looks at which of the two was set, not at its value.
        rules = rules_of(state(initial=[initial(zero_data=zero_data)]))
        assert values(SequenceStates(rules)) == {"S_IN": [0, 0]}
    assert values(SequenceStates(rules_of(state(), max_batch_size=2))) == {"S_IN": [[0, 0]]}


def test_a_state_starts_with_a_file():
    contents = {"seed": np.array([5, 6, 7], np.int32).tobytes()}
    rules = rules_of(state(initial=[initial(data_file="seed")]), read_file=contents.__getitem__)

    assert values(SequenceStates(rules)) == {"S_IN": [5, 6]}


def test_a_variable_dimension_starts_as_one_or_as_the_initial_state_says():
    assert values(SequenceStates(rules_of(state(dims=(-1,))))) == {"S_IN": [0]}
    assert values(SequenceStates(rules_of(state(dims=(-1,), initial=[initial(dims=(3,))])))) == {"S_IN": [0, 0, 0]}


def test_strings_start_as_empty_elements():
    states = SequenceStates(rules_of(state(data_type="TYPE_STRING")))

    assert values(states) == {"S_IN": [b"", b""]}


def test_strings_start_with_a_file_of_any_length():
    text = b"\3\0\0\0abc\0\0\0\0"
    rule = state(data_type="TYPE_STRING", initial=[initial(data_type="TYPE_STRING", data_file="seed")])
    states = SequenceStates(rules_of(rule, read_file=lambda name: text))

    assert values(states) == {"S_IN": [b"abc", b""]}


def test_what_a_model_answered_is_the_next_state():
    states = SequenceStates(rules_of(state()))
    states.update(answer(3, 4))
    assert values(states) == {"S_IN": [3, 4]}
    states.update(Response("m", 1, outputs=[]))
    assert values(states) == {"S_IN": [3, 4]}
    states.reset()
    assert values(states) == {"S_IN": [0, 0]}


def test_a_state_may_grow():
    states = SequenceStates(rules_of(state(dims=(-1,), use_growable_memory=True)))
    states.update(answer(1, 2, 3))

    assert values(states) == {"S_IN": [1, 2, 3]}


def test_a_state_is_a_copy_of_what_was_answered():
    states = SequenceStates(rules_of(state()))
    array = np.array([3, 4], np.int32)
    states.update(Response("m", 1, outputs=[Tensor.from_numpy("S_OUT", array)]))
    array[:] = 9

    assert values(states) == {"S_IN": [3, 4]}


def test_one_buffer_for_input_and_output_stays_the_same_memory():
    states = SequenceStates(rules_of(state(use_same_buffer_for_input_output=True)))
    before = states.inputs()["S_IN"].data
    states.update(answer(3, 4))

    assert states.inputs()["S_IN"].data is before
    assert values(states) == {"S_IN": [3, 4]}
    states.update(answer(3, 4, 5))
    assert values(states) == {"S_IN": [3, 4, 5]}
    assert not isinstance(states.inputs()["S_IN"].data, bytes)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        (
            state(initial=[initial(), initial()]),
            "initial_state field for state input 'S_IN' must contain exactly one or zero element. Found '2' elements.",
        ),
        (
            state(initial=[initial(data_type="TYPE_FP32")]),
            "The data type used for 'initial_state' field of state 'S_IN' does not match the state data type.",
        ),
        (
            state(initial=[initial(name="")]),
            "Field 'name' must be set when using initial_state for state input 'S_IN'.",
        ),
        (
            state(initial=[initial(dims=(2, 2))]),
            "Number of dimensions in 'initial_state' doesn't match the size of 'state' dimensions for state input "
            "'S_IN'. 2 != 1",
        ),
        (
            state(initial=[initial(dims=(-1,))]),
            "'initial_state' field for state input name 'S_IN' contains variable dimensions.",
        ),
        (
            state(initial=[initial(dims=(3,))]),
            "'initial_state' dim for input name 'S_IN' doesn't match 'state' dim description. 3 != 2",
        ),
        (
            state(initial=[initial(data_file="short")]),
            "initial_state setting expects 8 bytes, but the data provided from shortonly has 3 bytes.",
        ),
        (
            state(initial=[initial(zero_data=None)]),
            "initial_state setting expects state'S_IN' to have state_data set",
        ),
        (state(data_type="TYPE_INVALID"), "state 'S_IN' of model 'm' must specify 'data_type', got TYPE_INVALID"),
    ],
)
def test_a_setting_that_contradicts_itself_is_refused(wrong, text):
    with pytest.raises(InvalidArgumentError) as refusal:
        rules_of(wrong, read_file=lambda name: b"abc")
    assert refusal.value.message == text


def test_two_states_of_one_name_are_refused():
    with pytest.raises(InvalidArgumentError, match="State input name 'S_IN' specified more than once"):
        rules_of(state(), state())


@pytest.mark.parametrize("strategy", [None, oldest(2)], ids=["direct", "oldest"])
def test_each_sequence_has_its_own_state_from_request_to_request(strategy):
    rig = SequenceRig(max_batch_size=2, oldest=strategy, state=(state(dims=(1,)),))
    rig.request(1, START), rig.request(2, START)
    one, two = rig.run()
    for request, number in ((one, 10), (two, 20)):
        rig.batcher.release(request, answer(number, shape=(1, 1)), rig.now_ns)
    one_next, two_next = rig.request(1), rig.request(2, END)
    rig.run()

    assert one.inputs["S_IN"].as_numpy().tolist() == [[0]]
    assert one_next.inputs["S_IN"].as_numpy().tolist() == [[10]]
    assert two_next.inputs["S_IN"].as_numpy().tolist() == [[20]]


@pytest.mark.parametrize("strategy", [None, oldest(3)], ids=["direct", "oldest"])
def test_states_of_different_shapes_do_not_share_a_batch(strategy):
    rig = SequenceRig(oldest=strategy, state=(state(dims=(-1,)),))
    one, two, three = (rig.request(number, START) for number in (1, 2, 3))
    assert rig.run() == [one, two, three]
    for request, length in ((one, 2), (two, 1), (three, 2)):
        rig.batcher.release(request, answer(*range(length), shape=(1, length)), rig.now_ns)
    first, other, like_first = rig.request(1, END), rig.request(2, END), rig.request(3, END)

    ran = [rig.run()]
    rig.done()
    ran.append(rig.run())
    if strategy is None:
        assert ran == [[first, None, like_first], [None, other]]
    else:
        # In order of arrival, so that the third waits behind the second.
        rig.done()
        assert [*ran, rig.run()] == [[first], [other], [like_first]]
    assert [request.inputs["S_IN"].shape for request in (first, other, like_first)] == [(1, 2), (1, 1), (1, 2)]


def test_a_start_in_the_middle_resets_the_state():
    rig = SequenceRig(max_batch_size=1, state=(state(dims=(1,)),))
    rig.request(1, START)
    rig.run()
    rig.done(outputs=answer(10, shape=(1, 1)).outputs)
    again = rig.request(1, START)
    rig.run()

    assert again.inputs["S_IN"].as_numpy().tolist() == [[0]]


def test_an_answer_with_an_error_leaves_the_state_as_it_was():
    rig = SequenceRig(max_batch_size=1, state=(state(dims=(1,)),))
    first = rig.request(1, START)
    rig.run()
    failed = answer(10, shape=(1, 1))
    failed.error = InternalError("no")
    rig.batcher.release(first, failed, rig.now_ns)
    again = rig.request(1)
    rig.run()

    assert again.inputs["S_IN"].as_numpy().tolist() == [[0]]


def test_padding_has_a_state_of_zeros():
    rig = SequenceRig(max_batch_size=2, state=(state(dims=(1,)),))
    rig.request(1, START), rig.request(2, START)
    one, two = rig.run()
    for request in (one, two):
        rig.batcher.release(request, answer(10, shape=(1, 1)), rig.now_ns)
    rig.request(2)
    padding, _ = rig.batcher.decide(rig.now_ns).requests

    assert padding.inputs["S_IN"].as_numpy().tolist() == [[0]]


def test_a_response_that_comes_by_itself_brings_the_state():
    rig = SequenceRig(max_batch_size=1, state=(state(dims=(1,)),))
    first = rig.request(1, START)
    rig.run()
    rig.batcher.update_state(first, answer(10, shape=(1, 1)))
    rig.batcher.release(first, None, rig.now_ns)
    rig.batcher.update_state(first, answer(99, shape=(1, 1)))
    again = rig.request(1)
    rig.run()

    assert again.inputs["S_IN"].as_numpy().tolist() == [[10]]
