"""Python models in real processes: the two halves of the place with the backend that uses it most."""

import asyncio
import os
import signal
from dataclasses import replace

import numpy as np
import pytest

from merrow.backends.base import Deferral
from merrow.core.errors import InternalError
from merrow.core.model_config import ModelInput, ModelTransactionPolicy
from merrow.places.process.host import ProcessPlace
from tests.backends.python.model_files import CONFIG, make_context, write_model
from tests.places.process.place_harness import SETTINGS, Reports, make_request, outputs_of, start
from tests.places.recording_services import RecordingServices

pytestmark = [
    pytest.mark.skipif(not ProcessPlace.is_available(), reason="needs fork and Unix sockets"),
    pytest.mark.slow,
]

MODEL = """
import os
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.add_input({"name": "MORE", "data_type": "TYPE_FP32", "dims": [-1]})
        pb_utils.Logger.log_info("completing")
        return config

    def initialize(self, args):
        pb_utils.Logger.log_info("initializing " + args["model_instance_name"])

    def execute(self, requests):
        responses = []
        for request in requests:
            tensor = pb_utils.get_input_tensor_by_name(request, "IN")
            array = tensor.as_numpy()
            if array.size and array.flat[0] < 0:
                raise ValueError(f"negative: {array.flat[0]}")
            array += 1
            assert threading.current_thread() is threading.main_thread()
            text = np.array([str(os.getpid()).encode()], dtype=np.object_)
            responses.append(
                pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array), pb_utils.Tensor("TEXT", text)])
            )
        return responses

    def finalize(self):
        print("finalizing", flush=True)
"""


@pytest.fixture(scope="module")
def place():
    place = ProcessPlace(SETTINGS, RecordingServices())
    yield place
    asyncio.run(place.close())


def run(place, directory, scenario, source=MODEL, count=1):
    async def main():
        write_model(directory, source)
        reports = Reports()
        instances = await asyncio.gather(
            *[start(place, reports, make_context(directory), f"m_0_{n}", "python") for n in range(count)]
        )
        try:
            await scenario(reports, *instances)
        finally:
            await asyncio.gather(*[instance.close() for instance in instances])

    asyncio.run(main())


@pytest.mark.parametrize("shape", [(1,), (0,), (0, 3), (), (40, 50), (1000, 1000)])
def test_tensors_of_every_shape_are_changed_in_place_and_come_back(place, tmp_path, shape):
    async def scenario(reports, instance):
        array = np.ones(shape, np.float32)
        outputs = outputs_of(await reports.ask(instance, make_request({"IN": array})))
        assert outputs["OUT"].shape == shape
        assert (outputs["OUT"] == 2).all()
        assert outputs["TEXT"].tolist() == [str(instance.process_id).encode()]
        assert (array == 1).all()

    run(place, tmp_path, scenario)


def test_an_exception_fails_its_batch_and_the_model_goes_on(place, tmp_path, caplog):
    async def scenario(reports, instance):
        text = (
            "Failed to process the request(s) for model 'm_0_0', message: ValueError: negative: -1.0\n\n"
            f"At:\n  {tmp_path}/1/model.py(25): execute\n"
        )
        for outcome in (
            await reports.execute(
                instance,
                make_request({"IN": np.ones(1, np.float32)}),
                make_request({"IN": -np.ones(1, np.float32)}),
            )
        ).outcomes:
            assert isinstance(outcome, InternalError)
            assert outcome.message == text
        assert outputs_of(await reports.ask(instance, make_request({"IN": np.ones(1, np.float32)})))
        assert text in caplog.text

    run(place, tmp_path, scenario)


def test_each_instance_has_a_process_and_globals_of_its_own(place, tmp_path):
    async def scenario(reports, first, second):
        pids = [
            outputs_of(await reports.ask(instance, make_request({"IN": np.ones(1, np.float32)})))["TEXT"][0]
            for instance in (first, second)
        ]
        assert pids == [str(instance.process_id).encode() for instance in (first, second)]
        assert len(set(pids)) == 2

    run(place, tmp_path, scenario, count=2)


def test_a_killed_model_is_initialized_again(place, tmp_path, caplog):
    async def scenario(reports, instance):
        os.kill(instance.process_id, signal.SIGKILL)
        await reports.wait_for_health(False, True)
        assert outputs_of(await reports.ask(instance, make_request({"IN": np.ones(1, np.float32)})))

    with caplog.at_level("INFO", "merrow"):
        run(place, tmp_path, scenario)
    assert caplog.text.count("initializing m_0_0") == 2


