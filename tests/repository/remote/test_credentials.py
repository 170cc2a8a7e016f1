import json

import pytest

from merrow.core.errors import InvalidArgumentError
from merrow.repository.remote.credentials import NO_CREDENTIAL, Credential, parse_credentials

CONTENT = {
    "s3": {
        "": {"key_id": "AK", "secret_key": "SECRET", "region": "eu-west-1"},
        "s3://bucket": {"profile": "team"},
        "s3://bucket/deep": {"key_id": "DEEP", "secret_key": "HIDDEN", "session_token": "TOKEN"},
    },
    "gs": {"gs://bucket": "/keys/bucket.json"},
    "as": {"": {"account_str": "account", "account_key": "KEY"}},
}


def test_the_longest_beginning_counts():
    credentials = parse_credentials(json.dumps(CONTENT))

    assert credentials.find("s3", "s3://other/m") == Credential(key_id="AK", secret_key="SECRET", region="eu-west-1")
    assert credentials.find("s3", "s3://bucket/m") == Credential(profile="team")
    assert credentials.find("s3", "s3://bucket/deep/m").key_id == "DEEP"
    assert credentials.find("gs", "gs://bucket/m") == Credential(key_file="/keys/bucket.json")
    assert credentials.find("gs", "gs://other/m") == NO_CREDENTIAL
    assert credentials.find("as", "as://account/c") == Credential(account="account", account_key="KEY")
    assert credentials.find("hf", "hf://o/r") == NO_CREDENTIAL


def test_secrets_are_not_printed():
    credential = parse_credentials(json.dumps(CONTENT)).find("s3", "s3://bucket/deep")

    assert credential.secrets() == ("DEEP", "HIDDEN", "TOKEN")
    assert not any(secret in repr(credential) for secret in credential.secrets())


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("{", "is not JSON"),
        ("[]", "must hold an object"),
        ('{"ftp":{}}', "has no stores but as, gs, s3"),
        ('{"s3":[]}', "must hold an object for 's3'"),
        ('{"s3":{"":{"key":"SECRET"}}}', "must hold objects with texts for key_id, secret_key"),
        ('{"as":{"":{"account_key":5}}}', "must hold objects with texts for account_str, account_key for 'as'"),
        ('{"gs":{"":{}}}', "must hold paths of key files for 'gs'"),
    ],
)
def test_another_form_is_refused_without_showing_it(text, expected):
    with pytest.raises(InvalidArgumentError) as caught:
        parse_credentials(text)
    assert expected in caught.value.message
    assert "SECRET" not in caught.value.message
