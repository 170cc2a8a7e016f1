"""The shape of a model repository: which names in it mean what. Pure; nothing here looks at a disk.

    <repository>/<model>/config.pbtxt             the configuration (may be missing)
    <repository>/<model>/configs/<name>.pbtxt     alternatives to it, chosen by `--model-config-name`
    <repository>/<model>/<version>/<model file>   a version: a directory whose name is a number
    <repository>/<model>/warmup, initial_state    data files that the configuration refers to
    <repository>/<model>/<label file>             named by an output's `label_filename`

Every directory directly inside a repository is a model, hidden ones included.

Source: Triton, model_repository.md; core/src/model_repository_manager, filesystem/api.cc.
"""

import posixpath
import re
from collections.abc import Iterable
from dataclasses import dataclass

from merrow.core.errors import InvalidArgumentError

CONFIG_FILE = "config.pbtxt"
CONFIGS_DIRECTORY = "configs"
WARMUP_DIRECTORY = "warmup"
INITIAL_STATE_DIRECTORY = "initial_state"

# Directories of a model that are not versions, and not worth a warning.
RESERVED_DIRECTORIES = frozenset({CONFIGS_DIRECTORY, WARMUP_DIRECTORY, INITIAL_STATE_DIRECTORY})

LARGEST_VERSION = 2**63 - 1

_VERSION = re.compile(r"0|[1-9][0-9]*", re.ASCII)


@dataclass(frozen=True, slots=True, order=True)
class ModelId:
    """Which model: its name and, with `--model-namespacing`, the repository that it is from (otherwise "")."""

    namespace: str
    name: str

    def __str__(self) -> str:
        return f"{self.namespace}::{self.name}" if self.namespace else self.name


@dataclass(frozen=True, slots=True)
class VersionDirectories:
    """The versions of a model, ascending, and a warning for each directory that looks like none."""

    versions: tuple[int, ...]
    warnings: tuple[str, ...]


def read_version_directories(names: Iterable[str]) -> VersionDirectories:
    """Tell the versions among the names of a model's subdirectories.

    Stricter than Triton, which takes `3abc` for a second version 3, and cannot start with `-5`: here neither is one.
    """
    versions: list[int] = []
    warnings: list[str] = []
    for name in sorted(names):
        if name in RESERVED_DIRECTORIES:
            continue
        if _VERSION.fullmatch(name) and int(name) <= LARGEST_VERSION:
            versions.append(int(name))
        elif len(name) > 1 and name.startswith("0"):
            warnings.append(f"ignore version directory '{name}' which contains leading zeros in its directory name")
        else:
            warnings.append(f"ignore version directory '{name}' which fails to convert to integral number")
    return VersionDirectories(tuple(sorted(versions)), tuple(warnings))


def check_model_name(name: str) -> None:
    """Check the name in a load request, before it becomes part of a path.

    Raises:
        InvalidArgumentError: it is empty, or would leave the repository.
    """
    if not name:
        raise InvalidArgumentError("Model name cannot be empty. Please enter a valid name to deploy.")
    if ".." in name or "/" in name or "\\" in name or "\0" in name:
        raise InvalidArgumentError(
            f"invalid model name '{name}', model name must not contain path traversal characters"
        )


def contains_path(relative: str) -> bool:
    """Whether a path relative to a directory stays inside it, judged by its text alone."""
    normalized = posixpath.normpath(relative.replace("\\", "/"))
    return not (normalized.startswith(("/", "../")) or normalized == "..") and "\0" not in relative


def file_override_path(path: str) -> str:
    """Where a file that comes with a load request (parameter `file:<path>`) goes, relative to the model's directory.

    A path that begins with a slash begins in that directory, as in Triton.

    Raises:
        InvalidArgumentError: that would lie outside, or is no file's name.
    """
    normalized = posixpath.normpath(posixpath.join("/", path.replace("\\", "/")))
    if not contains_path(path.lstrip("/\\")) or normalized == "/" or path.endswith("/"):
        raise InvalidArgumentError(
            f"Invalid file parameter 'file:{path}' with normalized path '{normalized}' must stay within model "
            "directory."
        )
    return normalized.lstrip("/")
