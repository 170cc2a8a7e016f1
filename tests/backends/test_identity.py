import dataclasses
import logging
from types import SimpleNamespace

import pytest

from merrow.backends.base import (
    ChangeMetric,
    InstanceDescription,
    ModelContext,
    NewMetric,
    NewMetricFamily,
    ShareCounter,
)
from merrow.backends.identity import IdentityBackend
from merrow.core.errors import InvalidArgumentError, UnsupportedError
from merrow.core.model_config import (
    ModelConfig,
    ModelInput,
    ModelInstanceGroup,
    ModelOutput,
    ModelParameter,
    ModelTensorReshape,
)
from merrow.core.request import Request
from merrow.core.tensor import Tensor
from merrow.testing.recording_host import RecordingHost


def context(inputs, outputs, **parameters):
    config = ModelConfig(
        name="m",
        backend="identity",
        input=tuple(ModelInput(name=name, data_type=data_type, dims=dims) for name, data_type, dims in inputs),
        output=tuple(ModelOutput(name=name, data_type=data_type, dims=dims) for name, data_type, dims in outputs),
        parameters={key: ModelParameter(value) for key, value in parameters.items()},
    )
    return ModelContext("m", 1, config, "", "", "")


X, Y = ("X", "TYPE_FP32", (2,)), ("Y", "TYPE_FP32", (2,))


def test_an_output_is_its_inputs_very_bytes():
    data = memoryview(bytearray(8))
    instance = instance_of(context([X], [Y]))
    execution = instance.execute([Request("m", 1, None, {"X": Tensor("X", "FP32", (2,), data)})])

    (response,) = execution.outcomes
    (output,) = response.outputs
    assert (output.name, output.datatype, output.shape) == ("Y", "FP32", (2,))
    assert output.data is data
    assert response.parameters == {
        "param0": "an example string parameter",
        "param1": 42,
        "param2": False,
        "param3": 123.123,
    }


def make_host(is_in_child=False):
    host = RecordingHost()

    def answer(question):
        if isinstance(question, ShareCounter) and is_in_child:
            raise UnsupportedError("not from there")
        return 5 if isinstance(question, NewMetricFamily) else 7 if isinstance(question, NewMetric) else None

    host.on_question = answer
    return host


def instance_of(model, name="m_0", host=None):
    IdentityBackend().validate(model)
    return IdentityBackend().create_instance(model, InstanceDescription(name, "KIND_CPU", 0), host or make_host())


def test_pairs_go_by_the_numbers_of_their_names():
    model = context(
        [("INPUT1", "TYPE_INT8", (1,)), ("INPUT0", "TYPE_FP32", (1,))],
        [("OUTPUT0", "TYPE_FP32", (1,)), ("OUTPUT1", "TYPE_INT8", (1,))],
    )
    inputs = {"INPUT0": Tensor("INPUT0", "FP32", (1,), bytes(4)), "INPUT1": Tensor("INPUT1", "INT8", (1,), b"x")}
    (response,) = instance_of(model).execute([Request("m", 1, None, inputs)]).outcomes

    assert [(output.name, output.datatype) for output in response.outputs] == [("OUTPUT0", "FP32"), ("OUTPUT1", "INT8")]


def test_other_names_pair_by_position():
    both = context([X, ("B", "TYPE_INT8", (1,))], [Y, ("Z", "TYPE_INT8", (1,))])
    inputs = {"B": Tensor("B", "INT8", (1,), b"x"), "X": Tensor("X", "FP32", (2,), bytes(8))}
    (response,) = instance_of(both).execute([Request("m", 1, None, inputs)]).outcomes

    assert [(output.name, output.datatype) for output in response.outputs] == [("Y", "FP32"), ("Z", "INT8")]


def test_an_optional_input_that_is_left_out_is_zeros():
    both = context(
        [("X", "TYPE_FP32", (-1, 2)), ("B", "TYPE_STRING", (2,))],
        [("Y", "TYPE_FP32", (-1, 2)), ("Z", "TYPE_STRING", (2,))],
    )
    (response,) = instance_of(both).execute([Request("m", 1, None, {})]).outcomes

    assert [(output.name, output.shape, bytes(output.data)) for output in response.outputs] == [
        ("Y", (1, 2), bytes(8)),
        ("Z", (2,), bytes(8)),
    ]


