"""The documentation keeps up with the source: every flag, endpoint, method, metric and status has its row."""

import re
from pathlib import Path
from unittest.mock import Mock

import pytest

from merrow.cli.process_settings import PROCESS_SETTINGS
from merrow.cli.serve_flags import NO_EFFECT, SERVE_FLAGS
from merrow.core.errors import CODE_NAMES, ErrorCode
from merrow.front_doors import EXTENSIONS
from merrow.frontends.grpc import status as grpc_status
from merrow.frontends.grpc.methods import GrpcFrontend
from merrow.frontends.http import status as http_status
from merrow.frontends.http.routes import METHODS, resolve_target
from merrow.observe.model_families import MODEL_FAMILIES
from merrow.observe.server_families import SERVER_FAMILIES
from merrow.repository.remote import address
from merrow.repository.remote.credentials import parse_credentials
from merrow.wire._generated import grpc_service_pb2

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
# Flags of other commands, and the placeholder of all.
OTHER_FLAGS = {"check", "name", "once", "upgrade", "version"}
FRAGMENT = re.compile(r"[a-z0-9-]+\.(added|changed|fixed|removed)\.md")


def rows(path: Path) -> list[list[str]]:
    """The cells of every table row of a page, heads and rulers included."""
    lines = (line.strip() for line in path.read_text().splitlines())
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]


