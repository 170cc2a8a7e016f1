"""The store over fsspec's filesystem in memory, with errors and tags of our choosing."""

import logging
import os
from pathlib import Path

import fsspec
import pytest

from merrow.core.errors import InternalError, UnsupportedError
from merrow.repository.remote.store import RemoteStore
from merrow.settings import CloudSettings

REPOSITORY = "s3://bucket/models"
CONFIG = "bucket/models/m/config.pbtxt"
MODEL = "bucket/models/m/1/model.py"


class MemoryStore:
    """An object store in memory, that counts what is copied, and can be away."""

    def __init__(self):
        self.files = fsspec.filesystem("memory", skip_instance_cache=True)
        self.files.store = {}
        self.files.pseudo_dirs = [""]
        self.copied = []
        self.failure = None

    def put(self, path, content):
        self.files.pipe_file(f"/{path}", content)

    def open(self, address, credential):
        return self

    def ls(self, path, detail=True):
        self._fail()
        return self.files.ls(path, detail=detail)

    def find(self, path, withdirs=False, detail=False):
        self._fail()
        found = self.files.find(path, withdirs=withdirs, detail=detail)
        return {
            key: entry if entry["type"] == "directory" else {**entry, "ETag": hash(self.files.cat_file(key))}
            for key, entry in found.items()
        }

    def get_file(self, rpath, lpath, callback=None):
        self._fail()
        self.copied.append(rpath.lstrip("/"))
        content = self.files.cat_file(rpath)
        callback.relative_update(len(content))
        Path(lpath).write_bytes(content)

    def invalidate_cache(self, path=None):
        pass

    def _fail(self):
        if self.failure is not None:
            raise self.failure


@pytest.fixture
def memory():
    store = MemoryStore()
    store.put(CONFIG, b"config")
    store.put(MODEL, b"code")
    return store


def make_store(memory, tmp_path, **settings):
    return RemoteStore(CloudSettings(cache_directory=str(tmp_path / "cache"), **settings), memory.open)


def contents(directory):
    return {
        str(path.relative_to(directory)): path.read_bytes() for path in Path(directory).rglob("*") if path.is_file()
    }


def copy(store, name="m"):
    (location,) = store.find_model(REPOSITORY, name)
    return store.copy_model(location, store.list_files(location))


def test_directories_are_models(memory, tmp_path):
    memory.put("bucket/models/file.txt", b"")
    memory.put("bucket/models/n/1/model.py", b"")
    store = make_store(memory, tmp_path)

    assert [(each.name, each.directory) for each in store.list_models(REPOSITORY)] == [
        ("m", "s3://bucket/models/m"),
        ("n", "s3://bucket/models/n"),
    ]
    assert store.find_model(REPOSITORY, "x") == []


def test_a_model_is_copied_as_it_lies(memory, tmp_path):
    directory = copy(make_store(memory, tmp_path))

    assert contents(directory) == {"config.pbtxt": b"config", "1/model.py": b"code"}


def test_only_what_changed_is_copied_again(memory, tmp_path):
    store = make_store(memory, tmp_path)
    first = copy(store)
    memory.copied.clear()
    memory.put(MODEL, b"other")
    second = copy(store)

    assert memory.copied == [MODEL]
    assert contents(second) == {"config.pbtxt": b"config", "1/model.py": b"other"}
    assert contents(first) == {"config.pbtxt": b"config", "1/model.py": b"code"}


def test_another_server_finds_what_one_has_copied(memory, tmp_path):
    copy(make_store(memory, tmp_path))
    memory.copied.clear()

    assert contents(copy(make_store(memory, tmp_path))) == {"config.pbtxt": b"config", "1/model.py": b"code"}
    assert memory.copied == []


def test_the_same_content_is_kept_once(memory, tmp_path):
    memory.put("bucket/models/n/1/model.py", b"code")
    store = make_store(memory, tmp_path)
    copy(store)
    copy(store, "n")

    assert len(os.listdir(tmp_path / "cache" / "blobs")) == 2


def test_copies_cannot_be_written_to(memory, tmp_path):
    directory = copy(make_store(memory, tmp_path))

    assert (Path(directory) / "1" / "model.py").stat().st_mode & 0o777 == 0o444


