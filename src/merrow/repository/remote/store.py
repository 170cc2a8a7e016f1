"""Copies of models that lie elsewhere: lists what there is, and copies what changed.

    <cache>/blobs/<sha256>              content, once, whatever it is called and wherever it came from; never written to
    <cache>/known/<sha256 of source>    which blob a file was, by its address, tag and size: it need not be copied again
    <cache>/models/<server>-<random>    a model's directory as it is loaded: links to blobs; goes with the model (or in
                                        the directory of TRITON_AWS_MOUNT_DIRECTORY and so on)
    <cache>/servers/<server>            locked by the server as long as it lives: of whom it is not, what is left may go

Blobs that no model uses are removed, the longest unused first, when there are more bytes of them than allowed. Several
servers may share a cache, also from containers that do not see each other's processes: everything appears by renaming,
a blob has its first link before it has its name, and one that has just gone is copied again.

Everything here blocks, and may run on several threads.
"""

import hashlib
import logging
import os
import shutil
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote

from merrow.core.errors import InternalError, ServerError, UnsupportedError
from merrow.repository import layout
from merrow.repository.remote import address as addresses
from merrow.repository.remote.credentials import NO_CREDENTIAL, Credential, Credentials, parse_credentials
from merrow.repository.remote.filesystems import (
    FileSystem,
    OpenFileSystem,
    byte_counter,
    describe_error,
    open_filesystem,
)
from merrow.repository.scan import ModelLocation
from merrow.settings import CloudSettings

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

_LOG = logging.getLogger("merrow.repository")

