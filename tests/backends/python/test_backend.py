import json
import logging
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from merrow.backends.base import Deferral, InstanceDescription, Place
from merrow.backends.python import runtime as runtime_module
from merrow.backends.python.backend import PythonBackend
from merrow.core.errors import InternalError, NotFoundError, UnsupportedError
from merrow.core.model_config import (
    ModelDynamicBatching,
    ModelInput,
    ModelOutput,
    ModelParameter,
    ModelTransactionPolicy,
)
from merrow.core.response import Response
from merrow.testing.recording_host import RecordingHost
from tests.backends.python import model_files
from tests.backends.python.model_files import CONFIG, make_context, make_request, outputs_of, write_model

PREFIX = "Failed to process the request(s) for model 'm_0_0', message: "

HEADER = """
import asyncio, gc, json, os, sys, threading, time
import numpy as np
import triton_python_backend_utils as pb_utils

def text(value):
    array = np.array([value.encode()], dtype=np.object_)
    return pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", array)])

"""


LOADED = []


@pytest.fixture(autouse=True)
def clean_imports():
    modules, path = set(sys.modules), list(sys.path)
    yield
    for instance in list(LOADED):
        instance.close()
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


def load(directory, source, config=CONFIG):
    instance = model_files.load(directory, source, config)
    finish = instance.close

    def close():
        LOADED.remove(instance)
        finish()

    instance.close = close
    LOADED.append(instance)
    return instance


def load_execute(directory, body, prefix="def", config=CONFIG):
    """A model whose `execute` has this body; its first line is line 12 of the file."""
    indented = "\n".join(f"        {line}" for line in body.strip().split("\n"))
    source = f"{HEADER}class TritonPythonModel:\n    {prefix} execute(self, requests):\n{indented}\n"
    return load(directory, source, config)


def execute_one(instance, request=None):
    """What became of a request, at once or later."""
    request = request or make_request({"IN": np.arange(3, dtype=np.float32)})
    execution = instance.execute([request])
    (outcome,) = execution.outcomes
    assert execution.start_ns <= execution.input_end_ns <= execution.output_start_ns <= execution.end_ns
    if outcome is Deferral.DEFERRED:
        (outcome,) = instance._runtime.host.wait_for_end(request)
        outcome = outcome.error or outcome
    return outcome


def stream_one(instance, request=None):
    """All responses to a request of a decoupled model."""
    request = request or make_request({"IN": np.arange(3, dtype=np.float32)})
    assert instance.execute([request]).outcomes == [Deferral.DEFERRED]
    return instance._runtime.host.wait_for_end(request)


def test_requests_are_answered_in_order(tmp_path):
    instance = load_execute(
        tmp_path,
        """
responses = []
for request in requests:
    tensor = pb_utils.get_input_tensor_by_name(request, "IN")
    responses.append(pb_utils.InferenceResponse([pb_utils.Tensor("OUT", tensor.as_numpy() * 2)]))
return responses
""",
    )
    arrays = [np.full(size, size, np.float32) for size in (1, 2, 3000)]
    execution = instance.execute([make_request({"IN": array}) for array in arrays])

    assert [outputs_of(outcome)["OUT"] for outcome in execution.outcomes] == [(array * 2).tolist() for array in arrays]