def test_a_blob_that_is_gone_is_copied_again(memory, tmp_path):
    store = make_store(memory, tmp_path)
    copy(store)
    for blob in (tmp_path / "cache" / "blobs").iterdir():
        blob.unlink()
    memory.copied.clear()

    assert contents(copy(store)) == {"config.pbtxt": b"config", "1/model.py": b"code"}
    assert sorted(memory.copied) == [MODEL, CONFIG]


def test_blobs_that_no_model_uses_go_when_there_are_too_many(memory, tmp_path):
    store = make_store(memory, tmp_path, cache_byte_size=0)
    first = copy(store)
    memory.put(MODEL, b"other")
    copy(store)
    assert len(os.listdir(tmp_path / "cache" / "blobs")) == 3

    for path in (Path(first) / "1" / "model.py", Path(first) / "config.pbtxt"):
        path.unlink()
    copy(store)
    assert len(os.listdir(tmp_path / "cache" / "blobs")) == 2


def test_directories_of_servers_that_ended_are_removed(memory, tmp_path):
    ended = tmp_path / "cache" / "models" / "4194304-x"
    living = tmp_path / "cache" / "models" / f"{os.getpid()}-x"
    for directory in (ended, living):
        directory.mkdir(parents=True)
    copy(make_store(memory, tmp_path))

    assert not ended.exists()
    assert living.exists()


def test_the_operator_says_where_copies_are_made(memory, tmp_path):
    (tmp_path / "mount").mkdir()
    directory = copy(make_store(memory, tmp_path, mount_directories={"s3": str(tmp_path / "mount")}))

    assert Path(directory).parent == tmp_path / "mount"


def test_a_mount_directory_that_is_not_there_is_an_error(memory, tmp_path):
    with pytest.raises(InternalError, match=r"failed to make a directory in .*: No such file or directory"):
        copy(make_store(memory, tmp_path, mount_directories={"s3": str(tmp_path / "nowhere")}))


def test_empty_directories_are_made(memory, tmp_path):
    memory.files.mkdir("/bucket/models/m/2")

    assert (Path(copy(make_store(memory, tmp_path))) / "2").is_dir()


def test_an_error_names_the_place_and_no_secret(memory, tmp_path):
    path = tmp_path / "credentials.json"
    path.write_text('{"s3": {"": {"key_id": "AK", "secret_key": "SECRET"}}}')
    store = make_store(memory, tmp_path, credential_path=str(path))
    memory.failure = PermissionError("denied for SECRET\nand more")

    with pytest.raises(InternalError) as caught:
        store.list_models(REPOSITORY)
    assert caught.value.message == "failed to read s3://bucket/models: denied for *** and more"


def test_a_copy_that_breaks_off_leaves_nothing(memory, tmp_path):
    store = make_store(memory, tmp_path)
    (location,) = store.find_model(REPOSITORY, "m")
    files = store.list_files(location)
    memory.failure = ConnectionError("away")

    with pytest.raises(InternalError, match="failed to read s3://bucket/models/m: away"):
        store.copy_model(location, files)
    assert os.listdir(tmp_path / "cache" / "models") == []
    assert os.listdir(tmp_path / "cache" / "blobs") == []


def test_a_package_that_is_missing_is_named(memory, tmp_path):
    store = make_store(memory, tmp_path)
    memory.failure = ImportError("No module named 'aiohttp'")

    with pytest.raises(UnsupportedError, match="No module named 'aiohttp'"):
        store.list_models(REPOSITORY)


def test_a_model_without_files_is_an_error(memory, tmp_path):
    memory.files.mkdir("/bucket/models/n")
    store = make_store(memory, tmp_path)
    (location,) = store.find_model(REPOSITORY, "n")

    with pytest.raises(InternalError, match="there is nothing there"):
        store.list_files(location)


@pytest.mark.parametrize("content", [None, b"{", b"\xff"])
def test_a_credential_file_that_cannot_be_read_is_an_error(memory, tmp_path, content):
    path = tmp_path / "credentials.json"
    if content is not None:
        path.write_bytes(content)
    store = make_store(memory, tmp_path, credential_path=str(path))

    with pytest.raises(Exception, match="cloud credential file"):
        store.list_models(REPOSITORY)


def test_progress_is_told(memory, tmp_path, caplog):
    caplog.set_level(logging.INFO, "merrow.repository")
    copy(make_store(memory, tmp_path))

    assert "copied 's3://bucket/models/m': 2 of 2 files were new" in caplog.text
