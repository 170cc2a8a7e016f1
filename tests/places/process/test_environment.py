import json
import os
import sys

import numpy as np
import pytest

from merrow.core.errors import InternalError
from merrow.places.process.environment import expand_path, probe_folder, probe_interpreter

FOUND = {
    "interpreter": "/env/bin/python",
    "version": "3.12.1",
    "implementation": "CPython",
    "variables": {"A": "b"},
    "packages": ["/env/lib/python3.12/site-packages"],
    "numpy": "2.1.0",
}


def write_script(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def write_interpreter(folder, **changes):
    """Something that is asked as an interpreter is, and says this."""
    found = {name: value for name, value in {**FOUND, **changes}.items() if value is not None}
    return write_script(folder / "bin" / "python3", f"echo noise; echo '{json.dumps(found)}'")


class TestPaths:
    def test_the_model_s_directory_stands_for_itself(self, tmp_path):
        (tmp_path / "env").mkdir()

        assert expand_path("$$TRITON_MODEL_DIRECTORY/env", str(tmp_path)) == str(tmp_path / "env")

    def test_a_path_that_is_not_there_is_refused_in_triton_s_words(self, tmp_path):
        with pytest.raises(InternalError) as caught:
            expand_path("$$TRITON_MODEL_DIRECTORY/env.tar.gz", str(tmp_path))
        assert caught.value.message == f"Failed to get the canonical path for {tmp_path}/env.tar.gz."

    def test_the_interpreter_of_a_virtual_environment_stays_in_it(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "real" / "python").symlink_to(sys.executable)
        (tmp_path / "link").symlink_to("real")

        assert expand_path(str(tmp_path / "link" / "python"), "/") == str(tmp_path / "real" / "python")


class TestFolders:
    def test_a_folder_with_nothing_in_it_is_refused_in_triton_s_words(self, tmp_path):
        with pytest.raises(InternalError) as caught:
            probe_folder(str(tmp_path), "env")
        assert caught.value.message == (
            f"Path {tmp_path}/bin/activate does not exist. The Python environment should contain an 'activate' script."
        )

    def test_a_folder_without_an_interpreter_is_refused(self, tmp_path):
        write_script(tmp_path / "bin" / "activate", "")
        with pytest.raises(InternalError, match="'env' has no interpreter bin/python3 or bin/python"):
            probe_folder(str(tmp_path), "env")

    @pytest.mark.slow
    def test_its_activate_script_has_its_say(self, tmp_path):
        # Not a link: of a link to a virtual environment's interpreter, Python would not see the environment's packages.
        write_script(tmp_path / "bin" / "python3", f'exec {sys.executable} "$@"')
        (tmp_path / "bin" / "activate").write_text("export SAID_BY_ACTIVATE=yes; echo some noise\n")
        environment = probe_folder(str(tmp_path), "env")

        assert environment.variables["SAID_BY_ACTIVATE"] == "yes"
        assert environment.python_version == ".".join(map(str, sys.version_info[:3]))

    def test_without_one_the_usual_variables_are_set(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PYTHONHOME", "/of/the/server")
        write_script(tmp_path / "bin" / "python3", f'unset PYTHONHOME; exec {sys.executable} "$@"')
        variables = probe_folder(str(tmp_path), "env").variables

        assert variables["VIRTUAL_ENV"] == str(tmp_path)
        assert variables["PATH"].startswith(f"{tmp_path}/bin:")
        assert "PYTHONHOME" not in variables
        assert "LD_LIBRARY_PATH" not in variables or not variables["LD_LIBRARY_PATH"].startswith(str(tmp_path))

    def test_a_conda_environment_brings_its_libraries(self, tmp_path, monkeypatch):
        monkeypatch.setenv("LD_LIBRARY_PATH", "/mine")
        (tmp_path / "conda-meta").mkdir()
        write_interpreter(tmp_path)
        environment = probe_folder(str(tmp_path), "env")

        assert environment.variables == {"A": "b", "LD_LIBRARY_PATH": f"{tmp_path}/lib:/mine"}


class TestInterpreters:
    def test_it_says_what_it_is(self):
        environment = probe_interpreter(sys.executable, "env")

        assert environment.interpreter == sys.executable
        assert str(environment) == (
            f"Python {'.'.join(map(str, sys.version_info[:3]))} ({sys.executable}), numpy {np.__version__}"
        )
        assert any(os.path.isdir(os.path.join(path, "numpy")) for path in environment.package_directories)

    @pytest.mark.parametrize(
        ("changes", "text"),
        [
            (
                {"version": "3.6.15"},
                "execution environment 'env' has CPython 3.6.15, but models need CPython 3.10 or newer",
            ),
            (
                {"implementation": "PyPy"},
                "execution environment 'env' has PyPy 3.12.1, but models need CPython 3.10 or newer",
            ),
            (
                {"numpy": None, "numpy_error": "ModuleNotFoundError: No module named numpy"},
                "execution environment 'env' (Python 3.12.1) has no numpy, which models need: ModuleNotFoundError: No "
                "module named numpy",
            ),
        ],
    )
    def test_one_that_cannot_run_models_is_refused(self, tmp_path, changes, text):
        with pytest.raises(InternalError) as caught:
            probe_interpreter(str(write_interpreter(tmp_path, **changes)), "env")
        assert caught.value.message == text

    def test_one_that_does_not_run_says_what_it_says(self, tmp_path):
        path = write_script(tmp_path / "python", "echo cannot find libpython >&2; exit 127")
        with pytest.raises(InternalError, match="does not run: cannot find libpython"):
            probe_interpreter(str(path), "env")

    def test_a_file_that_is_no_program_is_refused(self, tmp_path):
        path = tmp_path / "python"
        path.write_text("text")
        with pytest.raises(InternalError, match="execution environment 'env' cannot be used"):
            probe_interpreter(str(path), "env")

    def test_one_that_says_nothing_sensible_is_refused(self, tmp_path):
        with pytest.raises(InternalError, match="execution environment 'env' cannot be used"):
            probe_interpreter(str(write_script(tmp_path / "python", "echo hello")), "env")
