"""Settings from a file, from variables and from flags, in a real server."""

from pathlib import Path

import pytest
import tritonclient.http as client

from merrow.testing.repository_builder import RepositoryBuilder
from merrow.testing.running_server import RunningServer, ServerStartError

pytestmark = pytest.mark.slow


def test_each_source_has_its_say(tmp_path: Path):
    RepositoryBuilder(tmp_path / "models").add_identity()
    (tmp_path / "merrow.toml").write_text(
        f"""
id = "of the file"
model-repository = ["{tmp_path / "models"}"]
exit_timeout_secs = 5

[log]
verbose = 1
format = "ISO8601"

[model]
control-mode = "explicit"
"""
    )
    environment = {
        "MERROW_ID": "of the environment",
        "MERROW_LOAD_MODEL": '["identity"]',
        "MERROW_LOG_FORMAT": "default",
    }

    with RunningServer(None, f"--config={tmp_path / 'merrow.toml'}", environment=environment) as server:
        connection = client.InferenceServerClient(server.http_url)
        assert connection.get_server_metadata()["name"] == "of the environment"
        assert connection.is_model_ready("identity")
        settings = connection.get_log_settings()
        assert (settings["log_verbose_level"], settings["log_format"]) == (1, "default")
        connection.close()

    with RunningServer(
        None, f"--config={tmp_path / 'merrow.toml'}", "--id=of the flags", environment=environment
    ) as server:
        connection = client.InferenceServerClient(server.http_url)
        assert connection.get_server_metadata()["name"] == "of the flags"
        connection.close()


def test_a_file_with_a_mistake(tmp_path: Path):
    path = tmp_path / "merrow.toml"
    path.write_text('id = "x"\n\nhttp-prot = 8000\n')

    with pytest.raises(ServerStartError) as raised, RunningServer(None, f"--config={path}"):
        pass
    assert f"{path}:3: http-prot: unknown key; did you mean 'http-port'?" in str(raised.value)
