"""A folder of things that take long to make and can be made again: extracted archives, installed requirements.

An entry is a folder `<group>-<state>`: the group says of what it is, the state of which version. Whoever uses an entry
holds a shared lock on `<group>-<state>.lock`; whoever makes or removes one holds it alone. The lock file is empty until
the folder is whole, so a server that is killed leaves its locks to the system, and an unfinished folder to the next
that wants the entry. When a new state of a group is made, older ones that nobody uses are removed.
"""

import contextlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


class EnvironmentCache:
    """Every method may be called on any thread but the loop's; entries stay locked until `close`."""

    def __init__(self, directory: str) -> None:
        """
        Args:
            directory: made when it is first needed; empty for `merrow/environments` in the user's cache folder.
        """
        self._directory = Path(directory) if directory else Path.home() / ".cache" / "merrow" / "environments"
        self._locks: dict[str, int] = {}

    def get(self, group: str, state: str, make: Callable[[str], None]) -> str:
        """The path of the entry.

        Args:
            make: fills the folder that it is given, and moves nowhere else. Called if there is no such entry yet; the
                folder is removed if it raises.

        Raises:
            OSError: the cache cannot be written.
        """
        name = f"{group}-{state}"
        path = self._directory / name
        if name in self._locks:
            return str(path)
        self._directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        lock = _open_lock(self._directory / f"{name}.lock")
        try:
            if not _is_whole(lock, path):
                # The exclusive lock is not granted while anyone uses the entry, or makes it.
                fcntl.flock(lock, fcntl.LOCK_EX)
                if not _is_whole(lock, path):
                    _make(lock, path, make)
                fcntl.flock(lock, fcntl.LOCK_SH)
                self._remove_others(group, name)
        except BaseException:
            os.close(lock)
            raise
        self._locks[name] = lock
        return str(path)

    def close(self) -> None:
        """Let go of every entry."""
        while self._locks:
            os.close(self._locks.popitem()[1])

    def _remove_others(self, group: str, name: str) -> None:
        for lock_path in self._directory.glob(f"{group}-*.lock"):
            other = lock_path.name.removesuffix(".lock")
            if other == name:
                continue
            with contextlib.suppress(OSError):
                lock = os.open(lock_path, os.O_RDWR)
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(self._directory / other, ignore_errors=True)
                    lock_path.unlink()
                finally:
                    os.close(lock)


def _open_lock(path: Path) -> int:
    """A descriptor of the lock file, locked as one of its users."""
    while True:
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_SH)
            if os.path.samestat(os.fstat(lock), path.stat()):
                return lock
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(lock)
            raise
        # Removed while this waited, by one who took the entry for forgotten.
        os.close(lock)


def _is_whole(lock: int, path: Path) -> bool:
    return os.fstat(lock).st_size > 0 and path.is_dir()


def _make(lock: int, path: Path, make: Callable[[str], None]) -> None:
    os.ftruncate(lock, 0)
    if path.exists():
        shutil.rmtree(path)
    path.mkdir(mode=0o700)
    try:
        make(str(path))
    except BaseException:
        shutil.rmtree(path, ignore_errors=True)
        raise
    os.pwrite(lock, b"whole\n", 0)
