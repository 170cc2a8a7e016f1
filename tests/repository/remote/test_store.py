"""The store over fsspec's filesystem in memory, with errors and tags of our choosing."""

import errno
import fcntl
import logging
import os
from pathlib import Path

import fsspec
import pytest

from merrow.core.errors import InternalError, UnsupportedError
from merrow.repository.remote import store as store_module
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

    def info(self, path):
        self._fail()
        entry = self.files.info(path)
        return entry if entry["type"] == "directory" else {**entry, "ETag": hash(self.files.cat_file(path))}

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
    yield store
    # Its traceback holds the store that was tested, and that its lock.
    store.failure = None


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
    # What is gone is not remembered, either.
    assert len(os.listdir(tmp_path / "cache" / "known")) == 2


def test_a_copy_is_in_use_before_anyone_can_take_it_for_unused(memory, tmp_path, monkeypatch):
    """Another server that removes unused blobs at the worst time."""
    store = make_store(memory, tmp_path)
    other = make_store(memory, tmp_path, cache_byte_size=0)
    publish = os.replace

    def publish_and_trim(source, target):
        publish(source, target)
        other._trim()

    monkeypatch.setattr(os, "replace", publish_and_trim)

    assert contents(copy(store)) == {"config.pbtxt": b"config", "1/model.py": b"code"}


def test_where_there_are_no_links_files_are_copied(memory, tmp_path, monkeypatch):
    def refuse(source, target):
        raise OSError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    store = make_store(memory, tmp_path)

    expected = {"config.pbtxt": b"config", "1/model.py": b"code"}
    assert contents(copy(store)) == contents(copy(store)) == expected


def test_a_file_that_changes_while_it_is_copied_is_an_error(memory, tmp_path):
    store = make_store(memory, tmp_path)
    (location,) = store.find_model(REPOSITORY, "m")
    files = store.list_files(location)
    memory.put(MODEL, b"other code")

    with pytest.raises(InternalError) as caught:
        store.copy_model(location, files)
    assert caught.value.message == (
        "failed to read s3://bucket/models/m: /bucket/models/m/1/model.py has 10 bytes, but had 4 in the list of "
        "files: it was changed meanwhile"
    )
    assert os.listdir(tmp_path / "cache" / "models") == []


def test_what_servers_left_that_ended_is_removed(memory, tmp_path):
    cache = tmp_path / "cache"
    for name in ("models", "blobs", "servers"):
        (cache / name).mkdir(parents=True)
    # One was killed, of another nothing is known any more.
    (cache / "servers" / "killed").touch()
    for name in ("killed-x", "unknown-x"):
        (cache / "models" / name).mkdir()
        (cache / "blobs" / f"incoming-{name}").touch()
    copy(make_store(memory, tmp_path))

    assert len(os.listdir(cache / "models")) == len(os.listdir(cache / "servers")) == 1
    assert len(os.listdir(cache / "blobs")) == 2


def test_what_servers_have_that_live_stays(memory, tmp_path):
    living = make_store(memory, tmp_path)
    directory = copy(living)
    (tmp_path / "cache" / "blobs" / f"incoming-{Path(directory).name}").touch()
    copy(make_store(memory, tmp_path))

    assert contents(directory) == {"config.pbtxt": b"config", "1/model.py": b"code"}
    assert len(os.listdir(tmp_path / "cache" / "blobs")) == 3


@pytest.mark.parametrize("broken", ["flock", None])
def test_nothing_is_removed_where_nobody_can_tell_who_lives(memory, tmp_path, monkeypatch, broken):
    """A filesystem without locks, and a system."""

    def refuse(*arguments):
        raise OSError(errno.ENOLCK, "No locks available")

    if broken:
        monkeypatch.setattr(fcntl, broken, refuse)
    else:
        monkeypatch.setattr(store_module, "fcntl", None)
    left = tmp_path / "cache" / "models" / "killed-x"
    left.mkdir(parents=True)
    (tmp_path / "cache" / "servers").mkdir()
    (tmp_path / "cache" / "servers" / "killed").touch()

    assert contents(copy(make_store(memory, tmp_path))) == {"config.pbtxt": b"config", "1/model.py": b"code"}
    assert left.exists()