def test_a_model_is_initialized_with_seven_strings(tmp_path):
    instance = load(
        tmp_path,
        HEADER
        + """
class TritonPythonModel:
    def initialize(self, args):
        self.args = args

    def execute(self, requests):
        return [text(json.dumps(self.args))]
""",
    )
    arguments = json.loads(outputs_of(execute_one(instance))["TEXT"][0])

    assert json.loads(arguments.pop("model_config"))["name"] == "m"
    assert arguments == {
        "model_instance_kind": "CPU",
        "model_instance_name": "m_0_0",
        "model_instance_device_id": "0",
        "model_repository": str(tmp_path),
        "model_version": "1",
        "model_name": "m",
    }


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("return 5", "Expected a list in the execute return, found type '<class 'int'>'."),
        ("return (text('x'),)", "Expected a list in the execute return, found type '<class 'tuple'>'."),
        (
            "return []",
            "Number of InferenceResponse objects do not match the number of InferenceRequest objects. "
            "InferenceRequest(s) size is:2, and InferenceResponse(s) size is:0\n",
        ),
        (
            "return [text('x'), 5]",
            "Expected an 'InferenceResponse' object in the execute function return list, found type '<class 'int'>'.",
        ),
        (
            "return [text('x'), pb_utils.TritonError('x')]",
            "Expected an 'InferenceResponse' object in the execute function return list, found type "
            "'<class 'c_python_backend_utils.TritonError'>'.",
        ),
        ("raise ValueError('boom')", "ValueError: boom\n\nAt:\n  {path}(12): execute\n"),
        ("sys.exit(3)", "SystemExit: 3\n\nAt:\n  {path}(12): execute\n"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt: <EMPTY MESSAGE>\n\nAt:\n  {path}(12): execute\n"),
        (
            "pb_utils.Tensor('', np.zeros(1))",
            "TritonModelException: Tensor name cannot be an empty string.\n\nAt:\n  {path}(12): execute\n",
        ),
        (
            "class Bad:\n    def __str__(self):\n        raise OSError('no')\n"
            "return [pb_utils.InferenceResponse([pb_utils.Tensor('TEXT', np.array([Bad()]))])] * 2",
            "OSError: no\n\nAt:\n  {path}(14): __str__\n",
        ),
    ],
)
def test_what_execute_does_wrong_fails_the_whole_batch(tmp_path, body, text, caplog):
    instance = load_execute(tmp_path, body)
    execution = instance.execute([make_request(), make_request()])
    expected = PREFIX + text.replace("{path}", str(tmp_path / "1" / "model.py"))

    for outcome in execution.outcomes:
        assert isinstance(outcome, InternalError)
        assert outcome.message == expected
    assert expected in caplog.text


def test_a_model_without_execute_loads_and_fails_every_request(tmp_path):
    instance = load(tmp_path, "class TritonPythonModel: pass")

    assert execute_one(instance).message == (
        f"{PREFIX}Python model {tmp_path}/1/model.py does not implement `execute` method."
    )


def test_an_error_response_fails_its_own_request_only(tmp_path):
    instance = load_execute(
        tmp_path,
        "return [pb_utils.InferenceResponse(error=pb_utils.TritonError('gone', pb_utils.TritonError.NOT_FOUND)), "
        "text('here')]",
    )
    first, second = instance.execute([make_request(), make_request()]).outcomes

    assert isinstance(first, Response)
    assert isinstance(first.error, NotFoundError)
    assert first.error.message == "gone"
    assert outputs_of(second) == {"TEXT": [b"here"]}


def test_outputs_that_nobody_asked_for_are_not_encoded(tmp_path):
    instance = load_execute(
        tmp_path,
        "return [pb_utils.InferenceResponse([pb_utils.Tensor(n, np.zeros(1)) for n in ('OUT', 'NEW', 'TEXT')])]",
    )

    assert list(outputs_of(execute_one(instance))) == ["OUT", "TEXT"]
    assert list(outputs_of(execute_one(instance, make_request(requested_outputs=("TEXT",))))) == ["TEXT"]


def test_response_parameters_are_passed_on(tmp_path):
    instance = load_execute(tmp_path, "return [pb_utils.InferenceResponse([], parameters={'a': 1, 'b': True})]")

    assert execute_one(instance).parameters == {"a": 1, "b": True}


def test_coroutines_run_on_one_loop_that_outlives_them(tmp_path):
    instance = load_execute(
        tmp_path,
        """
loop = asyncio.get_running_loop()
self.loops = getattr(self, "loops", set()) | {loop}
await asyncio.sleep(0)
if not requests[0].inputs():
    raise ValueError("async boom")
return [text(f"{len(self.loops)} {threading.current_thread() is threading.main_thread()}")]
""",
        prefix="async def",
    )
    assert outputs_of(execute_one(instance))["TEXT"] == [b"1 False"]
    assert outputs_of(execute_one(instance))["TEXT"] == [b"1 False"]
    failure = execute_one(instance, make_request())
    assert failure.message == f"{PREFIX}ValueError: async boom\n\nAt:\n  {tmp_path}/1/model.py(16): execute\n"
    instance.close()


