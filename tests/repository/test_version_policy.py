"""Which of the versions on disk are served."""

import pytest

from merrow.core.model_config import (
    ModelVersionPolicy,
    ModelVersionPolicyAll,
    ModelVersionPolicyLatest,
    ModelVersionPolicySpecific,
)
from merrow.repository.version_policy import (
    VersionSelection,
    missing_version_warning,
    no_version_error,
    select_versions,
)


def _latest(count: int) -> ModelVersionPolicy:
    return ModelVersionPolicy(latest=ModelVersionPolicyLatest(count))


def _specific(*versions: int) -> ModelVersionPolicy:
    return ModelVersionPolicy(specific=ModelVersionPolicySpecific(versions))


@pytest.mark.parametrize(
    ("policy", "selected"),
    [
        (None, (10,)),
        (_latest(1), (10,)),
        (_latest(2), (3, 10)),
        (_latest(9), (1, 3, 10)),
        (_latest(0), ()),
        (ModelVersionPolicy(all=ModelVersionPolicyAll()), (1, 3, 10)),
        (ModelVersionPolicy(), (1, 3, 10)),
        (_specific(10, 1, 1), (1, 10)),
        (_specific(), ()),
    ],
)
def test_a_policy_selects_among_the_versions_there_are(policy: ModelVersionPolicy | None, selected: tuple[int, ...]):
    assert select_versions(policy, [10, 1, 3]) == VersionSelection(selected)


def test_versions_that_are_asked_for_and_are_not_there():
    assert select_versions(_specific(9, 1, 2), [1]) == VersionSelection((1,), missing=(2, 9))
    assert missing_version_warning("m", 9) == (
        "version 9 is specified for model 'm', but the version directory is not present"
    )


def test_no_versions_at_all():
    assert select_versions(None, []) == VersionSelection(())
    assert no_version_error("m").describe() == (
        "Invalid argument: at least one version must be available under the version policy of model 'm'"
    )
