"""Repositories that are not on this machine: a server on a real S3-compatible one, which moto runs here, and others."""

import functools
import http.server
import os
import shutil
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import tritonclient.http

from merrow.testing.repository_builder import PYTHON_IDENTITY_SOURCE, model_config, python_config
from merrow.testing.running_server import RunningServer, ServerStartError
from tests.e2e.fake_hub import fake_hub
from tests.oracle.server_process import free_ports

pytestmark = pytest.mark.slow

TENSORS = ([("IN", "FP32", (2,))], [("OUT", "FP32", (2,))])
IDENTITY = model_config("m", "identity", *TENSORS, 4)
PYTHON = python_config("p", *TENSORS, 4)
SOURCE = PYTHON_IDENTITY_SOURCE.replace('"INPUT", "OUTPUT"', '"IN", "OUT"')
CREDENTIALS = {"AWS_ACCESS_KEY_ID": "AKIDEXAMPLE", "AWS_SECRET_ACCESS_KEY": "do-not-log-this-key"}
EXPLICIT = "--model-control-mode=explicit"


class Bucket:
    """A bucket of an S3-compatible server in a process of its own."""

    def __init__(self, port, bucket):
        boto3 = pytest.importorskip("boto3")
        self.url = f"s3://http://127.0.0.1:{port}/{bucket}"
        self._client = boto3.client(
            "s3",
            endpoint_url=f"http://127.0.0.1:{port}",
            region_name="us-east-1",
            aws_access_key_id="a",
            aws_secret_access_key="b",
        )
        self._bucket = bucket
        self._client.create_bucket(Bucket=bucket)

    def put(self, key, content):
        self._client.put_object(Bucket=self._bucket, Key=key, Body=content)

    def delete(self, *keys):
        for key in keys:
            self._client.delete_object(Bucket=self._bucket, Key=key)

    def close(self):
        self._client.close()


def wait_until_answering(process, url):
    deadline = time.monotonic() + 60
    while True:
        assert process.poll() is None, "the store ended"
        try:
            urllib.request.urlopen(url).close()
            return
        except urllib.error.HTTPError as error:
            error.close()
            return
        except OSError:
            assert time.monotonic() < deadline, "the store does not start"
            # Nothing tells when it listens.
            time.sleep(0.1)


@contextmanager
def store_process(arguments, url):
    """A store in a process of its own."""
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL
    )
    try:
        wait_until_answering(process, url)
        yield
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def s3_port() -> Iterator[int]:
    pytest.importorskip("moto")
    pytest.importorskip("s3fs")
    port = free_ports().http
    moto = [sys.executable, "-c", "from moto.server import main; main()", "-H", "127.0.0.1", "-p", str(port)]
    with store_process(moto, f"http://127.0.0.1:{port}/"):
        yield port


@pytest.fixture
def bucket(s3_port, tmp_path) -> Iterator[Bucket]:
    # Bucket names have rules of their own.
    bucket = Bucket(s3_port, f"bucket-{abs(hash(tmp_path)) % 10**9}")
    try:
        yield bucket
    finally:
        bucket.close()


def serve(repository, tmp_path, *flags, **environment):
    return RunningServer(
        None,
        f"--model-repository={repository}",
        f"--remote-cache-directory={tmp_path / 'cache'}",
        *flags,
        environment={"AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true", **environment},
    )


def ask(server, name):
    client = tritonclient.http.InferenceServerClient(server.http_url, network_timeout=60, connection_timeout=60)
    try:
        given = tritonclient.http.InferInput("IN", [1, 2], "FP32")
        given.set_data_from_numpy(np.array([[5, 6]], np.float32))
        return client.infer(name, [given]).as_numpy("OUT").tolist()
    finally:
        client.close()


def manage(server, action, *arguments):
    client = tritonclient.http.InferenceServerClient(server.http_url, network_timeout=60, connection_timeout=60)
    try:
        return getattr(client, action)(*arguments)
    finally:
        client.close()