def test_a_coroutine_that_exits_does_not_end_the_loop(tmp_path):
    instance = load_execute(
        tmp_path, "if not requests[0].inputs():\n    sys.exit(1)\nreturn [text('x')]", prefix="async def"
    )

    assert "SystemExit: 1" in execute_one(instance, make_request()).message
    assert outputs_of(execute_one(instance))["TEXT"] == [b"x"]
    instance.close()


@pytest.mark.parametrize(
    "body",
    [
        "requests[0].get_response_sender().send(text('sent'), flags=1); return [None]",
        "requests[0].get_response_sender().send(text('sent'), flags=1); return None",
        "sender = requests[0].get_response_sender()\nsender.send(text('sent'))\nsender.send(flags=1)\nreturn [None]",
        # From another thread, after execute returned.
        """
sender = requests[0].get_response_sender()
def later(request):
    time.sleep(0.02)
    sender.send(text('sent'), flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)
threading.Thread(target=later, args=(requests[0],)).start()
return [None]
""",
        # What was sent for good stays sent, whatever happens then.
        "requests[0].get_response_sender().send(text('sent'), flags=1); raise ValueError('too late')",
        "requests[0].get_response_sender().send(text('sent'), flags=1); return [text('again')]",
    ],
)
def test_a_response_may_come_through_a_sender(tmp_path, body):
    assert outputs_of(execute_one(load_execute(tmp_path, body)))["TEXT"] == [b"sent"]


def test_a_batch_may_be_answered_both_ways(tmp_path):
    instance = load_execute(
        tmp_path, "requests[1].get_response_sender().send(text('sent'), flags=1); return [text('returned'), None]"
    )
    first, second = make_request(), make_request()
    outcomes = instance.execute([first, second]).outcomes

    assert outputs_of(outcomes[0])["TEXT"] == [b"returned"]
    assert outcomes[1] is Deferral.DEFERRED
    (response,) = instance._runtime.host.wait_for_end(second)
    assert outputs_of(response)["TEXT"] == [b"sent"]


def test_a_request_is_not_answered_twice(tmp_path):
    instance = load_execute(tmp_path, "requests[0].get_response_sender().send(text('sent')); return [text('returned')]")

    assert execute_one(instance).message == (
        f"{PREFIX}Unable to send response. Non-decoupled model cannot send more than one response."
    )


@pytest.mark.parametrize(
    "body",
    [
        "return [None]",
        "return None",
        "sender = requests[0].get_response_sender(); return [None]",
        # In a cycle.
        "cycle = [requests]; cycle.append(cycle); return None",
    ],
)
def test_a_response_that_can_never_come_is_not_waited_for(tmp_path, body):
    outcome = execute_one(load_execute(tmp_path, body))

    assert outcome.message == (
        f"{PREFIX}The model returned None for a request and dropped its response sender without sending a response."
    )


def test_a_response_without_the_final_flag_counts_once_its_sender_is_gone(tmp_path):
    instance = load_execute(tmp_path, "requests[0].get_response_sender().send(text('sent')); return [None]")

    assert outputs_of(execute_one(instance))["TEXT"] == [b"sent"]


def test_a_sent_response_that_cannot_be_encoded_fails_its_request(tmp_path):
    instance = load_execute(
        tmp_path,
        """
class Bad:
    def __str__(self):
        raise OSError("no")
response = pb_utils.InferenceResponse([pb_utils.Tensor("TEXT", np.array([Bad()]))])
requests[0].get_response_sender().send(response, flags=1)
return [None]
""",
    )

    path = f"{tmp_path}/1/model.py"
    assert execute_one(instance).message == (
        f"{PREFIX}OSError: no\n\nAt:\n  {path}(14): __str__\n  {path}(16): execute\n"
    )


