import builtins

import fsspec
import pytest

from merrow.core.errors import InternalError, UnsupportedError
from merrow.repository.remote import filesystems
from merrow.repository.remote.address import parse
from merrow.repository.remote.credentials import NO_CREDENTIAL, Credential

SECRET = Credential(
    key_id="AK", secret_key="SECRET", session_token="TOKEN", region="eu-west-1", profile="team", account_key="KEY"
)


@pytest.fixture
def opened(monkeypatch):
    """What fsspec is asked to open."""
    calls = []
    monkeypatch.setattr(fsspec, "filesystem", lambda name, **options: calls.append((name, options)))
    return calls


@pytest.mark.parametrize(
    ("repository", "credential", "name", "options"),
    [
        ("s3://bucket", NO_CREDENTIAL, "s3", {}),
        ("s3://https://host:9000/bucket", NO_CREDENTIAL, "s3", {"endpoint_url": "https://host:9000"}),
        (
            "s3://bucket",
            SECRET,
            "s3",
            {
                "client_kwargs": {"region_name": "eu-west-1"},
                "key": "AK",
                "secret": "SECRET",
                "token": "TOKEN",
                "profile": "team",
            },
        ),
        ("gs://bucket", NO_CREDENTIAL, "gcs", {}),
        ("gs://bucket", Credential(key_file="/key.json"), "gcs", {"token": "/key.json"}),
        ("as://account/container", NO_CREDENTIAL, "abfs", {"account_name": "account", "anon": False}),
        ("as://account/container", SECRET, "abfs", {"account_name": "account", "account_key": "KEY"}),
        ("hf://owner/repository", NO_CREDENTIAL, "hf", {}),
        ("https://host/models", NO_CREDENTIAL, "https", {}),
    ],
)
def test_stores_are_opened_with_what_is_known_of_them(opened, repository, credential, name, options):
    filesystems.open_filesystem(parse(repository), credential)

    assert opened == [(name, {"skip_instance_cache": True, "use_listings_cache": False, **options})]


def test_a_package_that_is_missing_is_named(monkeypatch):
    def refuse(name, **options):
        raise ImportError("no s3fs")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    with pytest.raises(UnsupportedError) as caught:
        filesystems.open_filesystem(parse("gs://bucket"), NO_CREDENTIAL)
    assert caught.value.message == (
        "repositories of gs:// need packages that are not installed: pip install 'merrow[gcs]'"
    )


def test_without_fsspec_the_extra_is_named(monkeypatch):
    real_import = builtins.__import__

    def refuse(name, *arguments):
        if name == "fsspec":
            raise ImportError(name)
        return real_import(name, *arguments)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(UnsupportedError, match=r"pip install 'merrow\[s3\]'"):
        filesystems.open_filesystem(parse("s3://bucket"), NO_CREDENTIAL)


def test_a_store_that_cannot_be_opened_tells_no_secret(monkeypatch):
    def refuse(name, **options):
        raise ValueError("bad SECRET\n  here")

    monkeypatch.setattr(fsspec, "filesystem", refuse)
    with pytest.raises(InternalError) as caught:
        filesystems.open_filesystem(parse("s3://bucket"), SECRET)
    assert caught.value.message == "cannot use s3://: bad *** here"


def test_an_error_without_a_text_has_its_name():
    assert filesystems.describe_error(TimeoutError(), NO_CREDENTIAL) == "TimeoutError"


def test_bytes_are_counted_as_they_come():
    counted = []
    counter = filesystems.byte_counter(counted.append)
    counter.relative_update(3)
    counter.relative_update(4)

    assert counted == [3, 4]
