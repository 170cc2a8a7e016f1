import os
from dataclasses import replace

import pytest

from merrow.core.errors import AlreadyExistsError, InternalError, InvalidArgumentError
from merrow.repository.plan import ModelPlan, PollFailure
from merrow.repository.reader import Overrides, RepositoryReader
from merrow.repository.remote.store import RemoteFile
from merrow.repository.scan import ModelLocation
from merrow.settings import RepositorySettings

CONFIG = 'backend: "identity"\n'
BUCKET = "s3://bucket/models"


def add_model(repository, name, config=CONFIG):
    (repository / name / "1").mkdir(parents=True)
    (repository / name / "config.pbtxt").write_text(config)


def make_reader(*repositories, **settings):
    return RepositoryReader(RepositorySettings(model_repositories=tuple(map(str, repositories)), **settings))


def read(reader, name, known=None, **overrides):
    (location,) = reader.find_models(name)
    return reader.read(location, known, Overrides(**overrides))


class FakeStore:
    """A store with one model; counts the copies that are made of it."""

    def __init__(self, directory):
        self.directory = directory
        self.tags = {"config.pbtxt": "1", "1": "directory"}
        self.copies = 0
        self.config = CONFIG
        self.copied_files = []
        self.failure = None

    def list_models(self, repository):
        return [ModelLocation("remote", f"{repository}/remote", repository)]

    def find_model(self, repository, name):
        return [location for location in self.list_models(repository) if location.name == name]

    def list_files(self, location):
        return {path: RemoteFile(path, tag, is_directory=path == "1") for path, tag in self.tags.items()}

    def copy_model(self, location, files):
        self.copies += 1
        directory = self.directory / f"copy{self.copies}"
        add_model(directory.parent, directory.name, self.config)
        return str(directory)

    def copy_file(self, name, target):
        if self.failure is not None:
            raise self.failure
        self.copied_files.append((name, target))


def test_all_repositories_are_listed_by_name(tmp_path):
    for path in ("r1/b", "r2/a", "r2/b"):
        add_model(tmp_path / path.split("/")[0], path.split("/")[1])
    reader = make_reader(tmp_path / "r1", tmp_path / "r2")

    assert [location.name for location in reader.list_models()] == ["a", "b", "b"]
    assert len(reader.find_models("b")) == 2
    assert reader.find_models("c") == []


def test_a_repository_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(InternalError, match="repository path is not a valid directory"):
        make_reader(tmp_path / "nowhere").list_models()


def test_a_namespace_is_the_repository(tmp_path):
    add_model(tmp_path, "m")
    (location,) = make_reader(tmp_path).list_models()

    assert make_reader(tmp_path).model_id(location).namespace == ""
    assert make_reader(tmp_path, model_namespacing=True).model_id(location).namespace == str(tmp_path)


def test_what_has_not_changed_is_not_read_again(tmp_path):
    add_model(tmp_path, "m")
    reader = make_reader(tmp_path)
    plan = read(reader, "m")

    assert isinstance(plan, ModelPlan)
    assert read(reader, "m", known=plan) is plan
    assert read(reader, "m", known=plan, config='{"backend":"identity"}') is not plan
    os.utime(tmp_path / "m" / "config.pbtxt", ns=(2**62, 2**62))
    assert read(reader, "m", known=plan) is not plan


def test_a_directory_that_left_is_a_failure(tmp_path):
    add_model(tmp_path, "m")
    reader = make_reader(tmp_path)
    plan = read(reader, "m")
    location = ModelLocation("m", str(tmp_path / "gone"), str(tmp_path))

    assert isinstance(reader.read(location, replace(plan, source=str(tmp_path / "gone"))), PollFailure)


def test_files_of_a_request_are_a_directory_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    reader = make_reader(tmp_path)
    location = ModelLocation("m", "", "")
    plan = reader.read(location, None, Overrides('{"backend":"identity"}', {"4/x": b"content"}))

    assert isinstance(plan, ModelPlan)
    assert (plan.name, plan.versions, plan.source) == ("m", (4,), "")
    assert os.listdir(plan.temporary_directory) == ["4"]
    reader.remove_copy(plan.temporary_directory)
    reader.remove_copy("")
    for overrides, reason in (
        (Overrides(None, {"1/x": b""}), "Load parameter 'config' must be specified for model file override"),
        (Overrides('{"name":"n"}', {"1/x": b""}), "Invalid model name: Could not determine backend for model 'm'"),
        (
            Overrides("{}", {"../x": b""}),
            "Invalid file parameter 'file:../x' with normalized path '/x' must stay within model directory.",
        ),
    ):
        failure = reader.read(location, None, overrides)
        assert isinstance(failure, PollFailure)
        assert reason in failure.reason
    assert os.listdir(tmp_path / "temporary") == []