def test_auto_completion_leaves_nothing_in_the_server_or_the_instance(place, tmp_path):
    write_model(tmp_path, MODEL)
    completed = place.auto_complete(make_context(tmp_path), "python")

    assert completed.input == (*CONFIG.input, ModelInput("MORE", "TYPE_FP32", dims=(-1,)))
    assert completed.output == CONFIG.output


def test_what_prevents_loading_reaches_whoever_loads(place, tmp_path):
    write_model(tmp_path, "def broken(:")
    with pytest.raises(InternalError, match=r"SyntaxError: invalid syntax \(model.py, line 1\)"):
        place.auto_complete(make_context(tmp_path), "python")

    async def main():
        reports = Reports()
        with pytest.raises(InternalError, match=r"SyntaxError: invalid syntax \(model.py, line 1\)"):
            await start(place, reports, make_context(tmp_path), backend="python")

    asyncio.run(main())


DECOUPLED = """
import threading

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    @staticmethod
    def auto_complete_config(config):
        config.set_model_transaction_policy({"decoupled": True})
        return config

    def execute(self, requests):
        for request in requests:
            threading.Thread(target=self.answer, args=(request.get_response_sender(), request)).start()

    def answer(self, sender, request):
        array = pb_utils.get_input_tensor_by_name(request, "IN").as_numpy()
        for _ in range(3):
            # In place: what was sent before stays as it was.
            array += 1
            sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", array)]))
        sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
"""


@pytest.mark.parametrize("size", [1, 100_000])
def test_a_decoupled_model_answers_from_a_thread(place, tmp_path, size):
    write_model(tmp_path, DECOUPLED)
    completed = place.auto_complete(make_context(tmp_path), "python")
    assert completed.is_decoupled

    async def main():
        reports = Reports()
        instance = await start(place, reports, make_context(tmp_path, completed), backend="python")
        requests = [make_request({"IN": np.full(size, value, np.float32)}) for value in (0, 10)]
        execution = await reports.execute(instance, *requests)
        assert execution.outcomes == [Deferral.DEFERRED] * 2
        for request, first in zip(requests, (0, 10), strict=True):
            *responses, end = await reports.wait_for_end(request)
            assert [outputs_of(response)["OUT"][-1] for response in responses] == [first + 1, first + 2, first + 3]
            assert end.is_empty
        await instance.close()

    asyncio.run(main())


UNSENDABLE = """
import triton_python_backend_utils as pb_utils

# Python refuses to write a number of so many digits.
RESPONSE = pb_utils.InferenceResponse([], parameters={"n": 10**5000})


class TritonPythonModel:
    def execute(self, requests):
        for request in requests:
            sender = request.get_response_sender()
            try:
                sender.send(RESPONSE, FLAGS)
            except pb_utils.TritonModelException as error:
                pb_utils.Logger.log_info(f"the model was told: {error}")
            del sender
"""


@pytest.mark.parametrize(("is_decoupled", "flags"), [(True, 1), (False, 1), (False, 0)])
def test_a_last_response_that_cannot_be_sent_ends_its_request_with_an_error(
    place, tmp_path, caplog, is_decoupled, flags
):
    config = replace(CONFIG, model_transaction_policy=ModelTransactionPolicy(decoupled=is_decoupled))
    write_model(tmp_path, UNSENDABLE.replace("FLAGS", str(flags)))

    async def main():
        reports = Reports()
        instance = await start(place, reports, make_context(tmp_path, config), backend="python")
        # The second: what ends the first is there for it, too.
        for _ in range(2):
            request = make_request()
            assert (await reports.execute(instance, request)).outcomes == [Deferral.DEFERRED]
            (end,) = await reports.wait_for_end(request)
            # The rest is Python's, and differs from one to another.
            assert end.error.message.startswith(
                "Failed to process the request(s) for model 'm_0_0', message: An error occurred while sending a "
                "response: ValueError: Exceeds the limit (4300"
            )
            del request
        await instance.close()

    with caplog.at_level("INFO", "merrow"):
        asyncio.run(main())
    was_told = "the model was told: An error occurred while sending a response." in caplog.text
    assert was_told == bool(flags)