_BLOCK_BYTE_SIZE = 1024 * 1024
_COPIES_AT_ONCE = 8
_PROGRESS_SECONDS = 5.0
_INCOMING = "incoming-"
# Where a store says which content a file has: the surest first. Several stores, several words.
_TAG_KEYS = ("sha256", "blob_id", "ETag", "etag", "md5Hash", "Content-MD5", "Digest")
_TIME_KEYS = ("LastModified", "last_modified", "Last-Modified", "mtime", "updated", "created")


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a store: its path there, and what tells whether it is another than before. No size: unknown."""

    path: str
    tag: str
    byte_size: int | None = None
    is_directory: bool = False


@dataclass(frozen=True, slots=True)
class _Connection:
    filesystem: FileSystem
    address: addresses.Address
    credential: Credential


class RemoteStore:
    """See the module.

    Args:
        open_store: gives the filesystem of an address.
    """

    def __init__(self, settings: CloudSettings, open_store: OpenFileSystem = open_filesystem) -> None:
        self._settings = settings
        self._directory = settings.cache_directory or _default_directory()
        self._open_store = open_store
        self._lock = threading.Lock()
        self._credentials: Credentials | None = None
        self._connections: dict[tuple[str, str, str, Credential], FileSystem] = {}
        # The name of this server's lock, once there is one.
        self._server = ""

    def list_models(self, repository: str) -> list[ModelLocation]:
        """The models of a repository, by name.

        Raises:
            ServerError: it cannot be read.
        """
        connection = self._connect(repository)
        path = connection.address.path
        entries = self._ask(connection, repository, lambda filesystem: filesystem.ls(path, detail=True))
        is_web = connection.address.is_web
        names = {_relative(path, entry["name"], is_web).partition("/")[0] for entry in entries if _is_directory(entry)}
        return [self._location(repository, name) for name in sorted(names - {""})]

    def find_model(self, repository: str, name: str) -> list[ModelLocation]:
        """A model of this (checked) name, if the repository has it."""
        return [location for location in self.list_models(repository) if location.name == name]

    def list_files(self, location: ModelLocation) -> dict[str, RemoteFile]:
        """Every file and directory of a model, by its path in the model's directory.

        Raises:
            ServerError: it cannot be read.
        """
        connection = self._connect(location.directory)
        path = connection.address.path

        is_web = connection.address.is_web

        def find(filesystem: FileSystem) -> dict[str, dict[str, Any]]:
            found = filesystem.find(path, withdirs=True, detail=True)
            if is_web:
                # A web server's page has names only.
                return {
                    key: entry if _is_directory(entry) or not _relative(path, key, is_web) else filesystem.info(key)
                    for key, entry in found.items()
                }
            return found

        files: dict[str, RemoteFile] = {}
        for key, entry in self._ask(connection, location.directory, find).items():
            relative = _relative(path, key, is_web)
            if not relative:
                continue
            if not layout.contains_path(relative):
                raise InternalError(f"failed to read {addresses.printable(location.directory)}: bad name '{relative}'")
            files[relative] = _describe(key, entry)
        if not files:
            raise InternalError(f"failed to read {addresses.printable(location.directory)}: there is nothing there")
        return files

    def copy_model(self, location: ModelLocation, files: Mapping[str, RemoteFile]) -> str:
        """Make a directory of a model's files, and copy those whose content is not here already.

        Returns:
            The directory, which the caller removes when the model is gone.

        Raises:
            ServerError: a file cannot be copied; nothing is left of the directory.
        """
        self._prepare()
        connection = self._connect(location.directory)
        parent = self._settings.mount_directories.get(connection.address.scheme) or os.path.join(
            self._directory, "models"
        )
        try:
            directory = tempfile.mkdtemp(prefix=f"{self._server}-", dir=parent)
        except OSError as error:
            raise InternalError(f"failed to make a directory in {parent}: {error.strerror}") from None
        try:
            for relative, file in files.items():
                target = os.path.join(directory, *relative.split("/"))
                os.makedirs(target if file.is_directory else os.path.dirname(target), exist_ok=True)
            contents = {relative: file for relative, file in files.items() if not file.is_directory}
            progress = _Progress(location.directory, sum(file.byte_size or 0 for file in contents.values()))
            with ThreadPoolExecutor(_COPIES_AT_ONCE, "copy") as threads:
                copies = [
                    threads.submit(
                        self._place, connection, location, file, os.path.join(directory, *relative.split("/")), progress
                    )
                    for relative, file in contents.items()
                ]
                for copy in copies:
                    copy.result()
            progress.finish(len(contents))
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise InternalError(f"failed to write {error.filename}: {error.strerror}") from None
        except BaseException:
            shutil.rmtree(directory, ignore_errors=True)
            raise
        self._trim()
        return directory

    def copy_file(self, name: str, target: str) -> None:
        """Copy a single file that is not in a model's directory.

        Args:
            name: of the file, as that of a repository.
            target: where to, in a directory that `copy_model` made.

        Raises:
            ServerError: it cannot be read.
        """
        connection = self._connect(name)
        path = connection.address.path
        file = _describe(path, self._ask(connection, name, lambda filesystem: filesystem.info(path)))
        if file.is_directory:
            raise InternalError(f"failed to read {addresses.printable(name)}: it is a directory")
        progress = _Progress(name, file.byte_size or 0)
        try:
            os.makedirs(os.path.dirname(target), exist_ok=True)
            self._place(connection, ModelLocation("", name, ""), file, target, progress)
        except OSError as error:
            raise InternalError(f"failed to write {error.filename}: {error.strerror}") from None
        progress.finish(1)

    # Files.

    def _place(
        self, connection: _Connection, location: ModelLocation, file: RemoteFile, target: str, progress: "_Progress"
    ) -> None:
        """Link a file's content to where the model expects it, after copying it if it is not here."""
        known = os.path.join(self._directory, "known", _digest(f"{location.directory}\n{file.path}\n{file.tag}"))
        try:
            with open(known, encoding="ascii") as record:
                digest = record.read()
            self._link(digest, file.byte_size, target)
            return
        except (OSError, ValueError):
            # Never seen, or gone since.
            pass
        digest = self._copy(connection, location, file, target, progress)
        temporary = f"{known}.{os.getpid()}.{threading.get_ident()}"
        with open(temporary, "w", encoding="ascii") as record:
            record.write(digest)
        os.replace(temporary, known)

    def _copy(
        self, connection: _Connection, location: ModelLocation, file: RemoteFile, target: str, progress: "_Progress"
    ) -> str:
        blobs = os.path.join(self._directory, "blobs")
        descriptor, temporary = tempfile.mkstemp(prefix=f"{_INCOMING}{self._server}-", dir=blobs)
        os.close(descriptor)
        try:
            callback = byte_counter(progress.add)
            self._ask(
                connection,
                location.directory,
                lambda filesystem: filesystem.get_file(file.path, temporary, callback=callback),
            )
            byte_size = os.path.getsize(temporary)
            if file.byte_size is not None and byte_size != file.byte_size:
                raise InternalError(
                    f"failed to read {addresses.printable(location.directory)}: {addresses.printable(file.path)} has "
                    f"{byte_size} bytes, but had {file.byte_size} in the list of files: it was changed meanwhile"
                )
            digest = _digest_of_file(temporary)
            progress.count_copied(byte_size)
            # Read only: what links to it is the same file.
            os.chmod(temporary, 0o444)
            # Before it has its name: a blob that is linked to is not removed.
            _link_or_copy(temporary, target)
            os.replace(temporary, os.path.join(blobs, digest))
            return digest
        except BaseException:
            _unlink(temporary)
            raise

    def _link(self, digest: str, byte_size: int | None, target: str) -> None:
        blob = os.path.join(self._directory, "blobs", digest)
        status = os.stat(blob)
        if byte_size is not None and status.st_size != byte_size:
            raise ValueError("another size")
        os.utime(blob)
        _link_or_copy(blob, target)

    def _trim(self) -> None:
        """Remove the longest unused of the blobs that no model's directory links to."""
        unused: list[tuple[float, int, str]] = []
        blobs = os.path.join(self._directory, "blobs")
        for name in os.listdir(blobs):
            path = os.path.join(blobs, name)
            try:
                status = os.stat(path)
            except FileNotFoundError:
                continue
            if status.st_nlink == 1 and not name.startswith(_INCOMING):
                unused.append((status.st_mtime, status.st_size, path))
        surplus = sum(byte_size for _, byte_size, _ in unused) - self._settings.cache_byte_size
        removed = set()
        for _, byte_size, path in sorted(unused):
            if surplus <= 0:
                break
            _unlink(path)
            removed.add(os.path.basename(path))
            surplus -= byte_size
        if removed:
            self._forget(removed)

    def _forget(self, digests: Collection[str]) -> None:
        """Remove the records of blobs that are gone."""
        known = os.path.join(self._directory, "known")
        for name in os.listdir(known):
            path = os.path.join(known, name)
            try:
                with open(path, encoding="ascii") as record:
                    is_gone = record.read() in digests
            except (OSError, ValueError):
                continue
            if is_gone:
                _unlink(path)

    # The cache's directory.

    def _prepare(self) -> None:
        with self._lock:
            if self._server:
                return
            try:
                for name in ("blobs", "known", "models", "servers"):
                    os.makedirs(os.path.join(self._directory, name), mode=0o700, exist_ok=True)
                self._remove_leftovers()
                descriptor, self._server = _lock_name(os.path.join(self._directory, "servers"))
            except OSError as error:
                raise InternalError(f"cannot use the cache of models: {error}") from None
            weakref.finalize(self, os.close, descriptor)

    def _remove_leftovers(self) -> None:
        """Remove what servers left that ended without doing so."""
        models, blobs = (os.path.join(self._directory, name) for name in ("models", "blobs"))
        # These are listed first: a server has its lock before it makes anything.
        directories = os.listdir(models)
        incoming = [name for name in os.listdir(blobs) if name.startswith(_INCOMING)]
        living = self._living_servers()
        if living is None:
            return
        for name in directories:
            if name.partition("-")[0] not in living:
                shutil.rmtree(os.path.join(models, name), ignore_errors=True)
        for name in incoming:
            if name.removeprefix(_INCOMING).partition("-")[0] not in living:
                _unlink(os.path.join(blobs, name))

    def _living_servers(self) -> set[str] | None:
        """The names of servers that run, after removing those of others; None if nobody can tell."""
        servers = os.path.join(self._directory, "servers")
        living = set()
        for name in os.listdir(servers):
            path = os.path.join(servers, name)
            try:
                descriptor = os.open(path, os.O_RDWR)
            except FileNotFoundError:
                continue
            try:
                if _lock_nowait(descriptor):
                    _unlink(path)
                else:
                    living.add(name)
            except OSError:
                return None
            finally:
                os.close(descriptor)
        return living if fcntl is not None else None

    # Stores.

    def _connect(self, repository: str) -> _Connection:
        address = addresses.parse(repository)
        credential = self._read_credentials().find(address.scheme, repository)
        if address.scheme == "as" and credential == NO_CREDENTIAL and not self._settings.credential_path:
            credential = Credential(account=self._settings.azure_account, account_key=self._settings.azure_key)
        key = (address.scheme, address.endpoint, address.account, credential)
        with self._lock:
            filesystem = self._connections.get(key)
            if filesystem is None:
                filesystem = self._connections[key] = self._open_store(address, credential)
        return _Connection(filesystem, address, credential)

    def _read_credentials(self) -> Credentials:
        with self._lock:
            if self._credentials is None:
                if self._settings.credential_path:
                    try:
                        with open(self._settings.credential_path, encoding="utf-8") as file:
                            self._credentials = parse_credentials(file.read())
                    except (OSError, UnicodeDecodeError):
                        raise InternalError(
                            f"failed to read the cloud credential file {self._settings.credential_path}"
                        ) from None
                else:
                    self._credentials = Credentials({})
            return self._credentials

    def _ask(self, connection: _Connection, name: str, question: Callable[[FileSystem], Any]) -> Any:
        """Ask a store something; whatever its package raises becomes an error that names the place."""
        try:
            connection.filesystem.invalidate_cache()
            return question(connection.filesystem)
        except ServerError:
            raise
        except ImportError as error:
            raise UnsupportedError(f"failed to read {addresses.printable(name)}: {error}") from None
        except Exception as error:
            reason = describe_error(error, connection.credential)
            if isinstance(error, FileNotFoundError) and " " not in reason:
                # Most packages give the path only, and that as they see it.
                reason = "there is nothing there"
            raise InternalError(f"failed to read {addresses.printable(name)}: {reason}") from None

    def _location(self, repository: str, name: str) -> ModelLocation:
        return ModelLocation(name, addresses.join(repository, name), repository)