def test_an_input_that_is_left_out_has_the_rows_of_the_others():
    model = context([X, ("B", "TYPE_INT8", (3,))], [Y, ("Z", "TYPE_INT8", (3,))])
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, max_batch_size=4))
    request = Request("m", 1, None, {"X": Tensor("X", "FP32", (2, 2), bytes(16))})
    request.batch_size = 2
    (response,) = instance_of(model).execute([request]).outcomes

    assert response.outputs[1].shape == (2, 3)


@pytest.mark.parametrize(("name", "delay_ms"), [("m_0", 10), ("m_2", 40)])
def test_instances_can_be_slower_one_after_another(name, delay_ms):
    model = context([X], [Y], execute_delay_ms="10", instance_wise_delay_multiplier="2")
    execution = instance_of(model, name).execute([Request("m", 1, None, {"X": Tensor("X", "FP32", (2,), bytes(8))})])

    assert execution.end_ns - execution.start_ns >= delay_ms * 1_000_000


def test_an_execution_can_be_delayed():
    slow = context([X], [Y], execute_delay_ms="20")
    instance = instance_of(slow)
    execution = instance.execute([Request("m", 1, None, {"X": Tensor("X", "FP32", (2,), bytes(8))})])

    assert execution.end_ns - execution.start_ns >= 20_000_000


@pytest.mark.parametrize(
    ("inputs", "outputs", "parameters", "text"),
    [
        ([X], [], {}, "model configuration must have equal input/output pairs"),
        (
            [("INPUT0", "TYPE_FP32", (2,)), X],
            [("OUTPUT0", "TYPE_FP32", (2,)), Y],
            {},
            "expected input name to follow INPUT<index> pattern, got 'X'",
        ),
        ([("INPUT0", "TYPE_FP32", (2,))], [Y], {}, "expected output name to follow OUTPUT<index> pattern, got 'Y'"),
        (
            [X],
            [("Y", "TYPE_INT8", (2,))],
            {},
            "expected input and output datatype to match, got TYPE_FP32 and TYPE_INT8",
        ),
        (
            [("INPUT0", "TYPE_FP32", (2,))],
            [("OUTPUT1", "TYPE_FP32", (2,))],
            {},
            "expected input and output indices to match",
        ),
        (
            [("X", "TYPE_FP32", (1, 2))],
            [("Y", "TYPE_FP32", (3,))],
            {},
            "expected input and output shape to match, got [1,2] and [3]",
        ),
        (
            [X],
            [Y],
            {"execute_delay_ms": "soon"},
            "failed to convert execute_delay_ms 'soon' to a number for model 'm'",
        ),
        *(
            (
                [X],
                [Y],
                {"creation_delay_sec": text},
                f"failed to convert creation_delay_sec '{text}' to a number for model 'm'",
            )
            for text in ("inf", "nan", "1" * 11, ".5")
        ),
        (
            [X],
            [Y],
            {"enable_custom_tracing": "true", "nested_span_count": "1", "single_activity_frequency": "0"},
            "single_activity_frequency of model 'm' must be at least 1",
        ),
    ],
)
def test_a_configuration_that_cannot_be_mirrored_is_refused(inputs, outputs, parameters, text):
    with pytest.raises(InvalidArgumentError) as caught:
        IdentityBackend().validate(context(inputs, outputs, **parameters))
    assert caught.value.message == text


INPUTS = [(f"INPUT{number}", "TYPE_FP32", (2,)) for number in (2, 10, 0)]
OUTPUTS = [(f"OUTPUT{number}", "TYPE_FP32", (2,)) for number in (10, 2, 0)]


def floats(name, count=2):
    return Tensor(name, "FP32", (count,), bytes(4 * count))


def numbered(*numbers):
    return {f"INPUT{number}": floats(f"INPUT{number}") for number in numbers}