def test_finalize_is_called_and_may_raise(tmp_path, caplog):
    instance = load(
        tmp_path,
        """
        class TritonPythonModel:
            def execute(self, requests): ...
            def finalize(self):
                raise ValueError("fin")
        """,
    )
    with caplog.at_level(logging.INFO, "merrow.python"):
        instance.close()

    (record,) = caplog.records
    assert record.levelno == logging.INFO
    assert record.getMessage() == f"ValueError: fin\n\nAt:\n  {tmp_path}/1/model.py(5): finalize\n"


@pytest.mark.parametrize(
    ("source", "text"),
    [
        ("x = 1", "AttributeError: module '1.model' has no attribute 'TritonPythonModel'"),
        ("def f(:", "SyntaxError: invalid syntax (model.py, line 1)"),
        (
            "class TritonPythonModel:\n    def __init__(self):\n        raise ValueError('ctor')",
            "ValueError: ctor\n\nAt:\n  {path}(3): __init__\n",
        ),
        (
            "class TritonPythonModel:\n    def initialize(self, args):\n        raise ValueError('init')",
            "ValueError: init\n\nAt:\n  {path}(3): initialize\n",
        ),
        (
            "import sys\nclass TritonPythonModel:\n    def initialize(self, args):\n        sys.exit(3)",
            "SystemExit: 3\n\nAt:\n  {path}(4): initialize\n",
        ),
        (
            "class TritonPythonModel:\n    def initialize(self):\n        pass",
            "TypeError: TritonPythonModel.initialize() takes 1 positional argument but 2 were given",
        ),
    ],
)
def test_a_model_that_cannot_be_made_says_why(tmp_path, source, text):
    with pytest.raises(InternalError) as caught:
        load(tmp_path, source)

    assert caught.value.message == text.replace("{path}", str(tmp_path / "1" / "model.py"))


def test_an_import_that_fails_shows_the_frames_that_triton_shows(tmp_path):
    with pytest.raises(InternalError) as caught:
        load(tmp_path, "import no_such_module_anywhere")

    lines = caught.value.message.split("\n")
    assert lines[:4] == [
        "ModuleNotFoundError: No module named 'no_such_module_anywhere'",
        "",
        "At:",
        f"  {tmp_path}/1/model.py(1): <module>",
    ]
    assert [line.rpartition(" ")[2] for line in lines[4:]] == [
        "_call_with_frames_removed", "exec_module", "_load_unlocked", "_find_and_load_unlocked", "_find_and_load", "",
    ]  # fmt: skip


def with_parameter(key, value):
    return replace(CONFIG, parameters={key: ModelParameter(value)})


@pytest.mark.parametrize(
    ("config", "text"),
    [
        (
            with_parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "maybe"),
            "Incorrect value for FORCE_CPU_ONLY_INPUT_TENSORS: maybe'",
        ),
    ],
)
def test_what_is_not_available_yet_fails_the_load(tmp_path, config, text):
    write_model(tmp_path, "class TritonPythonModel: pass")
    context = make_context(tmp_path, config)
    with pytest.raises(UnsupportedError, match=text):
        PythonBackend().validate(context)
    with pytest.raises(UnsupportedError, match=text):
        PythonBackend().create_instance(context, InstanceDescription("m_0_0", "KIND_CPU", 0), RecordingHost())


