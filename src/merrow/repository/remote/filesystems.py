"""The packages that speak to stores, behind one interface: this is the one module that imports fsspec.

Each store has a package of its own, which knows where credentials usually are: s3fs (the variables and files of AWS,
the identity of the machine), gcsfs (GOOGLE_APPLICATION_CREDENTIALS and so on), adlfs, huggingface_hub (HF_TOKEN). They
are extras of merrow, so each may be missing; the error then says what to install.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from merrow.core.errors import InternalError, UnsupportedError
from merrow.repository.remote.address import Address, printable
from merrow.repository.remote.credentials import Credential

# fsspec's name for the store, and the extra of merrow that brings its package.
_STORES = {
    "s3": ("s3", "s3"),
    "gs": ("gcs", "gcs"),
    "as": ("abfs", "azure"),
    "hf": ("hf", "hf"),
    "http": ("http", "http"),
    "https": ("https", "http"),
}


class FileSystem(Protocol):
    """What is used of an fsspec filesystem. Every method blocks, and may be called on several threads at once."""

    def ls(self, path: str, detail: bool = True) -> list[dict[str, Any]]: ...
    def find(self, path: str, withdirs: bool = False, detail: bool = False) -> dict[str, dict[str, Any]]: ...
    def info(self, path: str) -> dict[str, Any]: ...
    def get_file(self, rpath: str, lpath: str, callback: object = ...) -> None: ...
    def invalidate_cache(self, path: str | None = None) -> None: ...


OpenFileSystem = Callable[[Address, Credential], FileSystem]


def open_filesystem(address: Address, credential: Credential) -> FileSystem:
    """The filesystem of a store.

    Raises:
        UnsupportedError: its package is not installed.
        InternalError: it cannot be used; the text has no credentials.
    """
    name, extra = _STORES[address.scheme]
    missing = UnsupportedError(
        f"repositories of {address.scheme}:// need packages that are not installed: pip install 'merrow[{extra}]'"
    )
    try:
        import fsspec
    except ImportError:
        raise missing from None
    try:
        filesystem: FileSystem = fsspec.filesystem(
            name, skip_instance_cache=True, use_listings_cache=False, **_options(address, credential)
        )
    except ImportError:
        raise missing from None
    except Exception as error:
        raise InternalError(f"cannot use {address.scheme}://: {describe_error(error, credential)}") from None
    return filesystem


def describe_error(error: BaseException, credential: Credential) -> str:
    """What a store's package says went wrong, on one line and without secrets."""
    text = printable(" ".join(str(error).split())) or type(error).__name__
    for secret in credential.secrets():
        text = text.replace(secret, "***")
    return text


def byte_counter(report: Callable[[int], None]) -> object:
    """What `FileSystem.get_file` takes as `callback`, and tells of the bytes that have come since it last did."""
    from fsspec.callbacks import Callback

    class Counter(Callback):  # type: ignore[misc]  # the package has no types
        def relative_update(self, inc: int = 1) -> None:
            report(inc)

    return Counter()


def _options(address: Address, credential: Credential) -> Mapping[str, Any]:
    options: dict[str, Any] = {}
    if address.scheme == "s3":
        client: dict[str, Any] = {}
        if address.endpoint:
            options["endpoint_url"] = address.endpoint
        if credential.region:
            client["region_name"] = credential.region
        if client:
            options["client_kwargs"] = client
        for name, value in (
            ("key", credential.key_id),
            ("secret", credential.secret_key),
            ("token", credential.session_token),
            ("profile", credential.profile),
        ):
            if value:
                options[name] = value
    elif address.scheme == "gs" and credential.key_file:
        options["token"] = credential.key_file
    elif address.scheme == "as":
        options["account_name"] = address.account or credential.account
        if credential.account_key:
            options["account_key"] = credential.account_key
        else:
            # The machine's own identity, or whoever is logged in.
            options["anon"] = False
    return options
