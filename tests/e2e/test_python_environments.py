"""Python models with an interpreter and packages of their own, under a real server.

Besides environments of this interpreter, one of another CPython version is tried where one can be had: with
`MERROW_TEST_PYTHON` set to an interpreter, or with any `python3.N` on the path or below a pyenv. If it has no numpy, a
virtual environment with numpy is made once and kept in pytest's cache.
"""

import contextlib
import http.client
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from merrow.places.process.environment import OLDEST_PYTHON
from merrow.places.process.system import is_available
from merrow.testing.repository_builder import RepositoryBuilder, python_config
from merrow.testing.running_server import RunningServer

pytestmark = [pytest.mark.skipif(not is_available(), reason="needs fork and Unix sockets"), pytest.mark.slow]

DESCRIBING = """\
import json
import os
import sys

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def execute(self, requests):
        try:
            import merrow_test_package
        except ImportError:
            package = None
        else:
            package = merrow_test_package.ANSWER
        text = json.dumps(
            {
                "version": list(sys.version_info[:2]),
                "prefix": sys.prefix,
                "parent": os.getppid(),
                "virtual_env": os.environ.get("VIRTUAL_ENV"),
                "package": package,
                "server_s_packages": [name for name in ("uvloop", "httptools", "orjson") if name in sys.modules],
            }
        )
        out = np.array([text.encode()], dtype=np.object_)
        large = np.ones(100_000, np.float32)
        return [
            pb_utils.InferenceResponse([pb_utils.Tensor("OUT", out), pb_utils.Tensor("LARGE", large)]) for _ in requests
        ]
"""

FIND_NUMPY = "import os, numpy; print(os.path.dirname(os.path.dirname(numpy.__file__)))"


def make_environment(folder: Path, interpreter: str, packages: str, with_pip: bool = False) -> Path:
    """A virtual environment that finds these packages, and is small."""
    subprocess.run([interpreter, "-m", "venv", *([] if with_pip else ["--without-pip"]), str(folder)], check=True)
    (site_packages,) = folder.glob("lib/python*/site-packages")
    (site_packages / "packages.pth").write_text(packages)
    return folder


def pack(folder: Path, archive: Path) -> None:
    with tarfile.open(archive, "w:gz") as tar:
        for entry in sorted(folder.iterdir()):
            tar.add(entry, entry.name)


