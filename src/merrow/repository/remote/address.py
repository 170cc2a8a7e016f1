"""Repositories that are not a directory of this machine: which strings name one, and what they say. Pure.

    s3://bucket/path                        Amazon S3
    s3://host:port/bucket/path              anything that speaks S3, over HTTP
    s3://https://host:port/bucket/path      the same over HTTPS (or http://)
    gs://bucket/path                        Google Cloud Storage
    as://account/container/path             Azure Blob Storage; account may be `account.blob.core.windows.net`
    hf://owner/repository[@revision]/path   Hugging Face Hub
    http://host/path, https://host/path     a web server that lists its directories

Source: Triton, model_repository.md, "Model Repository Locations".
"""

import re
from dataclasses import dataclass

from merrow.core.errors import InvalidArgumentError

_SCHEME = re.compile(r"(s3|gs|as|hf|https?)://")
_S3_ENDPOINT = re.compile(r"s3://(?:(https?)://)?([0-9a-zA-Z.\-]+):([0-9]+)/(.+)")
_USER = re.compile(r"://[^/@\s]*@")


@dataclass(frozen=True, slots=True)
class Address:
    """A place in a store.

    `scheme` is `s3`, `gs`, `as`, `hf`, `http` or `https`. `path` is the place within the store, without slashes around:
    `bucket/path`, `container/path`, `owner/repository/path`; for the web, the whole URL. `endpoint` is the URL of an
    S3 server other than Amazon's, `account` that of Azure.
    """

    scheme: str
    path: str
    endpoint: str = ""
    account: str = ""

    @property
    def is_web(self) -> bool:
        """Whether it is a web server, whose directories are pages with links."""
        return self.scheme in ("http", "https")


def is_remote(repository: str) -> bool:
    """Whether a repository is named that is not a directory of this machine."""
    return _SCHEME.match(repository) is not None


def parse(repository: str) -> Address:
    """Read the name of a remote repository, or of anything in it.

    Raises:
        InvalidArgumentError: something is missing.
    """
    match = _SCHEME.match(repository)
    assert match is not None, "asked with is_remote"
    scheme = match[1]
    rest = repository[match.end() :].strip("/")
    if scheme in ("http", "https"):
        if not rest:
            raise _invalid(repository, "a host")
        return Address(scheme, f"{scheme}://{rest}")
    if scheme == "s3":
        endpoint = _S3_ENDPOINT.fullmatch(repository.rstrip("/"))
        if endpoint is not None:
            protocol, host, port, path = endpoint.groups()
            return Address("s3", _clean(path), endpoint=f"{protocol or 'http'}://{host}:{port}")
        if "://" in rest:
            raise _invalid(repository, "s3://https://host:port/bucket/path")
    if scheme == "as":
        account, _, path = rest.partition("/")
        if not account or not path.strip("/"):
            raise _invalid(repository, "as://account/container/path")
        return Address("as", _clean(path), account=account.partition(".")[0])
    if scheme == "hf" and rest.count("/") < 1:
        raise _invalid(repository, "hf://owner/repository/path")
    if not rest:
        raise _invalid(repository, "a bucket")
    return Address(scheme, _clean(rest))


def join(repository: str, name: str) -> str:
    """The name of something in a repository, or in a directory of it."""
    return f"{repository.rstrip('/')}/{name}"


def collapse(name: str) -> str:
    """A name without `.` and `..`, which stores take for names like others."""
    parts: list[str] = []
    for part in name.split("/"):
        if part == ".." and parts:
            parts.pop()
        elif part != ".":
            parts.append(part)
    return "/".join(parts)


def printable(text: str) -> str:
    """A name, or a text with names in it, as it may be logged: without the users and passwords that URLs can carry."""
    return _USER.sub("://***@", text)


def _clean(path: str) -> str:
    return "/".join(part for part in path.split("/") if part)


def _invalid(repository: str, expected: str) -> InvalidArgumentError:
    return InvalidArgumentError(f"repository '{printable(repository)}' is incomplete: expected {expected}")
