import sys
from dataclasses import replace

import pytest

from merrow.backends.python.model_module import find_model, import_model, model_path
from merrow.core.errors import InternalError
from tests.backends.python.model_files import CONFIG, make_context, write_model


@pytest.fixture(autouse=True)
def clean_imports():
    modules, path = set(sys.modules), list(sys.path)
    yield
    for name in set(sys.modules) - modules:
        del sys.modules[name]
    sys.path[:] = path


def load(directory):
    context = make_context(directory)
    module, _ = import_model(find_model(context), context)
    return module


def test_the_module_is_in_the_package_of_its_version(tmp_path):
    write_model(tmp_path, "from . import sibling\nvalue = (__name__, __package__, sibling.name)")
    write_model(tmp_path, "name = __name__", "sibling.py")

    assert load(tmp_path).value == ("1.model", "1", "1.sibling")


def test_the_directories_of_version_and_model_are_searched_last(tmp_path):
    write_model(tmp_path, "import merrow_test_of_version, merrow_test_of_model, json\nwhere = json.__file__")
    (tmp_path / "1" / "merrow_test_of_version.py").touch()
    (tmp_path / "1" / "json.py").touch()
    (tmp_path / "merrow_test_of_model.py").touch()

    assert "merrow" not in load(tmp_path).where
    assert sys.path[-2:] == [str(tmp_path / "1"), str(tmp_path)]


def test_an_init_file_of_the_version_is_run_first(tmp_path):
    write_model(tmp_path, "from . import value as seen")
    write_model(tmp_path, "value = 7", "__init__.py")

    assert load(tmp_path).seen == 7


def test_pb_utils_can_be_used_while_the_module_is_imported(tmp_path):
    write_model(
        tmp_path,
        """
        import triton_python_backend_utils as pb_utils

        def function(response: pb_utils.InferenceResponse) -> None: ...

        directory = pb_utils.get_model_dir()
        """,
    )

    assert load(tmp_path).directory == str(tmp_path / "1")


def test_two_models_in_one_process_do_not_see_each_other(tmp_path):
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        write_model(tmp_path / name, f"import triton_python_backend_utils as pb\nname = '{name}'\nd = pb.get_model_dir")
    first, second = load(tmp_path / "a"), load(tmp_path / "b")

    assert (first.name, second.name) == ("a", "b")
    assert (first.d(), second.d()) == (str(tmp_path / "a" / "1"), str(tmp_path / "b" / "1"))


def test_a_file_is_imported_anew_each_time(tmp_path):
    write_model(tmp_path, "value = object()")

    assert load(tmp_path).value is not load(tmp_path).value


def test_the_file_may_have_another_name(tmp_path):
    write_model(tmp_path, "value = __name__", "other.py")
    context = make_context(tmp_path, replace(CONFIG, default_model_filename="other.py"))

    assert import_model(find_model(context), context)[0].value == "1.other"


def test_the_file_may_be_in_a_folder_of_the_versions(tmp_path):
    (tmp_path / "1" / "sub").mkdir(parents=True)
    write_model(tmp_path, "value = __name__", "sub/other.py")
    context = make_context(tmp_path, replace(CONFIG, default_model_filename="sub/other.py"))

    assert import_model(find_model(context), context)[0].value == "1.sub.other"


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(InternalError) as caught:
        find_model(make_context(tmp_path))

    assert caught.value.message == f"Python model file not found in '{tmp_path}/1/model.py'"


def test_the_files_name_must_end_in_py(tmp_path):
    with pytest.raises(InternalError) as caught:
        model_path(make_context(tmp_path, replace(CONFIG, default_model_filename="model.txt")))

    assert caught.value.message == "Model name must end with '.py'. Model name is \"model.txt\"."
