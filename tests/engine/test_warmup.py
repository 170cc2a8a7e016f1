import asyncio
from types import SimpleNamespace

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError
from merrow.core.model_config import ModelConfig, ModelInput, ModelWarmup, ModelWarmupInput
from merrow.core.response import Response
from merrow.engine.validation import RequestValidator
from merrow.engine.warmup import plan_samples, warm_up
from merrow.testing.manual_clock import ManualClock


def config(warmup, max_batch_size=4, data_type="TYPE_FP32"):
    return ModelConfig(
        name="m",
        max_batch_size=max_batch_size,
        input=(ModelInput(name="X", data_type=data_type, dims=(2,)),),
        model_warmup=(warmup,),
    )


def sample(batch_size=1, count=0, dims=(2,), data_type="TYPE_FP32", **data):
    inputs = {"X": ModelWarmupInput(data_type=data_type, dims=dims, **data)}
    return ModelWarmup(name="s", batch_size=batch_size, count=count, inputs=inputs)


def no_file(name):
    raise AssertionError(name)


class Driver:
    """Answers each batch at once, as an inline instance would."""

    def __init__(self, error=None, is_final=True):
        self.instances = [SimpleNamespace(name="m_0"), SimpleNamespace(name="m_1")]
        self.batches = []
        self.input_names = []
        self.error = error
        self.is_final = is_final

    def run_on(self, instance, requests, now_ns):
        self.batches.append((instance.name, len(requests)))
        for request in requests:
            self.input_names.append(sorted(request.inputs))
            request.sink.on_response(Response("m", 1, error=self.error, is_final=self.is_final))
            if not self.is_final:
                request.sink.on_response(Response("m", 1, is_empty=True))


def run_samples(samples, model_config, driver):
    validator = RequestValidator(model_config)
    asyncio.run(warm_up("m", 1, samples, validator, driver.run_on, driver.instances, ManualClock()))


@pytest.mark.parametrize("choice", ["zero_data", "random_data"])
@pytest.mark.parametrize(
    "data_type", ["TYPE_FP32", "TYPE_INT8", "TYPE_UINT64", "TYPE_BOOL", "TYPE_STRING", "TYPE_BF16"]
)
def test_every_datatype_makes_a_valid_request(choice, data_type):
    model_config = config(sample(data_type=data_type, **{choice: True}), data_type=data_type)
    samples = plan_samples(model_config, no_file)
    driver = Driver()
    run_samples(samples, model_config, driver)

    assert driver.batches == [("m_0", 1), ("m_1", 1)]


def test_the_requests_of_a_sample_run_together_count_times_on_each_instance():
    model_config = config(sample(batch_size=2, count=3, zero_data=True))
    driver = Driver()
    samples = plan_samples(model_config, no_file)
    run_samples(samples, model_config, driver)

    assert driver.batches == [("m_0", 2)] * 3 + [("m_1", 2)] * 3


def test_a_file_is_read_and_cut_to_the_tensor():
    (made,) = plan_samples(config(sample(input_data_file="f")), {"f": bytes(range(20))}.__getitem__)

    assert made.inputs["X"].data == bytes(range(8))
    assert made.inputs["X"].shape == (1, 2)


def test_a_sample_of_batch_size_zero_is_skipped():
    assert plan_samples(config(sample(batch_size=0, zero_data=True)), no_file) == []


@pytest.mark.parametrize(
    ("warmup", "text"),
    [
        (
            sample(dims=(-1,), zero_data=True),
            "warmup setting expects all variable-size dimensions are specified for input 'X'",
        ),
        (
            sample(),
            "[request id: <id_unknown>] warmup setting expects input 'X' to have input_data_type set",
        ),
        (
            sample(input_data_file="f"),
            "[request id: <id_unknown>] warmup setting expects 8 bytes, but the data provided from fonly has 3 bytes",
        ),
        (
            sample(data_type="TYPE_INVALID", zero_data=True),
            "[request id: <id_unknown>] inference input 'X' data-type is '<invalid>', but model 'm' expects 'FP32'",
        ),
        (
            sample(data_type="TYPE_INT32", zero_data=True),
            "[request id: <id_unknown>] inference input 'X' data-type is 'INT32', but model 'm' expects 'FP32'",
        ),
        (
            ModelWarmup(name="s", batch_size=1, inputs={"Y": ModelWarmupInput("TYPE_FP32", (2,), zero_data=True)}),
            "[request id: <id_unknown>] expected 1 inputs but got 0 inputs for model 'm'. Got input(s) [], but missing "
            "required input(s) ['X']. Please provide all required input(s).",
        ),
    ],
)
def test_a_sample_that_is_no_request_is_refused(warmup, text):
    with pytest.raises(InvalidArgumentError) as caught:
        plan_samples(config(warmup), lambda name: b"abc")
    assert caught.value.message == text


@pytest.mark.parametrize("choice", ["zero_data", "random_data"])
def test_what_is_chosen_counts_and_not_whether_it_says_true(choice):
    (made,) = plan_samples(config(sample(**{choice: False})), no_file)

    assert len(made.inputs["X"].data) == 8


def test_an_input_that_the_configuration_does_not_list_reaches_the_model():
    inputs = {name: ModelWarmupInput("TYPE_FP32", (2,), zero_data=True) for name in ("X", "Y")}
    model_config = config(ModelWarmup(name="s", batch_size=1, inputs=inputs))
    driver = Driver()
    run_samples(plan_samples(model_config, no_file), model_config, driver)

    assert driver.input_names == [["X", "Y"], ["X", "Y"]]


@pytest.mark.parametrize(
    ("driver", "batch_size", "text"),
    [
        (Driver(InternalError("boom")), 1, "failed to run warmup sample 's': boom; "),
        (Driver(InternalError("boom")), 2, "failed to run warmup sample 's': boom; boom; "),
        # Of a decoupled model, which says afterwards that it has ended.
        (Driver(InternalError("boom"), is_final=False), 1, "failed to run warmup sample 's': boom; "),
    ],
)
def test_a_failing_sample_fails_the_load(driver, batch_size, text):
    model_config = config(sample(batch_size, zero_data=True))
    samples = plan_samples(model_config, no_file)
    with pytest.raises(InvalidArgumentError) as caught:
        run_samples(samples, model_config, driver)
    assert caught.value.message == text


@pytest.mark.parametrize(("max_batch_size", "batch_size"), [(0, 2), (4, 5)])
def test_a_sample_has_no_more_requests_than_the_model_takes_at_once(max_batch_size, batch_size):
    model_config = config(sample(batch_size, zero_data=True), max_batch_size)
    driver = Driver()
    with pytest.raises(InvalidArgumentError) as caught:
        run_samples(plan_samples(model_config, no_file), model_config, driver)
    text = f"batch size {batch_size} for 'm_0', max allowed is {max_batch_size}; " * batch_size
    assert caught.value.message == f"failed to run warmup sample 's': {text}"
    assert driver.batches == []