def test_outputs_come_in_the_order_of_their_names_and_only_those_that_were_asked_for():
    instance = instance_of(context(INPUTS, OUTPUTS))
    everything = Request("m", 1, None, numbered(0, 2, 10))
    some = Request("m", 1, None, numbered(0, 2, 10), ("OUTPUT2", "OUTPUT10"))
    first, second = instance.execute([everything, some]).outcomes

    assert [output.name for output in first.outputs] == ["OUTPUT0", "OUTPUT10", "OUTPUT2"]
    assert [output.name for output in second.outputs] == ["OUTPUT10", "OUTPUT2"]


def reshaped(model, shapes):
    config = model.config
    tensors = [
        dataclasses.replace(tensor, reshape=None if shape is None else ModelTensorReshape(shape))
        for tensor, shape in zip((*config.input, *config.output), shapes, strict=True)
    ]
    config = dataclasses.replace(config, input=(tensors[0],), output=(tensors[1],))
    return dataclasses.replace(model, config=config)


def test_shapes_are_those_after_reshaping():
    model = context([("X", "TYPE_FP32", (2, 3))], [("Y", "TYPE_FP32", (6,))])

    instance_of(reshaped(model, [(6,), None]))
    instance_of(reshaped(model, [(1, 6), (1, 6)]))
    with pytest.raises(InvalidArgumentError, match=r"got \[3,2\] and \[6\]"):
        instance_of(reshaped(model, [(3, 2), None]))
    zeros = instance_of(reshaped(model, [(1, 6), (1, 6)])).execute([Request("m", 1, None, {})]).outcomes[0].outputs[0]
    assert zeros.shape == (1, 6)


def test_a_correlation_id_is_a_number():
    request = Request("m", 1, None, {"X": floats("X")}, id="r", correlation_id="text")
    error, response = (
        instance_of(context([X], [Y])).execute([request, Request("m", 1, None, {"X": floats("X")})]).outcomes
    )

    assert isinstance(error, InvalidArgumentError)
    assert error.message == "[request id: r] correlation ID in request is not an unsigned int"
    assert response.outputs


def test_a_batch_has_rows():
    model = context([X], [Y])
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, max_batch_size=4))
    (error,) = instance_of(model).execute([Request("m", 1, None, {})]).outcomes

    assert error.message == "[request id: <id_unknown>] out of bounds index 0: request has 0 inputs"


def test_the_bytes_of_inputs_are_counted_for_each_output():
    host = make_host()
    instance = instance_of(context(INPUTS, OUTPUTS), host=host)
    family, metric, share = host.questions

    assert family == NewMetricFamily(
        "input_byte_size_counter", "Cumulative input byte size of all requests received by the model", 0
    )
    assert metric == NewMetric(5, {"model": "m", "version": "1"})
    assert share.metric == 7
    assert share.read() == 0
    instance.execute([Request("m", 1, None, numbered(0, 2))])
    # Zeros in place of an input that was left out add nothing.
    assert share.read() == 16
    instance.execute([Request("m", 1, None, numbered(0, 2, 10), ("OUTPUT0",))] * 2)
    assert share.read() == 32
    assert len(host.questions) == 3


def test_a_child_tells_what_it_counted_after_each_batch():
    host = make_host(is_in_child=True)
    instance = instance_of(context([X], [Y]), host=host)
    for count in (2, 3):
        (response,) = instance.execute([Request("m", 1, None, {"X": floats("X", count)})]).outcomes
        assert response.outputs[0].byte_size == 4 * count

    assert host.questions[3:] == [ChangeMetric(7, "increment", 8), ChangeMetric(7, "increment", 12)]


class Trace:
    def __init__(self):
        self.activities = []

    def record_activity(self, name, now_ns):
        self.activities.append((name, now_ns))


@pytest.fixture
def pauses(monkeypatch):
    """How often it waited, and for how long; it does not."""
    seconds = []
    monkeypatch.setattr("merrow.backends.identity.time.sleep", seconds.append)
    return seconds