def test_a_lock_that_another_server_took_for_a_left_one_is_taken_anew(memory, tmp_path, monkeypatch):
    removed = []
    lock = fcntl.flock

    def lock_late(descriptor, operation):
        if operation == fcntl.LOCK_EX and not removed:
            (path,) = (tmp_path / "cache" / "servers").iterdir()
            path.unlink()
            removed.append(path.name)
        lock(descriptor, operation)

    monkeypatch.setattr(fcntl, "flock", lock_late)
    directory = copy(make_store(memory, tmp_path))

    (name,) = os.listdir(tmp_path / "cache" / "servers")
    assert removed != [name]
    assert Path(directory).name.startswith(f"{name}-")


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


def test_an_error_tells_no_password_of_a_url(memory, tmp_path):
    store = make_store(memory, tmp_path)
    memory.failure = OSError("no answer from http://user:secret@host/models")

    with pytest.raises(InternalError) as caught:
        store.list_models("http://user:secret@host/models")
    assert caught.value.message == ("failed to read http://***@host/models: no answer from http://***@host/models")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("bucket/models", "there is nothing there"),
        ("http://user:secret@host/models", "there is nothing there"),
        ("The specified bucket does not exist", "The specified bucket does not exist"),
    ],
)
def test_what_is_not_there_is_said_in_words(memory, tmp_path, text, expected):
    store = make_store(memory, tmp_path)
    memory.failure = FileNotFoundError(text)

    with pytest.raises(InternalError) as caught:
        store.list_models(REPOSITORY)
    assert caught.value.message == f"failed to read s3://bucket/models: {expected}"


def test_a_single_file_is_copied_by_way_of_the_cache(memory, tmp_path):
    memory.put("bucket/env.tar.gz", b"environment")
    store = make_store(memory, tmp_path)
    directory = copy(store)
    for name in ("first", "second"):
        store.copy_file("s3://bucket/env.tar.gz", os.path.join(directory, "beside", name))

    assert contents(directory)["beside/first"] == contents(directory)["beside/second"] == b"environment"
    assert memory.copied.count("bucket/env.tar.gz") == 1


def test_a_directory_is_no_file(memory, tmp_path):
    store = make_store(memory, tmp_path)
    directory = copy(store)

    with pytest.raises(InternalError, match="failed to read s3://bucket/models/m: it is a directory"):
        store.copy_file("s3://bucket/models/m", os.path.join(directory, "m"))


class WebServer:
    """Pages with links, as Apache makes them: names are quoted, and every page can be sorted."""

    def __init__(self, *paths):
        self.files = {f"http://host/models/{path}": path.encode() for path in paths}

    def open(self, address, credential):
        return self

    def ls(self, path, detail=True):
        names = {key.removeprefix(f"{path}/").partition("/")[0] for key in self.files}
        pages = [{"name": f"{path}/{name}/", "type": "directory", "size": None} for name in sorted(names)]
        return [*pages, {"name": f"{path}/?C=N;O=D", "type": "file", "size": None}]

    def find(self, path, withdirs=False, detail=False):
        links = [key for key in self.files if key.startswith(f"{path}/")]
        links += [f"{path}/?C=N;O=D", f"{path}/1/?C=N;O=D", f"{path}/#top"]
        return {key: {"name": key, "type": "file", "size": None} for key in links}

    def info(self, path):
        return {"name": path, "size": len(self.files[path]), "ETag": path, "type": "file"}

    def get_file(self, rpath, lpath, callback=None):
        Path(lpath).write_bytes(self.files[rpath])

    def invalidate_cache(self, path=None):
        pass


def test_of_a_page_s_links_only_those_to_files_count_and_names_are_unquoted(tmp_path):
    web = WebServer("m/config.pbtxt", "m/1/a%20b%25.txt")
    store = make_store(web, tmp_path)
    (location,) = store.list_models("http://host/models")
    directory = store.copy_model(location, store.list_files(location))

    assert location.name == "m"
    assert contents(directory) == {"config.pbtxt": b"m/config.pbtxt", "1/a b%.txt": b"m/1/a%20b%25.txt"}


def test_an_unquoted_name_leads_nowhere_else(tmp_path):
    web = WebServer("m/config.pbtxt", "m/1/%2e%2e%2f%2e%2e%2f%2e%2e%2fx")
    store = make_store(web, tmp_path)
    (location,) = store.list_models("http://host/models")

    with pytest.raises(InternalError, match=r"failed to read http://host/models/m: bad name '1/\.\./\.\./\.\./x'"):
        store.list_files(location)


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