class _Progress:
    """Tells the log how a model's copy comes along."""

    def __init__(self, name: str, total_byte_size: int) -> None:
        self._name = addresses.printable(name)
        self._total = total_byte_size
        self._received = 0
        self._copied_files = 0
        self._copied = 0
        self._start = self._told = time.monotonic()
        self._lock = threading.Lock()

    def add(self, byte_count: int) -> None:
        with self._lock:
            self._received += byte_count
            now = time.monotonic()
            if now - self._told < _PROGRESS_SECONDS:
                return
            self._told = now
        _LOG.info("copying '%s': %.1f of %.1f MB", self._name, self._received / 1e6, self._total / 1e6)

    def count_copied(self, byte_size: int) -> None:
        with self._lock:
            self._copied_files += 1
            self._copied += byte_size

    def finish(self, file_count: int) -> None:
        _LOG.info(
            "copied '%s': %d of %d files were new, %.1f MB in %.1f s",
            self._name,
            self._copied_files,
            file_count,
            self._copied / 1e6,
            time.monotonic() - self._start,
        )


def _is_directory(entry: Mapping[str, Any]) -> bool:
    return entry.get("type") == "directory"


def _relative(path: str, key: str, is_web: bool) -> str:
    """An entry's path below a directory; "" if it is none."""
    key = key.rstrip("/")
    # Some stores begin their names with a slash.
    for prefix in (f"{path}/", f"/{path}/"):
        if key.startswith(prefix):
            relative = key[len(prefix) :].strip("/")
            if is_web:
                # A page has other links, too: those that sort it are queries.
                return "" if "?" in relative or "#" in relative else unquote(relative)
            return relative
    return ""


