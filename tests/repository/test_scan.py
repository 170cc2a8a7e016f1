"""What is read of a disk. Everything here happens in a directory of the test's own."""

import os
from pathlib import Path

import pytest

from merrow.core.errors import InternalError, InvalidArgumentError, UnsupportedError
from merrow.core.model_config import ModelConfig, ModelOutput
from merrow.repository.scan import (
    ModelLocation,
    RepositoryError,
    find_model,
    list_container_models,
    list_models,
    read_labels,
    read_modification_times,
    read_warmup_file,
    remove_temporary_directory,
    scan_model,
    write_file_overrides,
)


def _write(path: Path, content: bytes = b"") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def test_every_directory_of_a_repository_is_a_model(tmp_path: Path):
    first, second = tmp_path / "first", tmp_path / "second"
    for directory in (first / "b", first / ".hidden", second / "a", second / "b"):
        directory.mkdir(parents=True)
    _write(first / "README.md")

    locations = list_models([str(first), str(second)])

    assert locations == [
        ModelLocation(".hidden", str(first / ".hidden"), str(first)),
        ModelLocation("a", str(second / "a"), str(second)),
        ModelLocation("b", str(first / "b"), str(first)),
        ModelLocation("b", str(second / "b"), str(second)),
    ]
    assert [location.directory for location in find_model([str(first), str(second)], "b")] == [
        str(first / "b"),
        str(second / "b"),
    ]
    assert find_model([str(first)], "nosuch") == []


@pytest.mark.parametrize("name", ["nosuch", "file"])
def test_a_repository_must_be_a_directory(tmp_path: Path, name: str):
    _write(tmp_path / "file")

    with pytest.raises(RepositoryError) as error:
        list_models([str(tmp_path / name)])
    assert str(error.value) == f"repository path is not a valid directory: '{tmp_path / name}'"


def test_what_a_models_directory_holds(tmp_path: Path):
    _write(tmp_path / "m" / "config.pbtxt", b'backend: "python"')
    _write(tmp_path / "m" / "labels.txt")
    _write(tmp_path / "m" / "2" / "model.onnx")
    _write(tmp_path / "m" / "1" / "model.py")
    (tmp_path / "m" / "1" / "data").mkdir()

    found = scan_model(ModelLocation("m", str(tmp_path / "m"), str(tmp_path)))

    assert (found.name, found.directory, found.repository) == ("m", str(tmp_path / "m"), str(tmp_path))
    assert found.config_path == str(tmp_path / "m" / "config.pbtxt")
    assert found.config_text == b'backend: "python"'
    assert found.subdirectories == ("1", "2")
    assert found.first_entries == {"model.py": False, "data": True}
    assert set(found.modification_times) == {
        "", "config.pbtxt", "labels.txt", "1", "1/model.py", "1/data", "2", "2/model.onnx",
    }  # fmt: skip


def test_an_empty_directory_is_a_model_without_anything(tmp_path: Path):
    found = scan_model(ModelLocation("m", str(tmp_path), ""))

    assert (found.config_text, found.subdirectories, found.first_entries) == (None, (), {})


def test_another_configuration_by_its_name(tmp_path: Path):
    _write(tmp_path / "config.pbtxt", b"# default")
    _write(tmp_path / "configs" / "gpu.pbtxt", b"# gpu")
    location = ModelLocation("m", str(tmp_path), "")

    assert scan_model(location, "gpu").config_text == b"# gpu"
    assert scan_model(location, "gpu").config_path == str(tmp_path / "configs" / "gpu.pbtxt")
    assert scan_model(location, "nosuch").config_text == b"# default"
    assert scan_model(location).config_text == b"# default"


def test_a_model_that_left_meanwhile(tmp_path: Path):
    with pytest.raises(InternalError) as error:
        scan_model(ModelLocation("m", str(tmp_path / "m"), ""))
    assert error.value.message == f"failed to read {tmp_path / 'm'}: No such file or directory"


def test_a_configuration_that_is_no_file(tmp_path: Path):
    (tmp_path / "config.pbtxt").mkdir()

    with pytest.raises(InternalError) as error:
        scan_model(ModelLocation("m", str(tmp_path), ""))
    assert error.value.message == f"failed to read {tmp_path / 'config.pbtxt'}: Is a directory"


def test_times_are_the_later_of_content_and_status(tmp_path: Path):
    file = _write(tmp_path / "1" / "model.py")
    os.utime(file, ns=(0, 5))
    times = read_modification_times(str(tmp_path))

    # Set back by hand, its status changed now.
    assert times["1/model.py"] == file.stat().st_ctime_ns
    os.utime(file, ns=(0, 2**62))
    assert read_modification_times(str(tmp_path))["1/model.py"] == 2**62


def test_links_are_followed_once_and_dangling_ones_left_out(tmp_path: Path):
    _write(tmp_path / "real" / "model.py")
    (tmp_path / "m" / "1").mkdir(parents=True)
    (tmp_path / "m" / "2").symlink_to(tmp_path / "real")
    (tmp_path / "m" / "1" / "loop").symlink_to(tmp_path / "m")
    (tmp_path / "m" / "gone").symlink_to(tmp_path / "nosuch")

    assert set(read_modification_times(str(tmp_path / "m"))) == {"", "1", "1/loop", "2", "2/model.py"}


def test_what_python_leaves_of_an_import_is_no_change(tmp_path: Path):
    _write(tmp_path / "1" / "model.py")
    loaded = read_modification_times(str(tmp_path))
    _write(tmp_path / "1" / "__pycache__" / "model.cpython-311.pyc")
    _write(tmp_path / "__pycache__" / "shared.cpython-311.pyc")
    found = read_modification_times(str(tmp_path))

    assert found == {**loaded, "": 0, "1": 0}