def code_spans(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


class TestFlags:
    def test_every_flag_has_a_row_and_its_standing(self):
        expected = {
            flag.name: "no effect" if flag.name in NO_EFFECT else "obeyed"
            for group in SERVE_FLAGS
            for flag in group.flags
        }

        documented = {
            cells[0].strip("`").removeprefix("--"): cells[1]
            for cells in rows(DOCS / "flags.md")
            if cells[0].startswith("`--")
        }

        assert documented == expected

    def test_every_group_has_its_heading(self):
        headings = re.findall(r"^## (.*)$", (DOCS / "flags.md").read_text(), re.MULTILINE)

        assert [group.heading for group in SERVE_FLAGS] == [each for each in headings if "nvironment" not in each]

    def test_flags_that_pages_mention_exist(self):
        names = {flag.name for group in SERVE_FLAGS for flag in group.flags} | OTHER_FLAGS
        unknown = {
            f"{page.name}: --{name}"
            for page in (ROOT / "README.md", ROOT / "ARCHITECTURE.md", *DOCS.rglob("*.md"))
            for name in re.findall(r"(?<![\w-])--([a-z][a-z0-9-]+)", page.read_text())
            if name not in names
        }

        assert unknown == set()


class TestVariables:
    def test_every_variable_of_the_environment_is_documented(self):
        source = "".join(path.read_text() for path in (ROOT / "src/merrow/cli").glob("*.py"))
        pages = "".join(path.read_text() for path in DOCS.rglob("*.md"))
        read = set(re.findall(r'"((?:AIP|AZURE|SAGEMAKER|TRITON|TRITONCACHE|TRITONSERVER)_[A-Z_]+)"', source))

        assert {name for name in read if f"`{name}" not in pages} == set()

    def test_every_setting_of_the_python_backend_is_documented(self):
        pages = "".join((DOCS / name).read_text() for name in ("python-models.md", "backends.md"))

        assert {name for name in PROCESS_SETTINGS if f"`{name}" not in pages} == set()


class TestRepositoriesElsewhere:
    def test_the_forms_that_are_named_are_understood(self):
        table = [cells for cells in rows(DOCS / "behaviour.md") if "://" in cells[0]]
        named = [span for cells in table for span in code_spans(cells[0])]

        assert {address.parse(name).scheme for name in named} == {"s3", "gs", "as", "hf", "http", "https"}
        assert all(address.is_remote(name) for name in named)

    def test_the_credential_file_is_understood(self):
        (text,) = re.findall(r"```json\n(.*?)```", (DOCS / "behaviour.md").read_text(), re.DOTALL)

        assert parse_credentials(text).find("s3", "s3://bucket/models").profile == "other"


class TestPythonModels:
    @pytest.mark.parametrize("name", ["test_one_request", "test_a_batch_and_an_error"])
    def test_tests_of_the_example_run_as_they_stand(self, name, monkeypatch):
        monkeypatch.chdir(ROOT)
        (source,) = re.findall(r"```python\n(import numpy.*?)```", (DOCS / "python-models.md").read_text(), re.DOTALL)
        namespace = {}
        exec(source, namespace)

        namespace[name]()


class TestProtocol:
    def test_every_endpoint_has_a_row(self):
        """Each documented path that works is tried; together they must reach all endpoints, with their methods."""
        reached = set()
        for cells in rows(DOCS / "protocol.md"):
            if len(cells) < 3 or cells[1] != "yes":
                continue
            for span in code_spans(cells[0]):
                method, _, path = span.partition(" ")
                if not path.startswith("/"):
                    continue
                for optional in ("", r"\1"):
                    concrete = re.sub(r"\[([^\]]*)\]", optional, path)
                    concrete = concrete.replace("{model}", "m").replace("{version}", "1").replace("{region}", "r")
                    target = resolve_target(concrete.encode())
                    assert target is not None, path
                    assert METHODS[target.endpoint] == method.encode(), path
                    reached.add(target.endpoint)

        assert reached == set(METHODS)

    def test_every_extension_has_a_row(self):
        documented = {cells[0].strip("`") for cells in rows(DOCS / "protocol.md") if len(cells) == 3}

        assert {*EXTENSIONS, "generate"} <= documented

    def test_the_tests_that_are_named_exist(self):
        """Every row of the page names one, by its path and perhaps the name of a function or class in it."""
        for cells in rows(DOCS / "protocol.md"):
            if len(cells) < 3 or cells[-1] == "test" or set(cells[-1]) <= {"-"}:
                continue
            names = code_spans(cells[-1])
            assert names, f"{cells[0]} has no test"
            for name in names:
                path, _, member = name.partition("::")
                file = ROOT / "tests" / path
                assert file.is_file(), name
                definition = rf"^(async )?(def|class) {member}\b"
                assert not member or re.search(definition, file.read_text(), re.MULTILINE), name

    def test_every_rpc_has_a_row_that_says_whether_it_works(self):
        frontend = GrpcFrontend(Mock(), Mock(), Mock(), settings=Mock())
        service = grpc_service_pb2.DESCRIPTOR.services_by_name["GRPCInferenceService"]

        documented = {
            span: cells[1] == "yes"
            for cells in rows(DOCS / "protocol.md")
            for span in code_spans(cells[0])
            if cells[1:]
        }

        for method in service.methods:
            path = f"/{service.full_name}/{method.name}".encode()
            assert documented.get(method.name) == (frontend.is_streaming(path) is not None), method.name


class TestMetrics:
    def test_every_family_has_a_row_with_its_type(self):
        expected = {family.name: family.type for family in (*MODEL_FAMILIES, *SERVER_FAMILIES)}

        documented = {
            cells[0].strip("`"): cells[1]
            for cells in rows(DOCS / "metrics.md")
            if cells[0].startswith(("`nv_", "`merrow_"))
        }

        assert documented == expected


class TestErrors:
    def test_every_code_has_a_row_with_both_statuses(self):
        documented = {
            cells[0]: (int(cells[1]), int(cells[2].split()[0]))
            for cells in rows(DOCS / "errors.md")
            if cells[0] in ErrorCode.__members__
        }

        assert documented == {
            code.name: (http_status.STATUSES[code], grpc_status.STATUSES[code]) for code in CODE_NAMES
        }


class TestPages:
    @pytest.mark.parametrize(
        "page",
        [*ROOT.glob("*.md"), *(ROOT / "examples").glob("*.md"), *DOCS.rglob("*.md")],
        ids=lambda page: str(page.relative_to(ROOT)),
    )
    def test_links_lead_somewhere(self, page):
        links = re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text())

        assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []

    def test_every_page_can_be_reached_from_the_readme(self):
        reached: set[Path] = set()
        waiting = [ROOT / "README.md"]
        while waiting:
            page = waiting.pop()
            if page in reached:
                continue
            reached.add(page)
            targets = [(page.parent / link).resolve() for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
            waiting += [target for target in targets if target.suffix == ".md"]
            # A link to a folder leads to its pages.
            waiting += [below for target in targets if target.is_dir() for below in target.glob("*.md")]

        assert {*DOCS.rglob("*.md"), *ROOT.glob("*.md")} - reached == set()

    def test_decisions_are_numbered_without_gaps(self):
        numbers = sorted(int(path.name[:4]) for path in (DOCS / "decisions").glob("*.md"))

        assert numbers == list(range(1, len(numbers) + 1))

    def test_a_decision_says_context_choice_and_cost(self):
        for path in (DOCS / "decisions").glob("*.md"):
            text = path.read_text()
            assert text.startswith(f"# {path.name[:4]}: "), path.name
            assert all(f"**{part}.**" in text for part in ("Context", "Choice", "Cost")), path.name

    def test_changes_are_named_by_kind(self):
        assert [path.name for path in (ROOT / "changelog.d").iterdir() if not FRAGMENT.fullmatch(path.name)] == []

    def test_the_commands_of_the_readme_are_in_the_makefile(self):
        makefile = (ROOT / "Makefile").read_text()

        for target in set(re.findall(r"\bmake ([a-z]+)\b", (ROOT / "README.md").read_text())):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target

    def test_ci_runs_the_test_command_of_the_readme(self):
        assert "make test" in (ROOT / "README.md").read_text()
        assert "exec make test" in (ROOT / ".ci" / "run").read_text()
