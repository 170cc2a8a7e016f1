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
    if name == "repeat":
        from merrow.backends.probes.repeat import RepeatBackend

        return RepeatBackend()
    if name == "square":
        from merrow.backends.probes.square import SquareBackend

        return SquareBackend()
    if name == "sequence":
        from merrow.backends.probes.sequence import SequenceBackend

        return SequenceBackend()
    if name == "dyna_sequence":
        from merrow.backends.probes.dyna_sequence import DynaSequenceBackend

        return DynaSequenceBackend()
    if name == "implicit_state":
        from merrow.backends.probes.implicit_state import ImplicitStateBackend

        return ImplicitStateBackend()
    if name == "iterative_sequence":
        from merrow.backends.probes.iterative_sequence import IterativeSequenceBackend

        return IterativeSequenceBackend()
    raise InvalidArgumentError(
        f"unable to find backend library for backend '{name}', try specifying runtime on the model configuration."
    )