@pytest.mark.parametrize(
    "config", [with_parameter("FORCE_CPU_ONLY_INPUT_TENSORS", "no"), with_parameter("k", "v"), CONFIG]
)
def test_other_settings_are_none_of_the_backends_business(tmp_path, config):
    PythonBackend().validate(make_context(tmp_path, config))


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("def is_ready(self): return True", True),
        ("def is_ready(self): return False", False),
        ("async def is_ready(self): return False", False),
        ("def is_ready(self): return 1", "is_ready() must return a boolean value"),
        ("def is_ready(self): raise OSError('no')", "OSError: no\n\nAt:\n  {path}(2): is_ready\n"),
    ],
)
def test_a_model_says_whether_it_is_ready(tmp_path, body, expected):
    instance = load(tmp_path, f"class TritonPythonModel:\n    {body}")

    assert instance.has_readiness_check
    if isinstance(expected, bool):
        assert instance.is_ready() is expected
    else:
        with pytest.raises(InternalError) as caught:
            instance.is_ready()
        assert caught.value.message == expected.format(path=tmp_path / "1" / "model.py")


def test_a_model_without_a_readiness_check_is_not_asked(tmp_path):
    assert not load(tmp_path, "class TritonPythonModel: pass").has_readiness_check


def auto_complete(directory, body, config=CONFIG):
    indented = "\n".join(f"        {line}" for line in body.strip().split("\n"))
    write_model(
        directory, f"class TritonPythonModel:\n    @staticmethod\n    def auto_complete_config(config):\n{indented}\n"
    )
    return PythonBackend().auto_complete(make_context(directory, config))


def test_a_model_completes_its_configuration(tmp_path):
    completed = auto_complete(
        tmp_path,
        """
config.set_max_batch_size(4)
config.set_dynamic_batching()
config.add_input({"name": "A", "data_type": "TYPE_FP32", "dims": [2], "optional": True})
config.add_output({"name": "B", "data_type": "TYPE_STRING", "dims": (-1,)})
config.set_model_transaction_policy({"decoupled": False})
config.as_dict()["instance_group"] = ["ignored"]
return config
""",
        replace(CONFIG, parameters={"kept": ModelParameter("yes")}),
    )

    assert completed == replace(
        CONFIG,
        max_batch_size=4,
        input=(*CONFIG.input, ModelInput("A", "TYPE_FP32", dims=(2,), optional=True)),
        output=(*CONFIG.output, ModelOutput("B", "TYPE_STRING", dims=(-1,))),
        dynamic_batching=ModelDynamicBatching(),
        model_transaction_policy=ModelTransactionPolicy(False),
        parameters={"kept": ModelParameter("yes")},
    )


def test_a_model_that_completes_nothing_changes_nothing(tmp_path):
    write_model(tmp_path, "class TritonPythonModel: pass")

    assert PythonBackend().auto_complete(make_context(tmp_path)) is CONFIG


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("raise ValueError('ac')", "ValueError: ac\n\nAt:\n  {path}(4): auto_complete_config\n"),
        ("return 5", "auto_complete_config function in model 'm' must return a valid pb.ModelConfig object."),
        ("pass", "auto_complete_config function in model 'm' must return a valid pb.ModelConfig object."),
        (
            "config.as_dict()['max_batch_size'] = 'many'; return config",
            "auto_complete_config function in model 'm' made an invalid configuration: ModelConfig.max_batch_size: "
            "expected an integer, got 'many'",
        ),
    ],
)
def test_a_completion_that_fails_says_why(tmp_path, body, text):
    with pytest.raises(InternalError) as caught:
        auto_complete(tmp_path, body)

    assert caught.value.message == text.replace("{path}", str(tmp_path / "1" / "model.py"))


def test_python_models_run_in_processes_of_their_own_by_default():
    assert PythonBackend.default_place is Place.PROCESS
    assert PythonBackend.name == "python"


def test_a_sender_may_answer_while_lost_ones_are_looked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(runtime_module, "_FIRST_PATIENCE_SECONDS", 0.001)
    monkeypatch.setattr(runtime_module, "_LAST_PATIENCE_SECONDS", 0.001)
    instance = load_execute(
        tmp_path, "self.sender = requests[0].get_response_sender(); self.text = text; return [None]"
    )
    model = instance._model

    def answer():
        model.sender.send(model.text("late"), flags=1)

    timer = threading.Timer(0.05, answer)
    timer.start()
    assert outputs_of(execute_one(instance))["TEXT"] == [b"late"]
    timer.join()
