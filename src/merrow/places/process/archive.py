"""Extracting a packed environment without letting it out of its folder.

Members are checked before anything is written: no absolute path, no `..`, no devices, no more bytes than allowed
(counted as they come out, whatever the archive says). Files are written first and links made last, so that nothing is
ever written through a link; then every symbolic link must lead to something inside. One kind may lead outside:
`bin/python...`, which is how a packed virtual environment names its interpreter.
"""

import os
import posixpath
import shutil
import stat
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO

_COPY_BYTE_SIZE = 1 << 20
# What any member counts for at least, so that their number has a limit, too.
_MEMBER_BYTE_SIZE = 512


class ArchiveError(Exception):
    """The archive cannot be read, or must not be extracted; the text says why."""


@dataclass(frozen=True, slots=True)
class _Member:
    """What an archive holds. `target` is of a link; `content` of a file, to be read before the next member."""

    name: str
    kind: str
    mode: int
    target: str = ""
    content: IO[bytes] | None = None


def is_archive(path: str) -> bool:
    """Whether this is a packed environment; a script that has a zip file attached is a program."""
    with open(path, "rb") as file:
        if file.read(2) == b"#!":
            return False
    return tarfile.is_tarfile(path) or zipfile.is_zipfile(path)


def extract_archive(path: str, destination: str, max_byte_size: int) -> None:
    """Extract a tar file (compressed or not) or a zip file into a folder that exists and is empty.

    Raises:
        ArchiveError: see there; what was extracted so far is left to the caller.
        OSError: the disk is full, or the like.
    """
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as zipped:
                _extract(_zip_members(zipped), destination, max_byte_size)
        else:
            with tarfile.open(path) as tarred:
                _extract(_tar_members(tarred), destination, max_byte_size)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError, ValueError, NotImplementedError) as error:
        raise ArchiveError(f"cannot read the archive: {error}") from None


def _tar_members(archive: tarfile.TarFile) -> Iterator[_Member]:
    for info in archive:
        if info.isfile():
            yield _Member(info.name, "file", info.mode, content=archive.extractfile(info))
        elif info.isdir():
            yield _Member(info.name, "folder", info.mode)
        elif info.issym():
            yield _Member(info.name, "symlink", info.mode, info.linkname)
        elif info.islnk():
            yield _Member(info.name, "hardlink", info.mode, info.linkname)
        else:
            raise ArchiveError(f"'{info.name}' is neither a file, a folder nor a link")


def _zip_members(archive: zipfile.ZipFile) -> Iterator[_Member]:
    for info in archive.infolist():
        mode = info.external_attr >> 16
        if info.is_dir():
            yield _Member(info.filename, "folder", mode)
        elif stat.S_ISLNK(mode):
            with archive.open(info) as content:
                yield _Member(info.filename, "symlink", mode, os.fsdecode(content.read(4096)))
        elif stat.S_IFMT(mode) in (0, stat.S_IFREG):
            with archive.open(info) as content:
                yield _Member(info.filename, "file", mode, content=content)
        else:
            raise ArchiveError(f"'{info.filename}' is neither a file, a folder nor a link")


def _extract(members: Iterator[_Member], destination: str, max_byte_size: int) -> None:
    root = os.path.realpath(destination)
    left = max_byte_size
    links: list[tuple[str, _Member]] = []
    for member in members:
        left -= _MEMBER_BYTE_SIZE
        name = _checked_name(member.name)
        path = os.path.join(root, name)
        if member.kind == "folder":
            os.makedirs(path, exist_ok=True)
        elif member.kind == "file":
            assert member.content is not None
            os.makedirs(os.path.dirname(path), exist_ok=True)
            left = _write_file(path, member, left)
        else:
            links.append((name, member))
        if left < 0:
            raise ArchiveError(
                f"it extracts to more than {max_byte_size} bytes (--backend-config=python,environment-max-byte-size)"
            )
    for name, member in links:
        _make_link(root, name, member)
    for name, member in links:
        if member.kind == "symlink":
            _check_link(root, name)


def _checked_name(name: str) -> str:
    """The path, relative to the destination; nothing on the disk is asked."""
    normal = posixpath.normpath(name)
    if name.startswith("/") or "\\" in name or "\0" in name or normal == ".." or normal.startswith("../"):
        raise ArchiveError(f"'{name}' leads out of the archive's folder")
    return normal


def _write_file(path: str, member: _Member, left: int) -> int:
    """Returns how many bytes may still come; below zero it has stopped."""
    assert member.content is not None
    # A file that is there twice: the last counts. There are no links yet that this could follow.
    if os.path.lexists(path):
        os.unlink(path)
    mode = 0o755 if member.mode & 0o111 else 0o644
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
        while left >= 0:
            data = member.content.read(_COPY_BYTE_SIZE)
            if not data:
                break
            left -= len(data)
            file.write(data)
    return left


def _make_link(root: str, name: str, member: _Member) -> None:
    path = os.path.join(root, name)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    if os.path.lexists(path):
        raise ArchiveError(f"the link '{name}' is there twice, or in the place of something else")
    if not _is_inside(root, os.path.dirname(path)):
        raise ArchiveError(f"'{name}' leads out of the archive's folder")
    if member.kind == "symlink":
        os.symlink(member.target, path)
        return
    target = os.path.join(root, _checked_name(member.target))
    if os.path.islink(target) or not os.path.isfile(target) or not _is_inside(root, target):
        raise ArchiveError(f"the link '{name}' names '{member.target}', which is no file of the archive")
    try:
        os.link(target, path)
    except OSError:
        # A file system without links.
        shutil.copy2(target, path)


def _check_link(root: str, name: str) -> None:
    path = os.path.join(root, name)
    if _is_inside(root, path):
        return
    parts = Path(name).parts
    is_interpreter = len(parts) >= 2 and parts[-2] == "bin" and parts[-1].startswith("python")
    if not (is_interpreter and os.path.isfile(path) and os.access(path, os.X_OK)):
        raise ArchiveError(f"the link '{name}' leads out of the archive's folder")


def _is_inside(root: str, path: str) -> bool:
    real = os.path.realpath(path)
    return real == root or real.startswith(root + os.sep)
