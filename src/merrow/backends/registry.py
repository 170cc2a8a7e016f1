"""The backends there are, by the name that a model's configuration gives in `backend`.

This is the one place that names them all; a backend's module is imported when the first model asks for it.
"""

from merrow.backends.base import Backend
from merrow.core.errors import InvalidArgumentError


def backend_of(name: str) -> Backend:
    """A new backend object.

    Raises:
        InvalidArgumentError: there is no such backend here (Triton's text, then what there is).
    """
    if name == "python":
        from merrow.backends.python.backend import PythonBackend

        return PythonBackend()
    if name == "onnxruntime":
        from merrow.backends.onnx.backend import OnnxBackend

        return OnnxBackend()
    if name == "identity":
        from merrow.backends.identity import IdentityBackend

        return IdentityBackend()
    raise InvalidArgumentError(
        f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration."
    )
