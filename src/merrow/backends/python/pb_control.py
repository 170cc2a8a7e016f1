"""`pb_utils.load_model`, `unload_model` and `is_model_ready`: control of the server's models from a model.

Source: Triton, python_backend/src/model_loader.cc.
"""

from typing import Any

from merrow.backends.base import IsModelReady, LoadModel, Question, UnloadModel
from merrow.backends.python.pb_errors import TritonModelException, bind_arguments, incompatible_arguments
from merrow.backends.python.runtime import ModelRuntime
from merrow.core.errors import ServerError
from merrow.core.tensor import Buffer

_LOAD_SIGNATURE = "(model_name: str, config: str = '', files: object = None) -> None"
_UNLOAD_SIGNATURE = "(model_name: str, unload_dependents: bool = False) -> None"
_READY_SIGNATURE = "(model_name: str, model_version: str = '') -> bool"


class ModelControl:
    """The three functions, of one running model."""

    def __init__(self, runtime: ModelRuntime) -> None:
        self._runtime = runtime

    def load_model(self, *args: Any, **kwargs: Any) -> None:
        """Load, or reload, a model; returns when it serves. The server must run with explicit model control."""
        name, config, files = bind_arguments(
            ("model_name", "config", "files"), (None, "", None), args, kwargs, _LOAD_SIGNATURE
        )
        if not isinstance(name, str) or not isinstance(config, str):
            raise incompatible_arguments(_LOAD_SIGNATURE, args, kwargs, "load_model")
        if files is not None and not isinstance(files, dict):
            raise TritonModelException(
                f"failed to load model '{name}', files should be a dictionary of file paths and file contents"
            )
        contents: dict[str, Buffer] = {}
        for path, content in (files or {}).items():
            for value, kind in ((path, str), (content, bytes)):
                if not isinstance(value, kind):
                    raise TypeError(f"Object of type '{type(value).__name__}' is not an instance of '{kind.__name__}'")
            contents[path] = content
        self._ask(LoadModel(name, config, contents), "Failed to load model")

    def unload_model(self, *args: Any, **kwargs: Any) -> None:
        """Take a model out of service; returns before it has answered what it had accepted."""
        name, unload_dependents = bind_arguments(
            ("model_name", "unload_dependents"), (None, False), args, kwargs, _UNLOAD_SIGNATURE
        )
        if not isinstance(name, str) or not isinstance(unload_dependents, bool):
            raise incompatible_arguments(_UNLOAD_SIGNATURE, args, kwargs, "unload_model")
        self._ask(UnloadModel(name, unload_dependents), "Failed to unload model")

    def is_model_ready(self, *args: Any, **kwargs: Any) -> bool:
        """Whether a model, or a version of it, can answer requests now; False where there is none."""
        name, version = bind_arguments(("model_name", "model_version"), (None, ""), args, kwargs, _READY_SIGNATURE)
        if not isinstance(name, str) or not isinstance(version, str):
            raise incompatible_arguments(_READY_SIGNATURE, args, kwargs, "is_model_ready")
        return bool(self._ask(IsModelReady(name, version), "Failed to check model readiness"))

    def _ask(self, question: Question, failure: str) -> Any:
        try:
            return self._runtime.host.ask(question)
        except ServerError as error:
            raise TritonModelException(
                f"{failure}: Failed to process the request for model '{self._runtime.instance_name}', message: "
                f"{error.message}"
            ) from None
