import pytest

from merrow.backends.base import IsModelReady, LoadModel, UnloadModel
from merrow.backends.python.pb_control import ModelControl
from merrow.backends.python.pb_errors import TritonModelException
from merrow.core.errors import InternalError
from tests.backends.python.bound_models import make_runtime

P = "Failed to process the request for model 'm_0_0', message: "


def test_models_are_loaded_unloaded_and_asked_for():
    runtime = make_runtime(on_question=lambda question: True)
    control = ModelControl(runtime)
    control.load_model("a")
    control.load_model(model_name="a", config="{}", files={"file:1/model.py": b"x"})
    control.unload_model("a")
    control.unload_model("a", unload_dependents=True)
    assert control.is_model_ready("a") is True
    assert control.is_model_ready("a", model_version="2") is True

    assert runtime.host.questions == [
        LoadModel("a"),
        LoadModel("a", "{}", {"file:1/model.py": b"x"}),
        UnloadModel("a"),
        UnloadModel("a", True),
        IsModelReady("a"),
        IsModelReady("a", "2"),
    ]


def test_what_the_server_refuses_is_said_in_tritons_words():
    control = ModelControl(make_runtime(on_question=lambda question: InternalError("no")))
    for use, text in (
        (control.load_model, f"Failed to load model: {P}no"),
        (control.unload_model, f"Failed to unload model: {P}no"),
        (control.is_model_ready, f"Failed to check model readiness: {P}no"),
    ):
        with pytest.raises(TritonModelException) as caught:
            use("a")
        assert str(caught.value) == text


def test_arguments_of_the_wrong_types_are_refused():
    control = ModelControl(make_runtime())
    for use in (control.load_model, control.unload_model, control.is_model_ready):
        with pytest.raises(TypeError, match=r"\(\): incompatible function arguments"):
            use(5)
        with pytest.raises(TypeError, match=r"\(\): incompatible function arguments"):
            use("a", 5)
    with pytest.raises(TritonModelException) as caught:
        control.load_model("a", files=5)
    assert str(caught.value) == (
        "failed to load model 'a', files should be a dictionary of file paths and file contents"
    )
    with pytest.raises(TypeError, match="Object of type 'int' is not an instance of 'bytes'"):
        control.load_model("a", files={"file:1/model.py": 5})
