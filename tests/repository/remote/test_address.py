import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.repository.remote import address
from merrow.repository.remote.address import Address


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket", Address("s3", "bucket")),
        ("s3://bucket/some//path/", Address("s3", "bucket/some/path")),
        ("s3://localhost:9000/bucket/path", Address("s3", "bucket/path", endpoint="http://localhost:9000")),
        ("s3://https://minio.here:443/bucket", Address("s3", "bucket", endpoint="https://minio.here:443")),
        ("s3://http://10.0.0.1:80/bucket/a/b/", Address("s3", "bucket/a/b", endpoint="http://10.0.0.1:80")),
        ("gs://bucket/path", Address("gs", "bucket/path")),
        ("as://account/container/path", Address("as", "container/path", account="account")),
        ("as://account.blob.core.windows.net/container", Address("as", "container", account="account")),
        ("hf://owner/repository", Address("hf", "owner/repository")),
        ("hf://owner/repository@v1/models", Address("hf", "owner/repository@v1/models")),
        ("https://host/models/", Address("https", "https://host/models")),
        ("http://host:81/m", Address("http", "http://host:81/m")),
    ],
)
def test_what_a_repository_s_name_says(text, expected):
    assert address.is_remote(text)
    assert address.parse(text) == expected


@pytest.mark.parametrize("text", ["/models", "models", "./s3", "s3:/bucket", "S3://bucket", "ftp://host/x", ""])
def test_everything_else_is_a_directory(text):
    assert not address.is_remote(text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://", "expected a bucket"),
        ("s3://https://host/bucket", "expected s3://https://host:port/bucket/path"),
        ("gs:///", "expected a bucket"),
        ("as://account", "expected as://account/container/path"),
        ("hf://owner", "expected hf://owner/repository/path"),
        ("http://", "expected a host"),
    ],
)
def test_what_is_missing_is_said(text, expected):
    with pytest.raises(InvalidArgumentError) as caught:
        address.parse(text)
    assert caught.value.message == f"repository '{text}' is incomplete: {expected}"


def test_names_are_joined_and_printed_without_passwords():
    assert address.join("s3://bucket/path/", "m") == "s3://bucket/path/m"
    assert address.printable("https://user:secret@host/m") == "https://***@host/m"
    assert address.printable("s3://bucket/a@b") == "s3://bucket/a@b"
    text = "no answer from https://host for a@b, nor from http://user:secret@host"
    assert address.printable(text) == "no answer from https://host for a@b, nor from http://***@host"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("s3://bucket/models/m/../env.tar.gz", "s3://bucket/models/env.tar.gz"),
        ("s3://http://host:1/bucket/m/./a/../../env", "s3://http://host:1/bucket/env"),
        ("/usr/bin/python3", "/usr/bin/python3"),
    ],
)
def test_names_are_brought_to_their_shortest_form(text, expected):
    assert address.collapse(text) == expected
