"""Reading TOML, and finding where in its text something is said: what a message about a key needs.

Python has the parser from 3.11 on; before, the package `tomli` is the same.
"""

import re
import sys
from collections.abc import Sequence
from typing import Any

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

_HEADER = re.compile(r"\s*\[\[?([^\[\]]+)\]\]?\s*(?:#.*)?")
_KEY = re.compile(r"""\s*((?:[\w-]+|"[^"]*"|'[^']*')(?:\s*\.\s*(?:[\w-]+|"[^"]*"|'[^']*'))*)\s*=""")
_KEY_PART = re.compile(r"""[\w-]+|"[^"]*"|'[^']*'""")


class TomlError(Exception):
    """The text is not TOML; says where."""


def parse_toml(text: str) -> dict[str, Any]:
    """Raises TomlError."""
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise TomlError(str(error)) from None


def line_of_key(text: str, path: Sequence[str]) -> int:
    """The line, from 1, that sets the key of this path; 1 if it cannot be told.

    A key inside an inline table stands where the table does.
    """
    table: list[str] = []
    wanted = list(path)
    best = (0, 1)
    for number, line in enumerate(text.splitlines(), 1):
        header = _HEADER.fullmatch(line)
        if header is not None:
            table = _parts(header[1])
            found = table
        else:
            key = _KEY.match(line)
            if key is None:
                continue
            found = table + _parts(key[1])
        if wanted[: len(found)] == found and len(found) > best[0]:
            best = (len(found), number)
    return best[1]


def _parts(key: str) -> list[str]:
    return [part.strip("\"'") for part in _KEY_PART.findall(key)]