@pytest.mark.parametrize("has_bytecode", [False, True])
def test_a_link_that_leads_elsewhere_is_newer_whatever_it_leads_to(tmp_path: Path, has_bytecode: bool):
    for target in ("old", "new"):
        _write(tmp_path / target / "model.py")
        if has_bytecode:
            _write(tmp_path / target / "__pycache__" / "model.cpython-311.pyc")
    (tmp_path / "m").mkdir()
    link = tmp_path / "m" / "1"
    link.symlink_to(tmp_path / "new")
    before = read_modification_times(str(tmp_path / "m"))["1"]
    # Another link in its place, made later by the clock of the file system.
    while True:
        link.unlink()
        link.symlink_to(tmp_path / "old")
        if link.lstat().st_ctime_ns > before:
            break

    assert read_modification_times(str(tmp_path / "m"))["1"] > before


def _with_labels(file_name: str) -> ModelConfig:
    return ModelConfig(name="m", output=(ModelOutput("PLAIN"), ModelOutput("OUT", label_filename=file_name)))


@pytest.mark.parametrize(
    ("content", "labels"),
    [
        (b"a\nb\n\nd", ("a", "b", "", "d")),
        (b"a\nb\n", ("a", "b")),
        (b"a\n\n", ("a", "")),
        (b"", ()),
        (b"\n", ("",)),
        (b"a\r\nb", ("a\r", "b")),
        ("é\n".encode(), ("é",)),
        (b"\xff", ("\ufffd",)),
    ],
)
def test_labels_are_lines(tmp_path: Path, content: bytes, labels: tuple[str, ...]):
    _write(tmp_path / "labels.txt", content)

    assert read_labels(str(tmp_path), _with_labels("labels.txt")) == {"OUT": labels}


@pytest.mark.parametrize(("name", "problem"), [("nosuch", "No such file or directory"), ("1", "Is a directory")])
def test_labels_that_cannot_be_read(tmp_path: Path, name: str, problem: str):
    (tmp_path / "1").mkdir()

    with pytest.raises(InternalError) as error:
        read_labels(str(tmp_path), _with_labels(name))
    assert error.value.message == f"failed to open text file for read {tmp_path}/{name}: {problem}"


def test_labels_outside_the_model(tmp_path: Path):
    with pytest.raises(UnsupportedError) as error:
        read_labels(str(tmp_path), _with_labels("../labels.txt"))
    assert error.value.message == (
        f"label file path '{tmp_path}/../labels.txt' for output 'OUT' in model 'm' is outside model directory"
    )


def test_warmup_files(tmp_path: Path):
    _write(tmp_path / "warmup" / "data", b"abc")

    assert read_warmup_file(str(tmp_path), "data") == b"abc"
    with pytest.raises(InternalError) as error:
        read_warmup_file(str(tmp_path), "nosuch")
    assert (
        error.value.message == f"failed to open text file for read {tmp_path}/warmup/nosuch: No such file or directory"
    )
    with pytest.raises(UnsupportedError, match="is outside the model's warmup directory"):
        read_warmup_file(str(tmp_path), "../config.pbtxt")


def test_files_of_a_load_request_become_a_directory():
    directory = write_file_overrides({"1/model.py": b"a", "labels.txt": b"b", "1/sub/x": b"c"})
    try:
        found = {str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*.*")}
        assert found == {"1/model.py": b"a", "labels.txt": b"b"}
        assert (Path(directory) / "1" / "sub" / "x").read_bytes() == b"c"
    finally:
        remove_temporary_directory(directory)
    assert not os.path.exists(directory)


def test_a_file_of_a_load_request_outside_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(InvalidArgumentError):
        write_file_overrides({"1/model.py": b"a", "../x": b"b"})
    assert list(tmp_path.iterdir()) == []


def test_files_of_a_load_request_that_contradict_each_other_leave_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))

    with pytest.raises(InternalError, match="failed to write"):
        write_file_overrides({"1": b"a", "1/model.py": b"b"})
    assert list(tmp_path.iterdir()) == []


class TestContainers:
    """Directories that a platform brings."""

    def test_a_model_of_its_own(self, tmp_path):
        (tmp_path / "1").mkdir()
        (tmp_path / "config.pbtxt").touch()
        assert list_container_models(str(tmp_path), "n") == [
            ModelLocation("n", str(tmp_path), str(tmp_path), is_renamed=True)
        ]

    def test_the_first_of_several_is_served(self, tmp_path):
        for name in ("b", "a", "c"):
            (tmp_path / name).mkdir()
        for name in ("b", "a"):
            (tmp_path / name / "config.pbtxt").touch()
        found = list_container_models(str(tmp_path), "n")
        assert [(each.name, each.directory, each.is_renamed) for each in found] == [
            ("n", str(tmp_path / "a"), True),
            ("b", str(tmp_path / "b"), False),
        ]

    def test_or_the_ensemble(self, tmp_path):
        for name, text in (("a", 'platform: "x"'), ("b", "platform : 'ensemble'"), ("c", "")):
            (tmp_path / name).mkdir()
            (tmp_path / name / "config.pbtxt").write_text(text)
        assert [each.name for each in list_container_models(str(tmp_path), "n")] == ["n", "a", "c"]

    def test_or_there_is_nothing(self, tmp_path):
        with pytest.raises(RepositoryError, match=r"failed to register '.*/none', repository not found"):
            list_container_models(str(tmp_path / "none"), "n")
