"""What the names in a model repository mean."""

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.repository.layout import (
    check_model_name,
    contains_path,
    file_override_path,
    read_version_directories,
)


def test_versions_are_sorted_as_numbers():
    found = read_version_directories(["1", "10", "2", "0"])

    assert found.versions == (0, 1, 2, 10)
    assert found.warnings == ()


def test_reserved_directories_are_no_versions_and_need_no_warning():
    found = read_version_directories(["warmup", "initial_state", "configs", "1"])

    assert (found.versions, found.warnings) == ((1,), ())


@pytest.mark.parametrize("name", ["01", "00", "007", "0x1"])
def test_leading_zeros_are_ignored_with_a_warning(name: str):
    found = read_version_directories([name])

    assert found.versions == ()
    assert found.warnings == (f"ignore version directory '{name}' which contains leading zeros in its directory name",)


@pytest.mark.parametrize("name", ["abc", "3abc", "-5", "+1", " 1", "1 ", "1.0", "²", "٣", "9223372036854775808", "1\n"])
def test_what_is_no_number_is_ignored_with_a_warning(name: str):
    found = read_version_directories([name])

    assert found.versions == ()
    assert found.warnings == (f"ignore version directory '{name}' which fails to convert to integral number",)


def test_the_largest_version():
    assert read_version_directories(["9223372036854775807"]).versions == (2**63 - 1,)


@pytest.mark.parametrize("name", ["m", ".hidden", "a.b", "a b", "模型"])
def test_names_that_stay_in_the_repository(name: str):
    check_model_name(name)


def test_a_name_must_not_be_empty():
    with pytest.raises(InvalidArgumentError) as error:
        check_model_name("")
    assert error.value.message == "Model name cannot be empty. Please enter a valid name to deploy."


@pytest.mark.parametrize("name", ["..", "../m", "a/b", "/", "a\\b", "a..b", "a\0"])
def test_a_name_must_not_be_a_path(name: str):
    with pytest.raises(InvalidArgumentError) as error:
        check_model_name(name)
    assert error.value.message == (
        f"invalid model name '{name}', model name must not contain path traversal characters"
    )


@pytest.mark.parametrize("path", ["a", "a/b", "./a", "a/../b", "a//b", "..a", "a/..b"])
def test_paths_that_stay_inside(path: str):
    assert contains_path(path)


@pytest.mark.parametrize("path", ["..", "../a", "a/../../b", "/a", "..\\a", "a\\..\\..\\b", "a\0"])
def test_paths_that_lead_out(path: str):
    assert not contains_path(path)


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("1/model.py", "1/model.py"),
        ("./1//model.py", "1/model.py"),
        ("a/../1/f", "1/f"),
        ("/1/model.py", "1/model.py"),
    ],
)
def test_where_a_file_of_a_load_request_goes(path: str, expected: str):
    assert file_override_path(path) == expected


@pytest.mark.parametrize(
    ("path", "normalized"), [("../../x", "/x"), ("/../x", "/x"), ("", "/"), ("/", "/"), (".", "/"), ("1/", "/1")]
)
def test_a_file_of_a_load_request_must_stay_in_the_model(path: str, normalized: str):
    with pytest.raises(InvalidArgumentError) as error:
        file_override_path(path)
    assert error.value.message == (
        f"Invalid file parameter 'file:{path}' with normalized path '{normalized}' must stay within model directory."
    )
