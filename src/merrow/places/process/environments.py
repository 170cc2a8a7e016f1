"""Which fork server a model's processes come from: the server's own, or one for each execution environment.

Models of one environment share a fork server, so that only the first of them waits for its imports. A fork server of an
environment that no process has needed for `LINGER_NS` ends.

A model whose folder has a `requirements.txt` gets, where the operator allows it, an environment made for it: a virtual
environment that sees what its base has (`EXECUTION_ENV_PATH`, or the server's own packages) and in which pip installed
what the file asks for. It is kept, and used again by every model with the same file and base.
"""

import hashlib
import logging
import os
import platform
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np

from merrow.backends.base import ModelContext
from merrow.core.errors import InternalError
from merrow.core.model_config import ENVIRONMENT_PARAMETER
from merrow.places.process.archive import ArchiveError, extract_archive, is_archive
from merrow.places.process.environment import (
    ExecutionEnvironment,
    expand_path,
    probe_folder,
    probe_interpreter,
)
from merrow.places.process.environment_cache import EnvironmentCache
from merrow.places.process.fork_client import ForkClient
from merrow.settings import ProcessSettings

_LOG = logging.getLogger("merrow.places")

LINGER_NS = 30_000_000_000

REQUIREMENTS_FILE = "requirements.txt"


