"""Model repositories for tests."""

from merrow.testing.repository_builder import RepositoryBuilder, model_config
from merrow.wire.model_config_text import decode_config_text


def test_models_are_directories_with_a_configuration_and_a_version(tmp_path):
    repository = RepositoryBuilder(tmp_path / "models")
    repository.add_add_sub()
    repository.add_python_identity(extra_config="dynamic_batching {}")
    repository.add_identity("i", datatype="BYTES", dims=(-1, 2), max_batch_size=4)
    repository.add("bare", None)

    files = {path.relative_to(repository.path).as_posix() for path in repository.path.rglob("*") if path.is_file()}
    assert files == {
        "add_sub/config.pbtxt",
        "add_sub/1/model.py",
        "python_identity/config.pbtxt",
        "python_identity/1/model.py",
        "i/config.pbtxt",
    }
    assert (repository.path / "bare" / "1").is_dir()
    config = decode_config_text((repository.path / "i" / "config.pbtxt").read_text())
    assert (config.name, config.backend, config.max_batch_size) == ("i", "identity", 4)
    assert (config.input[0].data_type, config.input[0].dims) == ("TYPE_STRING", (-1, 2))


def test_files_have_their_content(tmp_path):
    directory = RepositoryBuilder(tmp_path).add("m", "x", {"3/a/b": b"\xff", "labels.txt": "one\n"})
    assert (directory / "3/a/b").read_bytes() == b"\xff"
    assert (directory / "labels.txt").read_text() == "one\n"


def test_a_configuration_is_text():
    assert model_config("m", "python", [("I", "FP32", (2, -1))], [("O", "BYTES", ())], 3, "dynamic_batching {}") == (
        'name: "m"\n'
        'backend: "python"\n'
        "max_batch_size: 3\n"
        'input { name: "I" data_type: TYPE_FP32 dims: [ 2, -1 ] }\n'
        'output { name: "O" data_type: TYPE_STRING dims: [  ] }\n'
        "dynamic_batching {}\n"
    )