def copies(tmp_path):
    return sorted(os.listdir(tmp_path / "cache" / "models"))


def test_a_bucket_is_served_and_followed(bucket, tmp_path):
    bucket.put("models/m/config.pbtxt", IDENTITY)
    bucket.put("models/m/1/", b"")
    bucket.put("models/p/config.pbtxt", PYTHON)
    bucket.put("models/p/1/model.py", SOURCE)
    bucket.put("models/p/1/weights", b"w" * 100_000)
    flags = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with serve(f"{bucket.url}/models", tmp_path, *flags, **CREDENTIALS) as server:
        assert ask(server, "m") == ask(server, "p") == [[5, 6]]
        assert "3 of 3 files were new" in server.log
        # Only what changed is copied, and the model is loaded again.
        bucket.put("models/p/1/model.py", SOURCE + "\n# changed\n")
        server.wait_for_log("successfully loaded 'p' version 1", line_count=2)
        server.wait_for_log("1 of 3 files were new")
        server.wait_for_log("successfully unloaded 'p' version 1")
        assert ask(server, "p") == [[5, 6]]
        bucket.delete("models/m/config.pbtxt", "models/m/1/")
        server.wait_for_log("successfully unloaded 'm' version 1")
        index = manage(server, "get_model_repository_index")
        assert [(entry["name"], entry["state"]) for entry in index] == [("p", "READY")]
        server.stop()
        assert not any(secret in server.log for secret in CREDENTIALS.values())
    assert copies(tmp_path) == []
    # Another start finds everything here.
    with serve(f"{bucket.url}/models", tmp_path, **CREDENTIALS) as server:
        assert "0 of 3 files were new" in server.log


def test_models_of_a_bucket_are_loaded_and_unloaded(bucket, tmp_path):
    bucket.put("m/config.pbtxt", IDENTITY)
    bucket.put("m/1/", b"")
    credentials = tmp_path / "credentials.json"
    credentials.write_text('{"s3": {"": {"key_id": "AKIDEXAMPLE", "secret_key": "do-not-log-this-key"}}}')
    environment = {"TRITON_CLOUD_CREDENTIAL_PATH": str(credentials)}
    with serve(bucket.url, tmp_path, EXPLICIT, **environment) as server:
        assert [entry["name"] for entry in manage(server, "get_model_repository_index")] == ["m"]
        manage(server, "load_model", "m")
        # Nothing has changed, so nothing is copied.
        manage(server, "load_model", "m")
        assert ask(server, "m") == [[5, 6]]
        assert len(copies(tmp_path)) == 1
        manage(server, "unload_model", "m")
        server.wait_for_log("successfully unloaded 'm' version 1")
        with pytest.raises(Exception, match="failed to load 'n', failed to poll from model repository"):
            manage(server, "load_model", "n")
        server.stop()
        assert "do-not-log-this-key" not in server.log
    assert copies(tmp_path) == []


def test_a_bucket_that_is_not_there_ends_the_start(bucket, tmp_path):
    with pytest.raises(ServerStartError, match=r"failed to read s3://.*-missing: The specified bucket does not exist"):
        serve(f"{bucket.url}-missing", tmp_path, **CREDENTIALS).__enter__()


def check_that_it_is_served_and_followed(url, put, tmp_path, **environment):
    """Put the models of a repository there, serve it, and change one."""
    put("models/m/config.pbtxt", IDENTITY.encode())
    put("models/m/1/data", b"x")
    put("models/p/config.pbtxt", PYTHON.encode())
    put("models/p/1/model.py", SOURCE.encode())
    flags = ("--model-control-mode=poll", "--repository-poll-secs=1")
    with serve(url, tmp_path, *flags, **environment) as server:
        assert ask(server, "m") == ask(server, "p") == [[5, 6]]
        put("models/p/1/model.py", SOURCE.encode() + b"\n# changed\n")
        server.wait_for_log("successfully loaded 'p' version 1", line_count=2)
        assert server.log.count("1 of 2 files were new") == 1
        server.stop()
        assert not any(secret in server.log for secret in environment.values() if "Key" in secret)
    assert copies(tmp_path) == []


