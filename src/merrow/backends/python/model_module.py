"""Finding and importing the file of a Python model.

The file `<version>/<name>.py` is the module `<version>.<name>`, so that relative imports work within the version's
directory; both the version's and the model's directory are at the end of `sys.path`. In a process of its own a model
has all this for itself. Models that share the server's process (the thread and inline places) take turns: the newest
has the names, and older ones keep what they have imported.
"""

import os
import sys
import threading
from importlib.machinery import ModuleSpec
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any

from merrow.backends.base import ModelContext
from merrow.backends.python.pb_exchange import InferenceRequest
from merrow.backends.python.pb_utils import install
from merrow.backends.python.runtime import ModelRuntime
from merrow.core.errors import InternalError

DEFAULT_FILENAME = "model.py"

_IMPORTING = threading.Lock()


def model_path(context: ModelContext) -> str:
    """Where the model's file must be.

    Raises:
        InternalError: its name does not end in `.py`.
    """
    filename = context.config.default_model_filename or DEFAULT_FILENAME
    if not filename.endswith(".py"):
        raise InternalError(f"Model name must end with '.py'. Model name is \"{filename}\".")
    return os.path.join(context.version_directory, filename)


def find_model(context: ModelContext) -> str:
    """The path of the model's file.

    Raises:
        InternalError: there is none, or its name does not end in `.py`.
    """
    path = model_path(context)
    if not os.path.isfile(path):
        raise InternalError(f"Python model file not found in '{path}'")
    return path


def import_model(
    path: str, context: ModelContext, runtime: ModelRuntime | None = None
) -> tuple[Any, type[InferenceRequest]]:
    """Import the model's file anew.

    Args:
        runtime: of the instance; None where the model only completes its configuration.

    Returns:
        The module, and the class of its requests.

    Raises:
        BaseException: whatever the file raises; nothing of the import system is in the traceback that Triton's own
            import would not have there.
    """
    version_directory, model_directory = context.version_directory, context.model_directory
    package_name = os.path.basename(os.path.normpath(version_directory))
    with _IMPORTING:
        request_class = install(version_directory, runtime)
        for directory in (version_directory, model_directory):
            if directory in sys.path:
                sys.path.remove(directory)
            sys.path.append(directory)
        for name in [name for name in sys.modules if name.partition(".")[0] == package_name]:
            del sys.modules[name]
        _add_package(package_name, version_directory)
        # Also of a file in a folder of the version's.
        file = os.path.relpath(path, version_directory).removesuffix(".py")
        name = ".".join((package_name, *file.split(os.sep)))
        # Not importlib.import_module: it leaves more of the import system in tracebacks.
        __import__(name)
        return sys.modules[name], request_class


def _add_package(name: str, directory: str) -> None:
    """The version's directory as a package, with or without an `__init__.py`."""
    init = os.path.join(directory, "__init__.py")
    spec: ModuleSpec | None
    if os.path.isfile(init):
        spec = spec_from_file_location(name, init, submodule_search_locations=[directory])
        assert spec is not None
    else:
        spec = ModuleSpec(name, None, is_package=True)
        spec.submodule_search_locations = [directory]
    package = module_from_spec(spec)
    sys.modules[name] = package
    if spec.loader is not None:
        spec.loader.exec_module(package)