def packages_of(interpreter: str) -> str | None:
    """Where the interpreter has numpy; None if it has none."""
    done = subprocess.run([interpreter, "-c", FIND_NUMPY], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else None


def other_interpreters() -> Iterator[str]:
    """Interpreters of other versions that models could run with."""
    given = os.environ.get("MERROW_TEST_PYTHON")
    names = [f"python3.{minor}" for minor in range(OLDEST_PYTHON[1], 20)]
    candidates = [given] if given else list(filter(None, map(shutil.which, names)))
    candidates += map(str, sorted(Path.home().glob(".pyenv/versions/*/bin/python3"), reverse=True))
    for candidate in candidates:
        code = "import sys; print(*sys.version_info[:2])"
        done = subprocess.run([candidate, "-c", code], capture_output=True, text=True, check=False)
        version = tuple(map(int, done.stdout.split())) if done.returncode == 0 else (0, 0)
        if version >= OLDEST_PYTHON and version != sys.version_info[:2]:
            yield candidate


@pytest.fixture(scope="module")
def other_interpreter(request: pytest.FixtureRequest) -> str | None:
    """An interpreter of another version that has numpy; None where there is none to be had."""
    candidates = list(other_interpreters())
    for candidate in candidates:
        if packages_of(candidate) is not None:
            return candidate
    for candidate in candidates:
        folder = Path(request.config.cache.mkdir("environments")) / re.sub(r"\W", "-", candidate)
        interpreter = str(folder / "bin" / "python")
        if packages_of(interpreter) if os.path.exists(interpreter) else None:
            return interpreter
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run([candidate, "-m", "venv", str(folder)], check=True)
            command = [interpreter, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "numpy"]
            subprocess.run(command, check=True, timeout=90)
            return interpreter
    return None


class Models:
    """A repository and the server on it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.repository = RepositoryBuilder(folder / "models")
        self.cache = folder / "cache"

    def add(self, name: str, path: str | Path | None, files: dict[str, str | bytes] | None = None) -> Path:
        extra = "" if path is None else f'parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{path}" }} }}'
        outputs = [("OUT", "BYTES", (1,)), ("LARGE", "FP32", (-1,))]
        config = python_config(name, [("IN", "INT32", (1,))], outputs, extra_config=extra)
        return self.repository.add(name, config, {"1/model.py": DESCRIBING, **(files or {})})

    def serve(self, *arguments: str) -> RunningServer:
        cache = f"--backend-config=python,environment-cache-directory={self.cache}"
        return RunningServer(self.repository.path, "--exit-on-error=false", cache, *arguments)


def describe(server: RunningServer, model: str) -> dict[str, object]:
    body = {"inputs": [{"name": "IN", "datatype": "INT32", "shape": [1], "data": [0]}]}
    with contextlib.closing(http.client.HTTPConnection(server.http_url, timeout=30)) as connection:
        connection.request("POST", f"/v2/models/{model}/infer", json.dumps(body))
        response = connection.getresponse()
        content = json.loads(response.read())
    assert response.status == 200, content
    outputs = {output["name"]: output["data"] for output in content["outputs"]}
    assert outputs["LARGE"] == [1] * 100_000
    return json.loads(outputs["OUT"][0])


@pytest.fixture
def models(tmp_path: Path) -> Models:
    return Models(tmp_path)


def test_every_form_of_an_environment_works_and_models_of_one_share_a_fork_server(models):
    packages = packages_of(sys.executable)
    folder = make_environment(models.folder / "env", sys.executable, packages)
    models.add("own", None)
    models.add("in_folder", folder)
    models.add("as_well", folder)
    models.add("interpreter", folder / "bin" / "python")
    packed = models.add("packed", "$$TRITON_MODEL_DIRECTORY/env.tar.gz")
    pack(folder, packed / "env.tar.gz")
    with models.serve() as server:
        own = describe(server, "own")
        in_folder = describe(server, "in_folder")
        assert in_folder["prefix"] == in_folder["virtual_env"] == str(folder)
        assert in_folder["parent"] == describe(server, "as_well")["parent"] != own["parent"]
        assert in_folder["server_s_packages"] == []
        interpreter = describe(server, "interpreter")
        assert interpreter["prefix"] == str(folder)
        extracted = describe(server, "packed")["prefix"]
        assert extracted.startswith(str(models.cache))
        assert "instance 'in_folder_0' of model 'in_folder' runs in process" in server.log
        assert re.search(
            r"instance 'in_folder_0' .* with Python 3\.\d+\.\d+ \(/.*/env/bin/python3\), numpy \d", server.log
        )
        assert server.log.count("was extracted in") == 1
        assert server.stop() == 0

    # What was extracted is used again.
    with models.serve("--model-control-mode=explicit", "--load-model=packed") as server:
        assert describe(server, "packed")["prefix"] == extracted
        assert "was extracted in" not in server.log


def test_another_version_of_python_runs_models(models, other_interpreter):
    if other_interpreter is None:
        pytest.skip("there is no CPython of another version here, with or without numpy; MERROW_TEST_PYTHON names one")
    folder = make_environment(models.folder / "env", other_interpreter, packages_of(other_interpreter))
    models.add("own", None)
    models.add("other", folder)
    models.add("interpreter", other_interpreter)
    packed = models.add("packed", "$$TRITON_MODEL_DIRECTORY/env.tar.gz")
    pack(folder, packed / "env.tar.gz")
    with models.serve() as server:
        assert describe(server, "own")["version"] == list(sys.version_info[:2])
        versions = {tuple(describe(server, model)["version"]) for model in ("other", "interpreter", "packed")}
        assert len(versions) == 1
        assert versions != {sys.version_info[:2]}


def test_environments_that_cannot_be_used_fail_the_load_and_say_why(models):
    (models.folder / "empty").mkdir()
    models.add("absent", "/nowhere/env.tar.gz")
    models.add("empty", models.folder / "empty")
    broken = models.add("broken", "$$TRITON_MODEL_DIRECTORY/env.tar.gz")
    with tarfile.open(broken / "env.tar.gz", "w:gz") as tar:
        evil = tarfile.TarInfo("../evil")
        tar.addfile(evil)
    models.add("own", None)
    with models.serve() as server:
        for text in (
            "Failed to get the canonical path for /nowhere/env.tar.gz.",
            f"Path {models.folder}/empty/bin/activate does not exist. The Python environment should contain an "
            "'activate' script.",
            "execution environment '$$TRITON_MODEL_DIRECTORY/env.tar.gz' cannot be extracted: '../evil' leads out of "
            "the archive's folder",
        ):
            assert text in server.log
        assert describe(server, "own")


def write_wheel(path: Path) -> None:
    """A package that needs nothing, as pip takes it."""
    info = "merrow_test_package-1.0.dist-info"
    with zipfile.ZipFile(path, "w") as wheel:
        wheel.writestr("merrow_test_package.py", "ANSWER = 42\n")
        wheel.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: merrow-test-package\nVersion: 1.0\n")
        wheel.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        wheel.writestr(
            f"{info}/RECORD", f"merrow_test_package.py,,\n{info}/METADATA,,\n{info}/WHEEL,,\n{info}/RECORD,,\n"
        )


def test_requirements_are_installed_only_where_the_operator_allows_it(models):
    wheel = "merrow_test_package-1.0-py3-none-any.whl"
    directory = models.add("needy", None, {"requirements.txt": f"--no-index\n./{wheel}\n"})
    write_wheel(directory / wheel)
    with models.serve() as server:
        assert describe(server, "needy")["package"] is None
        server.wait_for_log(
            "model 'needy' has a requirements.txt, which is not installed: "
            "--backend-config=python,install-requirements=true allows it"
        )
        assert not models.cache.exists()

    # What cannot be installed says what pip said.
    models.add("hopeless", None, {"requirements.txt": "--no-index\nmerrow-no-such-package==9\n"})
    with models.serve("--backend-config=python,install-requirements=true") as server:
        assert describe(server, "needy")["package"] == 42
        assert server.log.count("requirements of model 'needy' are in") == 1
        assert "the requirements of model 'hopeless' cannot be installed:" in server.log
        assert "No matching distribution found for merrow-no-such-package==9" in server.log