def test_a_model_elsewhere_is_copied_when_it_has_changed(tmp_path):
    reader = make_reader(BUCKET)
    store = reader._store = FakeStore(tmp_path)
    plan = read(reader, "remote")

    assert [location.name for location in reader.list_models()] == ["remote"]
    assert isinstance(plan, ModelPlan)
    assert (plan.name, plan.source) == ("remote", f"{BUCKET}/remote")
    assert plan.directory == plan.temporary_directory == str(tmp_path / "copy1")
    assert read(reader, "remote", known=plan) is plan
    assert store.copies == 1
    store.tags["config.pbtxt"] = "2"
    assert read(reader, "remote", known=plan).directory == str(tmp_path / "copy2")
    del store.tags["1"]
    assert read(reader, "remote", known=plan).directory == str(tmp_path / "copy3")


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("$$TRITON_MODEL_DIRECTORY/../env.tar.gz", f"{BUCKET}/env.tar.gz"),
        ("gs://other/env.tar.gz", "gs://other/env.tar.gz"),
        ("$$TRITON_MODEL_DIRECTORY/env.tar.gz", None),
        ("/usr/bin/python3", None),
    ],
)
def test_an_execution_environment_beside_a_model_elsewhere_is_copied_too(tmp_path, path, source):
    reader = make_reader(BUCKET)
    store = reader._store = FakeStore(tmp_path)
    store.config = f'backend: "python" parameters {{ key: "EXECUTION_ENV_PATH" value {{ string_value: "{path}" }} }}'
    plan = read(reader, "remote")

    here = "$$TRITON_MODEL_DIRECTORY/.environment/env.tar.gz"
    assert plan.config.parameters["EXECUTION_ENV_PATH"].string_value == (path if source is None else here)
    copied = [] if source is None else [(source, str(tmp_path / "copy1" / ".environment" / "env.tar.gz"))]
    assert store.copied_files == copied


def test_a_model_whose_execution_environment_cannot_be_copied_leaves_no_copy(tmp_path):
    reader = make_reader(BUCKET)
    store = reader._store = FakeStore(tmp_path)
    store.config = CONFIG + 'parameters { key: "EXECUTION_ENV_PATH" value { string_value: "s3://other/env" } }'
    store.failure = InternalError("failed to read s3://other/env: there is nothing there")
    failure = read(reader, "remote")

    assert isinstance(failure, PollFailure)
    assert failure.reason == "failed to read s3://other/env: there is nothing there"
    assert not (tmp_path / "copy1").exists()


def test_an_agent_that_refuses_a_copy_leaves_none(tmp_path):
    agents = (
        'model_repository_agents { agents [ { name: "checksum" parameters { key: "MD5:config.pbtxt" value: "0" } } ] }'
    )
    reader = make_reader(BUCKET)
    reader._store = FakeStore(tmp_path)
    failure = read(reader, "remote", config=None)
    assert isinstance(failure, ModelPlan)

    def copy_model(location, files):
        add_model(tmp_path, "refused", CONFIG + agents)
        return str(tmp_path / "refused")

    reader._store.copy_model = copy_model
    failure = read(reader, "remote")
    assert isinstance(failure, PollFailure)
    assert failure.reason.startswith("Mismatched MD5 hash for file config.pbtxt, expect: 0, got: ")
    assert not (tmp_path / "refused").exists()


def test_models_from_outside_are_registered_once(tmp_path):
    add_model(tmp_path / "outside", "whatever")
    reader = make_reader(tmp_path / "repository")
    (tmp_path / "repository").mkdir()
    outside = str(tmp_path / "outside")
    reader.register(outside, "m")

    assert [location.name for location in reader.list_models()] == ["m"]
    assert [location.directory for location in reader.find_models("m")] == [str(tmp_path / "outside" / "whatever")]
    with pytest.raises(AlreadyExistsError):
        reader.register(outside, "n")
    with pytest.raises(InvalidArgumentError):
        reader.register(str(tmp_path / "nowhere"), "n")
    reader.unregister(outside)
    reader.unregister(outside)
    assert reader.list_models() == []
