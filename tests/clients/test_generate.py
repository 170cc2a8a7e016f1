"""generate and generate_stream against a running server: by curl over HTTP/1.1 and HTTP/2, and by bare sockets."""

import json
import shutil
import socket
import subprocess
import urllib.request
from pathlib import Path

import pytest

from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer

pytestmark = pytest.mark.slow

# Sends what it is told, one response after another; `err` makes one of them an error. Until its client leaves, if told.
TALKER = """\
import json
import time

import numpy as np
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args):
        self.was_cancelled = False

    def execute(self, requests):
        for request in requests:
            wanted = json.loads(pb_utils.get_input_tensor_by_name(request, "text").as_numpy()[0])
            sender = request.get_response_sender()
            if wanted == "was cancelled":
                send(sender, str(self.was_cancelled))
            elif wanted == "for ever":
                while not request.is_cancelled():
                    send(sender, "x" * 100_000)
                self.was_cancelled = True
            else:
                for word in wanted:
                    send(sender, word)
            sender.send(flags=pb_utils.TRITONSERVER_RESPONSE_COMPLETE_FINAL)


def send(sender, word):
    if word.startswith("error:"):
        sender.send(pb_utils.InferenceResponse(error=pb_utils.TritonError(word)))
    else:
        sender.send(pb_utils.InferenceResponse([pb_utils.Tensor("word", np.array([word.encode()], object))]))
"""
CONFIG = """\
backend: "python"
model_transaction_policy { decoupled: true }
input { name: "text" data_type: TYPE_STRING dims: [ 1 ] }
output { name: "word" data_type: TYPE_STRING dims: [ 1 ] }
instance_group { kind: KIND_CPU }
"""


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    repository = RepositoryBuilder(tmp_path_factory.mktemp("generate"))
    repository.add("talker", CONFIG, {"1/model.py": TALKER})
    repository.add_identity("identity", dims=(-1,))
    with RunningServer(repository.path) as running:
        yield running


def event(word):
    content = (
        {"error": word} if word.startswith("error:") else {"model_name": "talker", "model_version": "1", "word": word}
    )
    return f"data: {json.dumps(content, separators=(',', ':'))}\n\n"


def curl(server, action, body, *options):
    url = f"http://{server.http_url}/v2/models/{action}"
    argv = ["curl", "-sS", "--no-buffer", "-i", "--max-time", "20", "-H", "Expect:", *options, "-d", "@-", url]
    answer = subprocess.run(argv, input=json.dumps(body), check=True, capture_output=True, text=True).stdout
    head, _, content = answer.partition("\n\n") if "\r\n\r\n" not in answer else answer.partition("\r\n\r\n")
    return head.replace("\r", "").splitlines(), content


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
@pytest.mark.parametrize("protocol", ["--http1.1", "--http2-prior-knowledge"])
class TestCurl:
    def test_a_stream_of_events(self, server, protocol):
        words = ["a", "error: b", 'c "d"']
        head, content = curl(server, "talker/generate_stream", {"text": json.dumps(words)}, protocol)

        assert head[0].split()[1] == "200"
        assert "content-type: text/event-stream; charset=utf-8" in [line.lower() for line in head]
        assert content == "".join(map(event, words))

    def test_a_stream_without_responses(self, server, protocol):
        head, content = curl(server, "talker/generate_stream", {"text": "[]"}, protocol)

        assert (head[0].split()[1], content) == ("200", "")

    def test_a_stream_that_begins_with_an_error(self, server, protocol):
        words = ["error: a", "b"]
        head, content = curl(server, "talker/generate_stream", {"text": json.dumps(words)}, protocol)

        assert (head[0].split()[1], content) == ("400", "".join(map(event, words)))

    def test_one_object(self, server, protocol):
        head, content = curl(server, "identity/generate", {"INPUT0": [1, 2.5], "id": "x"}, protocol)

        assert head[0].split()[1] == "200"
        assert content.startswith('{"OUTPUT0":[1.0,2.5],"id":"x","model_name":"identity","model_version":"1",')
        # The backend's parameters.
        assert json.loads(content)["param1"] == 42

    def test_what_is_wrong(self, server, protocol):
        head, content = curl(server, "identity/generate", {"INPUT0": "x"}, protocol)

        assert head[0].split()[1] == "500"
        assert content == '{"error":"Unable to parse \'data\': attempt to access JSON non-number as double"}'

    def test_a_slow_reader_gets_everything(self, server, protocol):
        words = ["w" * 10_000] * 300
        _, content = curl(
            server, "talker/generate_stream", {"text": json.dumps(words)}, protocol, "--limit-rate", "20M"
        )

        assert content == event(words[0]) * 300


def ask(server, text):
    body = json.dumps({"text": json.dumps(text)}).encode()
    url = f"http://{server.http_url}/v2/models/talker/generate"
    with urllib.request.urlopen(urllib.request.Request(url, data=body), timeout=20) as answer:
        return json.load(answer)["word"]


def test_a_connection_is_used_again(server):
    host, port = server.http_url.split(":")
    body = json.dumps({"text": '["a"]'})
    request = f"POST /v2/models/talker/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        for _ in range(3):
            connection.sendall(request.encode())
            answer = b""
            while not answer.endswith(b"0\r\n\r\n"):
                answer += connection.recv(65536)
            assert answer.startswith(b"HTTP/1.1 200 OK\r\n")
            assert b"data: " in answer


def test_a_client_that_leaves_ends_the_model_s_work(server):
    """A model that never ends by itself, and a client that reads a little and goes: both held back and cancelled."""
    host, port = server.http_url.split(":")
    body = json.dumps({"text": '"for ever"'})
    request = f"POST /v2/models/talker/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request.encode())
        assert connection.recv(65536).startswith(b"HTTP/1.1 200 OK\r\n")
    # The only instance answers the next request, so it has left the endless one.
    assert ask(server, "was cancelled") == "True"


@pytest.mark.skipif(shutil.which("curl") is None, reason="there is no curl")
def test_a_client_that_resets_its_stream_ends_the_model_s_work(server):
    url = f"http://{server.http_url}/v2/models/talker/generate_stream"
    argv = ["curl", "-sS", "--http2-prior-knowledge", "--max-time", "0.5", "--max-filesize", "300000", "-d", "@-", url]
    body = json.dumps({"text": '"for ever"'})
    answer = subprocess.run([*argv, "-o", "/dev/null"], input=body, capture_output=True, text=True)

    # It ran into one of its limits.
    assert answer.returncode in (28, 63)
    assert ask(server, "was cancelled") == "True"


def test_the_server_stays_small_while_a_client_does_not_read(server):
    host, port = server.http_url.split(":")
    body = json.dumps({"text": '"for ever"'})
    request = f"POST /v2/models/talker/generate_stream HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n\r\n{body}"
    before = resident_byte_size(server.pid)
    with socket.create_connection((host, int(port)), timeout=20) as connection:
        connection.sendall(request.encode())
        connection.recv(1)
        # What a client that reads takes meanwhile, of another model.
        for _ in range(20):
            curl(server, "identity/generate", {"INPUT0": [0.0] * 1000})
        assert resident_byte_size(server.pid) - before < 100 * 1024 * 1024
    assert ask(server, "was cancelled") == "True"


def resident_byte_size(pid):
    fields = Path(f"/proc/{pid}/statm").read_text().split()
    return int(fields[1]) * 4096