class Environments:
    """Owns the fork servers. Methods block, and may be called on any thread but the loop's."""

    def __init__(self, backend_factory: str, settings: ProcessSettings) -> None:
        self._backend_factory = backend_factory
        self._settings = settings
        self._cache = EnvironmentCache(settings.environment_cache_directory)
        self._own = ForkClient(backend_factory, settings)
        self._own_text = f"Python {platform.python_version()} ({sys.executable}), numpy {np.__version__}"
        # By what makes them: paths and the times of their last change.
        self._environments: dict[str, ExecutionEnvironment] = {}
        # By interpreter and versions.
        self._clients: dict[str, ForkClient] = {}
        # Models about whose requirements the log has been told.
        self._uninstalled: set[str] = set()
        # One thread at a time finds or makes an environment; others find theirs meanwhile.
        self._locks: dict[str, threading.Lock] = {}
        self._lock = threading.Lock()
        self._is_closed = False

    def client_of(self, context: ModelContext) -> tuple[ForkClient, str]:
        """The fork server for a model's processes, and what runs there, in words.

        Raises:
            InternalError: the model's environment is not there, cannot be made or cannot run models.
            OSError: its fork server cannot be started.
        """
        parameter = context.config.parameters.get(ENVIRONMENT_PARAMETER)
        wanted = parameter.string_value if parameter is not None else ""
        requirements = self._requirements_of(context)
        if not wanted and requirements is None:
            return self._own, self._own_text
        path = expand_path(wanted, context.model_directory) if wanted else ""
        key = "\0".join([path, _state_of(path) if path else "", requirements or ""])
        with self._lock:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            environment = self._environments.get(key)
            if environment is None:
                environment = self._find(path, wanted) if path else None
                if requirements is not None:
                    environment = self._install(context.name, requirements, environment)
                assert environment is not None
                self._environments[key] = environment
        text = str(environment)
        with self._lock:
            client = self._clients.get(text)
            if client is None:
                if self._is_closed:
                    raise OSError("the server is stopping")
                client = ForkClient(self._backend_factory, self._settings, environment)
                self._clients[text] = client
            client.used_ns = time.monotonic_ns()
        return client, text

    def close_idle(self) -> bool:
        """End the fork servers that nobody needs any more; returns whether any may still become idle."""
        now_ns = time.monotonic_ns()
        idle: list[ForkClient] = []
        with self._lock:
            for key, client in list(self._clients.items()):
                if not client.has_children and now_ns - client.used_ns >= LINGER_NS:
                    idle.append(self._clients.pop(key))
            has_more = bool(self._clients)
        for client in idle:
            client.close()
        return has_more

    def close(self) -> None:
        """End every fork server, and everything below them."""
        with self._lock:
            self._is_closed = True
            clients = [self._own, *self._clients.values()]
            self._clients.clear()
        for client in clients:
            client.close()
        self._cache.close()

    def _find(self, path: str, origin: str) -> ExecutionEnvironment:
        """What a path that exists names."""
        if os.path.isdir(path):
            return probe_folder(path, origin)
        try:
            is_packed = is_archive(path)
        except OSError as error:
            raise InternalError(f"execution environment '{origin}' cannot be read: {error}") from None
        if not is_packed:
            return probe_interpreter(path, origin)

        def extract(folder: str) -> None:
            start_ns = time.monotonic_ns()
            extract_archive(path, folder, self._settings.environment_max_byte_size)
            seconds = (time.monotonic_ns() - start_ns) / 1e9
            _LOG.info("execution environment '%s' was extracted in %.1f s", origin, seconds)

        try:
            folder = self._cache.get(f"archive-{_digest(path)}", _digest(_state_of(path)), extract)
        except (ArchiveError, OSError) as error:
            raise InternalError(f"execution environment '{origin}' cannot be extracted: {error}") from None
        return probe_folder(_top_folder(folder), origin)

    def _requirements_of(self, context: ModelContext) -> str | None:
        """The content of the model's requirements file, if it is to be installed."""
        path = Path(context.model_directory, REQUIREMENTS_FILE)
        if not path.is_file():
            return None
        if not self._settings.installs_requirements:
            with self._lock:
                is_known = context.model_directory in self._uninstalled
                self._uninstalled.add(context.model_directory)
            if is_known:
                return None
            _LOG.warning(
                "model '%s' has a %s, which is not installed: --backend-config=python,install-requirements=true "
                "allows it",
                context.name,
                REQUIREMENTS_FILE,
            )
            return None
        try:
            return f"{context.model_directory}\n{path.read_text()}"
        except (OSError, UnicodeDecodeError) as error:
            raise InternalError(f"cannot read {path}: {error}") from None

    def _install(self, model_name: str, requirements: str, base: ExecutionEnvironment | None) -> ExecutionEnvironment:
        if base is None:
            base = probe_interpreter(sys.executable, sys.executable)
        directory, _, text = requirements.partition("\n")

        def make(folder: str) -> None:
            self._make_virtual_environment(folder, directory, base)

        # Relative paths in the file are of the model's directory, which therefore counts only where there may be some.
        place = directory if any(mark in text for mark in ("/", "\\", "-r", "-c", "-e")) else ""
        group = f"requirements-{_digest(base.interpreter)}-{_digest(place)}"
        state = _digest("\0".join([base.python_version, *base.package_directories, text]))
        start_ns = time.monotonic_ns()
        try:
            folder = self._cache.get(group, state, make)
        except OSError as error:
            raise InternalError(f"the requirements of model '{model_name}' cannot be installed: {error}") from None
        except subprocess.TimeoutExpired:
            raise InternalError(
                f"the requirements of model '{model_name}' were not installed within "
                f"{self._settings.requirements_timeout_seconds} s "
                "(--backend-config=python,requirements-timeout-seconds)"
            ) from None
        except subprocess.CalledProcessError as error:
            said = error.output.decode(errors="replace").strip()[-2000:]
            raise InternalError(f"the requirements of model '{model_name}' cannot be installed:\n{said}") from None
        _LOG.info(
            "requirements of model '%s' are in %s (%.1f s)", model_name, folder, (time.monotonic_ns() - start_ns) / 1e9
        )
        return probe_folder(folder, os.path.join(directory, REQUIREMENTS_FILE))

    def _make_virtual_environment(self, folder: str, directory: str, base: ExecutionEnvironment) -> None:
        deadline_ns = time.monotonic_ns() + self._settings.requirements_timeout_seconds * 10**9

        def run(*command: str) -> None:
            subprocess.run(
                command,
                env=dict(base.variables),
                cwd=directory,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                timeout=max(0.0, (deadline_ns - time.monotonic_ns()) / 1e9),
                check=True,
            )

        run(base.interpreter, "-m", "venv", "--without-pip", folder)
        python = os.path.join(folder, "bin", "python")
        # Packages of the base are seen behind those of the environment, and pip takes them for installed. Among them
        # is, as a rule, pip itself.
        (packages,) = Path(folder, "lib").glob("python*/site-packages")
        packages.joinpath("merrow-base.pth").write_text("\n".join(base.package_directories) + "\n")
        try:
            run(python, "-c", "import pip")
        except subprocess.CalledProcessError:
            run(python, "-m", "ensurepip")
        # The file where it is: others that it names are relative to it.
        file = os.path.join(directory, REQUIREMENTS_FILE)
        run(python, "-m", "pip", "install", "--no-input", "--disable-pip-version-check", "-r", file, "numpy")


def _state_of(path: str) -> str:
    status = os.stat(path)
    return f"{status.st_mtime_ns} {status.st_size}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode(errors="surrogateescape")).hexdigest()[:16]


def _top_folder(folder: str) -> str:
    """Where an archive has its environment: at its top, or in the one folder that is there."""
    entries = os.listdir(folder)
    if "bin" not in entries and len(entries) == 1 and os.path.isdir(os.path.join(folder, entries[0], "bin")):
        return os.path.join(folder, entries[0])
    return folder