def test_a_google_bucket_is_served(tmp_path):
    pytest.importorskip("gcp_storage_emulator")
    pytest.importorskip("gcsfs")
    port = free_ports().http
    base = f"http://127.0.0.1:{port}"

    def put(key, content):
        name = urllib.parse.quote(key, safe="")
        request = urllib.request.Request(
            f"{base}/upload/storage/v1/b/bucket/o?uploadType=media&name={name}",
            data=content,
            headers={"Content-Type": "application/octet-stream"},
            method="POST",
        )
        urllib.request.urlopen(request).close()

    emulator = [sys.executable, "-m", "gcp_storage_emulator", "start", "--host=127.0.0.1", f"--port={port}"]
    with store_process([*emulator, "--in-memory", "--default-bucket=bucket"], f"{base}/storage/v1/b"):
        environment = {"STORAGE_EMULATOR_HOST": base}
        check_that_it_is_served_and_followed("gs://bucket/models", put, tmp_path, **environment)


# The account of Azure's emulator, as its documentation publishes it.
AZURITE_ACCOUNT = "devstoreaccount1"
AZURITE_KEY = "Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw=="


def test_an_azure_container_is_served(tmp_path):
    azurite = shutil.which("azurite-blob")
    if azurite is None:
        pytest.skip("there is no azurite-blob (npm package azurite)")
    blob = pytest.importorskip("azure.storage.blob")
    pytest.importorskip("adlfs")
    port = free_ports().http
    base = f"http://127.0.0.1:{port}"
    connection = (
        f"DefaultEndpointsProtocol=http;AccountName={AZURITE_ACCOUNT};AccountKey={AZURITE_KEY};"
        f"BlobEndpoint={base}/{AZURITE_ACCOUNT};"
    )

    def put(key, content):
        client.get_blob_client("container", key).upload_blob(content, overwrite=True)

    data = tmp_path / "azurite"
    flags = ["--silent", "--skipApiVersionCheck", "--blobHost", "127.0.0.1", "--blobPort", str(port)]
    with (
        store_process([azurite, *flags, "--location", str(data)], base),
        blob.BlobServiceClient.from_connection_string(connection) as client,
    ):
        client.create_container("container")
        check_that_it_is_served_and_followed(
            f"as://{AZURITE_ACCOUNT}/container/models", put, tmp_path, AZURE_STORAGE_CONNECTION_STRING=connection
        )


def test_a_repository_of_the_hub_is_served(tmp_path):
    pytest.importorskip("huggingface_hub")
    files = {}
    with fake_hub(files) as endpoint:
        check_that_it_is_served_and_followed(
            "hf://owner/repository/models", files.__setitem__, tmp_path, HF_ENDPOINT=endpoint, HF_HOME=str(tmp_path)
        )


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        pass


def test_a_web_server_s_directory_is_served(tmp_path):
    pytest.importorskip("aiohttp")
    root = tmp_path / "www"
    for path, content in (
        ("models/m/config.pbtxt", IDENTITY.encode()),
        ("models/m/1/data", b"x"),
        ("models/p/config.pbtxt", PYTHON.encode()),
        ("models/p/1/model.py", SOURCE.encode()),
    ):
        file = root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(content)
    web = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(root)))
    thread = threading.Thread(target=web.serve_forever)
    thread.start()
    try:
        url = f"http://127.0.0.1:{web.server_address[1]}/models"
        flags = ("--model-control-mode=poll", "--repository-poll-secs=1")
        with serve(url, tmp_path, *flags) as server:
            assert ask(server, "m") == ask(server, "p") == [[5, 6]]
            Path(root, "models/p/1/model.py").write_text(SOURCE + "\n# changed\n")
            server.wait_for_log("successfully loaded 'p' version 1", line_count=2)
            assert "copied 'http://127.0.0.1" in server.log
    finally:
        web.shutdown()
        web.server_close()
        thread.join()
