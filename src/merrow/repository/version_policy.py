"""Which versions of a model are served: the version policy applied to the versions that exist. Pure.

Source: Triton, model_repository.md and model_configuration.md, "Version Policy".
"""

from collections.abc import Iterable
from dataclasses import dataclass

from merrow.core.errors import InvalidArgumentError
from merrow.core.model_config import ModelVersionPolicy


@dataclass(frozen=True, slots=True)
class VersionSelection:
    """The versions to serve, ascending, and those that the policy names but nobody wrote."""

    versions: tuple[int, ...]
    missing: tuple[int, ...] = ()


def select_versions(policy: ModelVersionPolicy | None, available: Iterable[int]) -> VersionSelection:
    """Apply a policy to the versions in a model's directory.

    A policy that names no choice (`version_policy {}`) is `all`; no policy is `latest { num_versions: 1 }`.
    """
    versions = tuple(sorted(set(available)))
    if policy is None:
        return VersionSelection(versions[-1:])
    if policy.specific is not None:
        wanted = sorted(set(policy.specific.versions))
        return VersionSelection(
            tuple(version for version in wanted if version in versions),
            tuple(version for version in wanted if version not in versions),
        )
    if policy.latest is not None:
        count = policy.latest.num_versions
        return VersionSelection(versions[-count:] if count else ())
    return VersionSelection(versions)


def missing_version_warning(model_name: str, version: int) -> str:
    """What the log says of a version that the policy names and the directory lacks."""
    return f"version {version} is specified for model '{model_name}', but the version directory is not present"


def no_version_error(model_name: str) -> InvalidArgumentError:
    """Why a model cannot be loaded whose policy selects nothing."""
    return InvalidArgumentError(
        f"at least one version must be available under the version policy of model '{model_name}'"
    )
