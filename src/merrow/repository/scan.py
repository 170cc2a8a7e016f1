"""What is on the disk: the only module that opens a repository's files.

Every function blocks, so none is called on the loop's thread. What they return is values, which the rest of the package
decides on.
"""

import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from merrow.core.errors import InternalError, UnsupportedError
from merrow.core.model_config import ModelConfig
from merrow.repository import layout

_ENSEMBLE = re.compile(rb"platform\s*:\s*[\x22']ensemble[\x22']")
_BLOCK_BYTE_SIZE = 1024 * 1024
_BYTECODE_DIRECTORY = "__pycache__"


class RepositoryError(Exception):
    """A repository's path cannot be used at all; the server does not start."""


@dataclass(frozen=True, slots=True)
class ModelLocation:
    """A model's directory, found in a repository but not looked into.

    `is_renamed`: the name is not that of the directory, and counts more than the one in its configuration.
    """

    name: str
    directory: str
    repository: str
    is_renamed: bool = False


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """What a model's directory holds.

    `config_path` is the file that was, or would have been, its configuration; `config_text` None when there is none.
    `subdirectories` are sorted. `first_entries` are the entries of the first of them, each with whether it is a
    directory: by these the backend is guessed. `modification_times` are nanoseconds, by path relative to the directory.
    """

    name: str
    directory: str
    repository: str = ""
    config_path: str = ""
    config_text: bytes | None = None
    subdirectories: tuple[str, ...] = ()
    first_entries: Mapping[str, bool] = field(default_factory=dict)
    modification_times: Mapping[str, int] = field(default_factory=dict)
    is_renamed: bool = False


def list_models(repositories: Iterable[str]) -> list[ModelLocation]:
    """Every model directory of the repositories, sorted by name; a name may occur once in each.

    Raises:
        RepositoryError: a path is not a directory, or cannot be read.
    """
    locations: list[ModelLocation] = []
    for repository in repositories:
        if not os.path.isdir(repository):
            raise RepositoryError(f"repository path is not a valid directory: '{repository}'")
        try:
            names = _subdirectories(repository)
        except OSError as error:
            raise RepositoryError(f"failed to open directory {repository}: {error.strerror}") from None
        locations.extend(ModelLocation(name, os.path.join(repository, name), repository) for name in names)
    return sorted(locations, key=lambda location: location.name)


def find_model(repositories: Iterable[str], name: str) -> list[ModelLocation]:
    """The directories of one model; more than one when several repositories have it. `name` has been checked."""
    return [
        ModelLocation(name, directory, repository)
        for repository in repositories
        if os.path.isdir(directory := os.path.join(repository, name))
    ]


def list_container_models(directory: str, name: str) -> list[ModelLocation]:
    """The models of a container's directory, first the one that is served, which gets this name.

    The directory is a model's own, or has a directory for each of several models: then an ensemble is the one that is
    served, or else the first, and the others keep the names of their directories.

    Raises:
        RepositoryError: there is no such directory.
    """
    try:
        subdirectories = _subdirectories(directory)
    except OSError:
        raise RepositoryError(f"failed to register '{directory}', repository not found") from None
    configs = {
        subdirectory: _read_if_present(os.path.join(directory, subdirectory, layout.CONFIG_FILE))
        for subdirectory in sorted(subdirectories)
    }
    models = [subdirectory for subdirectory, config in configs.items() if config is not None]
    if not models:
        return [ModelLocation(name, directory, directory, is_renamed=True)]
    served = next((model for model in models if _ENSEMBLE.search(configs[model] or b"")), models[0])
    return [
        ModelLocation(name if model == served else model, os.path.join(directory, model), directory, model == served)
        for model in sorted(models, key=lambda model: model != served)
    ]


def scan_model(location: ModelLocation, config_name: str = "") -> ModelDirectory:
    """Read what a model's directory says of itself.

    Args:
        config_name: `--model-config-name`: `configs/<config_name>.pbtxt` replaces config.pbtxt where it exists.

    Raises:
        InternalError: the directory cannot be read.
    """
    directory = location.directory
    try:
        subdirectories = _subdirectories(directory)
        first_entries = {}
        if subdirectories:
            with os.scandir(os.path.join(directory, subdirectories[0])) as entries:
                first_entries = {entry.name: entry.is_dir() for entry in entries}
        config_path = os.path.join(directory, layout.CONFIG_FILE)
        if config_name:
            alternative = os.path.join(directory, layout.CONFIGS_DIRECTORY, f"{config_name}.pbtxt")
            if os.path.isfile(alternative):
                config_path = alternative
        return ModelDirectory(
            name=location.name,
            directory=directory,
            repository=location.repository,
            config_path=config_path,
            config_text=_read_if_present(config_path),
            subdirectories=tuple(subdirectories),
            first_entries=first_entries,
            modification_times=read_modification_times(directory),
            is_renamed=location.is_renamed,
        )
    except OSError as error:
        raise InternalError(f"failed to read {error.filename}: {error.strerror}") from None