def _describe(key: str, entry: Mapping[str, Any]) -> RemoteFile:
    if _is_directory(entry) or key.endswith("/"):
        return RemoteFile(key, "directory", is_directory=True)
    size = entry.get("size")
    lfs = entry.get("lfs")
    facts = {**entry, **({"sha256": lfs.get("sha256")} if isinstance(lfs, Mapping) else {})}
    tag = next((str(facts[name]) for name in _TAG_KEYS if facts.get(name)), None)
    if tag is None:
        tag = next((str(facts[name]) for name in _TIME_KEYS if facts.get(name)), "")
    return RemoteFile(key, f"{tag} {size}", size if isinstance(size, int) else None)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).hexdigest()


def _digest_of_file(path: str) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(_BLOCK_BYTE_SIZE):
            digest.update(block)
    return digest.hexdigest()


def _default_directory() -> str:
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return os.path.join(base, "merrow", "models")


def _unlink(path: str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except OSError:
        # This filesystem has no links.
        shutil.copyfile(source, target)


def _lock_name(directory: str) -> tuple[int, str]:
    """A new file that is locked until its descriptor is closed: that, and the file's name."""
    while True:
        descriptor, path = tempfile.mkstemp(prefix="", dir=directory)
        try:
            if fcntl is not None:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor, os.path.basename(path)
        except FileNotFoundError:
            # Another server took it for one that was left, before it was locked.
            pass
        except OSError:
            # This filesystem has no locks; nobody can tell who lives, and nothing is removed.
            return descriptor, os.path.basename(path)
        os.close(descriptor)


def _lock_nowait(descriptor: int) -> bool:
    """Whether nobody else holds the lock."""
    try:
        if fcntl is not None:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
    except BlockingIOError:
        pass
    return False
