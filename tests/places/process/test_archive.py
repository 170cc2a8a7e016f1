import io
import os
import stat
import sys
import tarfile
import zipfile

import pytest

from merrow.places.process.archive import ArchiveError, extract_archive, is_archive

ENOUGH = 1 << 20


def tar(path, *members, mode="w:gz"):
    """Members: (name, content) of a file, (name, None) of a folder, or a TarInfo."""
    with tarfile.open(path, mode) as archive:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                archive.addfile(member)
                continue
            name, content = member
            info = tarfile.TarInfo(name)
            if content is None:
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            else:
                info.size = len(content)
                info.mode = 0o755 if "bin/" in name else 0o644
                archive.addfile(info, io.BytesIO(content))
    return str(path)


def link(name, target, kind=tarfile.SYMTYPE):
    info = tarfile.TarInfo(name)
    info.type = kind
    info.linkname = target
    return info


def extract(path, destination, max_byte_size=ENOUGH):
    destination.mkdir()
    extract_archive(path, str(destination), max_byte_size)
    return destination


@pytest.mark.parametrize("mode", ["w:gz", "w", "w:xz", "w:bz2"])
def test_files_folders_and_links_are_extracted(tmp_path, mode):
    path = tar(
        tmp_path / "env.tar",
        ("./bin/python3.12", b"elf"),
        link("bin/python", "python3.12"),
        ("lib", None),
        ("lib/python3.12/os.py", b"code"),
        link("lib64", "lib"),
        link("lib/same.py", "lib/python3.12/os.py", tarfile.LNKTYPE),
        mode=mode,
    )
    assert is_archive(path)
    folder = extract(path, tmp_path / "out")

    assert (folder / "bin/python").read_bytes() == b"elf"
    assert os.access(folder / "bin/python", os.X_OK)
    assert not os.access(folder / "lib/python3.12/os.py", os.X_OK)
    assert (folder / "lib64/same.py").read_bytes() == b"code"


def test_a_zip_file_keeps_what_can_be_executed_and_links(tmp_path):
    path = tmp_path / "env.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        program = zipfile.ZipInfo("bin/python3")
        program.external_attr = (stat.S_IFREG | 0o755) << 16
        archive.writestr(program, b"elf")
        short = zipfile.ZipInfo("bin/python")
        short.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(short, "python3")
        archive.writestr("lib/os.py", b"code")
        archive.writestr("empty/", b"")
    folder = extract(str(path), tmp_path / "out")

    assert is_archive(str(path))
    assert (folder / "bin/python").read_bytes() == b"elf"
    assert os.access(folder / "bin/python", os.X_OK)
    assert (folder / "empty").is_dir()


@pytest.mark.parametrize("name", ["../evil", "/etc/evil", "a/../../evil", "..", "a\\..\\..\\evil"])
def test_a_name_that_leads_out_is_refused(tmp_path, name):
    path = tar(tmp_path / "env.tar.gz", (name, b"x"))

    with pytest.raises(ArchiveError, match="leads out of the archive's folder"):
        extract(path, tmp_path / "out")
    assert not (tmp_path / "evil").exists()


@pytest.mark.parametrize(
    ("name", "target"),
    [("evil", "/etc"), ("evil", "../outside"), ("a/evil", "../../outside"), ("a/b/evil", "/etc/passwd")],
)
def test_a_link_that_leads_out_is_refused(tmp_path, name, target):
    path = tar(tmp_path / "env.tar.gz", link(name, target))

    with pytest.raises(ArchiveError, match=f"the link '{name}' leads out"):
        extract(path, tmp_path / "out")


def test_links_that_lead_out_only_together_are_refused(tmp_path):
    path = tar(tmp_path / "env.tar.gz", link("a/b/up", "../.."), link("a/b/c/out", "../up/../outside"))

    with pytest.raises(ArchiveError, match="leads out"):
        extract(path, tmp_path / "out")


def test_nothing_is_written_through_a_link(tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    for second in (("evil/file", b"x"), ("evil", b"x")):
        path = tar(tmp_path / "env.tar.gz", link("evil", str(outside)), second)
        with pytest.raises(ArchiveError):
            extract(path, tmp_path / f"out{len(second[0])}")
    assert list(outside.iterdir()) == []


def test_a_hard_link_to_something_outside_is_refused(tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("s")
    for target in ("../secret", str(secret), "absent", "folder"):
        path = tar(tmp_path / "env.tar.gz", ("folder", None), link("evil", target, tarfile.LNKTYPE))
        with pytest.raises(ArchiveError):
            extract(path, tmp_path / f"out{abs(hash(target))}")


def test_a_packed_virtual_environment_may_name_its_interpreter(tmp_path):
    path = tar(
        tmp_path / "env.tar.gz", link("bin/python3", os.path.realpath(sys.executable)), link("bin/python", "python3")
    )
    folder = extract(path, tmp_path / "out")

    assert os.path.realpath(folder / "bin/python") == os.path.realpath(sys.executable)


@pytest.mark.parametrize("kind", [tarfile.CHRTYPE, tarfile.BLKTYPE, tarfile.FIFOTYPE])
def test_devices_and_pipes_are_refused(tmp_path, kind):
    path = tar(tmp_path / "env.tar.gz", link("odd", "", kind))

    with pytest.raises(ArchiveError, match="'odd' is neither a file, a folder nor a link"):
        extract(path, tmp_path / "out")


def test_what_extracts_to_too_much_is_stopped(tmp_path):
    path = tar(tmp_path / "bomb.tar.gz", ("zeros", bytes(5_000_000)))

    with pytest.raises(ArchiveError, match="it extracts to more than 1048576 bytes"):
        extract(path, tmp_path / "out")
    assert (tmp_path / "out/zeros").stat().st_size <= 2 * ENOUGH

    many = tar(tmp_path / "many.tar.gz", *[(f"file{number}", b"") for number in range(3000)])
    with pytest.raises(ArchiveError, match="it extracts to more than"):
        extract(many, tmp_path / "many")


def test_a_broken_archive_is_refused_at_every_length(tmp_path):
    whole = tmp_path / "env.tar.gz"
    tar(whole, ("a", os.urandom(3000)), ("b", b"y"))
    data = whole.read_bytes()
    for cut in range(0, len(data) - 1, 97):
        path = tmp_path / f"cut{cut}"
        path.write_bytes(data[:cut])
        with pytest.raises(ArchiveError, match="cannot read the archive"):
            extract(str(path), tmp_path / f"out{cut}")


def test_a_program_is_no_archive(tmp_path):
    script = tmp_path / "python"
    with open(script, "wb") as file:
        file.write(b"#!/usr/bin/env python3\n")
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("__main__.py", "")

    assert not is_archive(str(script))
    assert not is_archive(sys.executable)