def read_modification_times(directory: str) -> dict[str, int]:
    """When everything below last changed, and the directory itself (""): the later of mtime and ctime, nanoseconds.

    What Python leaves in `__pycache__` when a model is loaded is no change of the model: neither it nor the time of the
    directory that it is in counts (0).
    """
    status = os.stat(directory)
    times = {"": _modification_time(status)}
    # Of a link: what it leads to now may be older than what it led to before.
    link_times: dict[str, int] = {}
    # Links are followed, as version directories often are links; a directory seen before is not entered again.
    entered = {(status.st_dev, status.st_ino)}
    pending = [""]
    while pending:
        parent = pending.pop()
        with os.scandir(os.path.join(directory, parent)) as entries:
            for entry in entries:
                if entry.name == _BYTECODE_DIRECTORY:
                    times[parent] = link_times.get(parent, 0)
                    continue
                path = os.path.join(parent, entry.name)
                try:
                    status = entry.stat()
                    times[path] = _modification_time(status)
                    if entry.is_symlink():
                        link_times[path] = _modification_time(entry.stat(follow_symlinks=False))
                        times[path] = max(times[path], link_times[path])
                except OSError:
                    # A dangling link, or a file that left meanwhile: no time, so a change once it is there.
                    continue
                if stat.S_ISDIR(status.st_mode) and (status.st_dev, status.st_ino) not in entered:
                    entered.add((status.st_dev, status.st_ino))
                    pending.append(path)
    return times


def read_labels(directory: str, config: ModelConfig) -> dict[str, tuple[str, ...]]:
    """The class names of each output that has a label file: one a line.

    Raises:
        UnsupportedError: a label file lies outside the model's directory.
        InternalError: a label file cannot be read.
    """
    labels: dict[str, tuple[str, ...]] = {}
    for output in config.output:
        if not output.label_filename:
            continue
        path = os.path.join(directory, output.label_filename)
        if not layout.contains_path(output.label_filename):
            raise UnsupportedError(
                f"label file path '{path}' for output '{output.name}' in model '{config.name}' is outside model "
                "directory"
            )
        lines = _read_file(path).decode("utf-8", errors="replace").split("\n")
        # The end of the last line is not the start of another.
        labels[output.name] = tuple(lines[:-1] if lines[-1] == "" else lines)
    return labels


def read_warmup_file(directory: str, name: str) -> bytes:
    """A file of a model's `warmup` directory.

    Raises:
        UnsupportedError: it lies outside.
        InternalError: it cannot be read.
    """
    path = os.path.join(directory, layout.WARMUP_DIRECTORY, name)
    if not layout.contains_path(name):
        raise UnsupportedError(f"warmup file path '{path}' is outside the model's warmup directory")
    return _read_file(path)


def read_files(directory: str) -> Iterator[tuple[str, bytes]]:
    """Every file below a directory, by relative path, in order.

    Raises:
        InternalError: one cannot be read.
    """
    paths = [
        os.path.relpath(os.path.join(folder, name), directory)
        for folder, _, names in os.walk(directory)
        for name in names
        if not name.endswith(".pyc")
    ]
    for path in sorted(paths):
        yield path, _read_file(os.path.join(directory, path))


def read_initial_state_file(directory: str, name: str) -> bytes:
    """A file of a model's `initial_state` directory.

    Raises:
        UnsupportedError: it lies outside.
        InternalError: it cannot be read.
    """
    path = os.path.join(directory, layout.INITIAL_STATE_DIRECTORY, name)
    if not layout.contains_path(name):
        raise UnsupportedError(f"initial state file path '{path}' is outside the model's initial_state directory")
    return _read_file(path)


def digest_of_file(directory: str, hash_name: str, path: str) -> str:
    """The digest, in hexadecimal, of a file of a model; `path` is relative to `directory`, and has been checked.

    Raises:
        InternalError: it cannot be read.
    """
    full_path = os.path.join(directory, path)
    digest = hashlib.new(hash_name.lower(), usedforsecurity=False)
    try:
        with open(full_path, "rb") as file:
            while block := file.read(_BLOCK_BYTE_SIZE):
                digest.update(block)
    except OSError as error:
        raise InternalError(f"failed to open file for read {full_path}: {error.strerror}") from None
    return digest.hexdigest()


def write_file_overrides(files: Mapping[str, bytes]) -> str:
    """Make a model directory of the files that a load request brings, by their paths in it.

    Returns:
        A new temporary directory; `remove_temporary_directory` must be called once the model is unloaded.

    Raises:
        InvalidArgumentError: a path lies outside the directory; nothing has been written.
        InternalError: the files cannot be written.
    """
    contents = {layout.file_override_path(path): content for path, content in files.items()}
    directory = tempfile.mkdtemp(prefix="merrow-model-")
    try:
        for relative, content in contents.items():
            path = os.path.join(directory, *relative.split("/"))
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with open(path, "wb") as file:
                file.write(content)
    except OSError as error:
        remove_temporary_directory(directory)
        raise InternalError(f"failed to write {error.filename}: {error.strerror}") from None
    return directory


def remove_temporary_directory(directory: str) -> None:
    """Remove a directory that was made for one model."""
    shutil.rmtree(directory, ignore_errors=True)


def _subdirectories(directory: str) -> list[str]:
    with os.scandir(directory) as entries:
        return sorted(entry.name for entry in entries if entry.is_dir())


def _read_file(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError as error:
        raise InternalError(f"failed to open text file for read {path}: {error.strerror}") from None


def _read_if_present(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return None


def _modification_time(status: os.stat_result) -> int:
    return max(status.st_mtime_ns, status.st_ctime_ns)