NESTED = [
    "CUSTOM_ACTIVITY0_START",
    "CUSTOM_SINGLE_ACTIVITY",
    "CUSTOM_ACTIVITY1_START",
    "CUSTOM_ACTIVITY2_START",
    "CUSTOM_SINGLE_ACTIVITY",
    "CUSTOM_ACTIVITY2_END",
    "CUSTOM_ACTIVITY1_END",
    "CUSTOM_ACTIVITY0_END",
]


@pytest.mark.parametrize(
    ("parameters", "nested"),
    [
        ({}, []),
        ({"single_activity_frequency": "0"}, []),
        ({"nested_span_count": "1"}, ["CUSTOM_ACTIVITY0_START", "CUSTOM_SINGLE_ACTIVITY", "CUSTOM_ACTIVITY0_END"]),
        ({"nested_span_count": "3", "single_activity_frequency": "2"}, NESTED),
    ],
)
def test_a_traced_request_records_activities(pauses, parameters, nested):
    instance = instance_of(context([X], [Y], enable_custom_tracing="true", **parameters))
    traced, other = (Request("m", 1, None, {"X": floats("X")}) for _ in range(2))
    traced.trace = Trace()
    instance.execute([traced, other])

    names = [name for name, _ in traced.trace.activities]
    assert names == ["CUSTOM_ACTIVITY_START", "CUSTOM_ACTIVITY_END", "CUSTOM_SINGLE_ACTIVITY", *nested]
    assert pauses == [0.1] * (1 + sum(name.endswith("_START") for name in nested))


def test_activities_are_off_unless_the_parameter_is_true(pauses):
    request = Request("m", 1, None, {"X": floats("X")})
    request.trace = Trace()
    for text in ("false", "1", "True"):
        instance_of(context([X], [Y], enable_custom_tracing=text)).execute([request])

    assert request.trace.activities == []


def test_activities_are_for_the_server_s_own_process():
    with pytest.raises(InvalidArgumentError) as caught:
        instance_of(context([X], [Y], enable_custom_tracing="true"), host=make_host(is_in_child=True))
    assert caught.value.message == (
        "parameter 'enable_custom_tracing' of model 'm' works in the server's process only: set parameter "
        "EXECUTION_PLACE to 'inline' or 'thread'"
    )


def test_creation_is_delayed_once_for_all_instances(pauses, caplog):
    caplog.set_level(logging.INFO, "merrow.backends")
    # What follows the digits is ignored, as C's stoi does.
    model = context([X], [Y], creation_delay_sec=" 2.7 s")
    instance_of(model)

    assert pauses == [2]
    assert caplog.messages == ["Creation delay is set to: 2"]


def test_instances_are_counted_through_all_groups(pauses):
    model = context([X], [Y], execute_delay_ms="1000", instance_wise_delay_multiplier="4")
    groups = (ModelInstanceGroup("a", "KIND_CPU", 2), ModelInstanceGroup("b", "KIND_CPU", 2))
    model = dataclasses.replace(model, config=dataclasses.replace(model.config, instance_group=groups))
    for name in ("a_0", "a_1", "b_0", "b_1"):
        instance_of(model, name).execute([Request("m", 1, None, {"X": floats("X")})])

    assert pauses == [1, 4, 8, 12]


def test_what_it_does_is_in_a_verbose_log(caplog):
    caplog.set_level(logging.DEBUG, "merrow.backends")
    tensor = SimpleNamespace(datatype="FP32", shape=(1, 5), data=bytes(20), byte_size=20)
    model = context([("INPUT0", "TYPE_FP32", (-1, 5)), X], [("OUTPUT0", "TYPE_FP32", (-1, 5)), Y])
    model = dataclasses.replace(
        model, config=dataclasses.replace(model.config, input=model.config.input[:1], output=model.config.output[:1])
    )
    instance = instance_of(model)
    instance.execute([Request("m", 1, None, {"INPUT0": tensor}), Request("m", 1, None, {}, ("OUTPUT0",))])

    assert caplog.messages == [
        "\tinput INPUT0: datatype = FP32, shape = [1,5], byte_size = 20, buffer_count = 1",
        "\trequested_output OUTPUT0",
        "\trequested_output OUTPUT0",
    ]
