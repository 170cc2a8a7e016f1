"""The import rules of the source, held by reading it: who may import whom, and who may touch the outside world.

A type-only or function-local import counts as any other. The table is the one of ARCHITECTURE.md.
"""

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCE = ROOT / "src"
PACKAGE = SOURCE / "merrow"

EFFECTS = {"asyncio", "threading", "multiprocessing", "socket", "subprocess", "time", "os", "logging", "random"}

# Which modules of ours a package may import, by prefix. A prefix covers the module of that name and all below it.
MAY_IMPORT: dict[str, tuple[str, ...]] = {
    "core": ("core", "settings"),
    "settings": ("core",),
    "wire": ("core", "settings", "wire"),
    "schedule": ("core", "settings", "schedule"),
    "observe": ("core", "settings", "observe"),
    "net": ("core", "settings", "wire.http2", "observe", "net"),
    "repository": ("core", "settings", "wire", "repository"),
    "backends": ("core", "settings", "observe", "backends.base"),
    "places": ("core", "settings", "observe", "backends.base", "places"),
    "engine": ("core", "settings", "schedule", "repository", "observe", "places", "backends.base", "engine"),
    # `engine.model` is what `Engine.find_model` gives.
    "frontends": ("core", "settings", "wire", "net", "observe", "engine.engine", "engine.model"),
    "testing": ("",),
    "front_doors": ("core", "settings", "wire", "net", "observe", "engine.engine", "frontends"),
    "server": (
        "core",
        "settings",
        "wire",
        "schedule",
        "observe",
        "net",
        "repository",
        "backends",
        "places",
        "engine",
        "frontends",
        "front_doors",
    ),
    "cli": (
        "core",
        "settings",
        "wire",
        "schedule",
        "observe",
        "net",
        "repository",
        "backends",
        "places",
        "engine",
        "frontends",
        "front_doors",
        "server",
        "cli",
    ),
    "__main__": ("cli",),
}

# What single modules may import besides.
MAY_ALSO_IMPORT: dict[str, tuple[str, ...]] = {
    # A model's process knows the backends by name.
    "places.process.child": ("backends.registry",),
    # These say the version.
    "cli.main": ("__init__",),
    "cli.server_process": ("__init__",),
    "testing.running_server": ("__init__",),
}

# Packages that decide, and so have no clock, socket, thread or task, and the installed packages they may use.
PURE: dict[str, set[str]] = {
    "core": {"numpy"},
    "settings": set(),
    "wire": {"numpy", "orjson", "google", "hpack"},
    "schedule": set(),
}

# Packages that not every installation has: imported in one module each, which names them in its error.
OPTIONAL = {"fsspec", "onnxruntime", "opentelemetry", "redis", "uvloop"}

# Only these modules of the repository use the disk: the one that reads it, and the one that keeps copies on it.
DISK_USERS = ("repository.scan", "repository.remote.store")
DISK = {"os", "io", "glob", "shutil", "tempfile"}


@dataclass(frozen=True)
class Import:
    """One import statement: what is imported, from where, and the names taken from it."""

    line: int
    target: str
    names: tuple[str, ...] = ()
    is_relative: bool = False


@dataclass(frozen=True)
class Module:
    """A module of the source, by its name below `merrow` ("wire.infer_json"; the package itself is "__init__")."""

    name: str
    path: Path
    tree: ast.Module
    imports: tuple[Import, ...]

    @property
    def package(self) -> str:
        return self.name.partition(".")[0]

    def place(self, line: int) -> str:
        return f"{self.path.relative_to(ROOT)}:{line}"


def read_module(path: Path) -> Module:
    parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
    if parts[-1] == "__init__" and len(parts) > 1:
        parts.pop()
    tree = ast.parse(path.read_text(), str(path))
    imports: list[Import] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imports += [Import(node.lineno, alias.name) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = tuple(alias.name for alias in node.names)
            imports.append(Import(node.lineno, node.module or "", names, is_relative=node.level > 0))
    return Module(".".join(parts), path, tree, tuple(imports))


MODULES = {module.name: module for module in map(read_module, sorted(PACKAGE.rglob("*.py")))}


def own_targets(module: Module) -> Iterator[tuple[int, str]]:
    """The modules of ours that a module imports: `from merrow.wire import x` means `wire.x` where that is a module."""
    for each in module.imports:
        if each.target != "merrow" and not each.target.startswith("merrow."):
            continue
        below = each.target.partition(".")[2]
        submodules = [f"{below}.{name}" if below else name for name in each.names]
        known = [name for name in submodules if name in MODULES]
        for name in known or [below or "__init__"]:
            yield each.line, name


def is_covered(name: str, prefixes: tuple[str, ...]) -> bool:
    return any(not prefix or name == prefix or name.startswith(f"{prefix}.") for prefix in prefixes)


def allowed_targets(module: Module) -> tuple[str, ...]:
    allowed = MAY_IMPORT[module.package] + MAY_ALSO_IMPORT.get(module.name, ())
    parts = module.name.split(".")
    if module.package == "backends":
        # A backend of several modules is a package of its own; the registry names them all.
        if module.name == "backends.registry":
            allowed += ("backends",)
        elif len(parts) > 2:
            allowed += (".".join(parts[:2]),)
    if module.package == "frontends":
        allowed += (".".join(parts[:2]),)
    return allowed


def every_module(*packages: str) -> list[Module]:
    return [module for module in MODULES.values() if not packages or module.package in packages]


def test_the_source_was_found():
    assert "core.tensor" in MODULES


def test_every_package_has_a_rule():
    packages = {module.package for module in MODULES.values()} - {"__init__"}

    assert packages <= set(MAY_IMPORT)


def test_modules_import_only_what_their_package_may():
    wrong = [
        f"{module.place(line)}: {module.name} imports {target}"
        for module in every_module()
        if module.name != "__init__"
        for line, target in own_targets(module)
        if not is_covered(target, allowed_targets(module))
    ]

    assert wrong == []


def test_nothing_in_the_source_imports_the_test_helpers():
    wrong = [
        module.place(line)
        for module in every_module()
        if module.package != "testing"
        for line, target in own_targets(module)
        if is_covered(target, ("testing",))
    ]

    assert wrong == []


def test_no_imports_go_in_circles():
    graph = {module.name: {target for _, target in own_targets(module)} for module in every_module()}
    finished: set[str] = set()

    def visit(name: str, path: tuple[str, ...]) -> None:
        assert name not in path, " -> ".join((*path[path.index(name) :], name))
        if name not in finished:
            for target in sorted(graph.get(name, ())):
                visit(target, (*path, name))
            finished.add(name)

    for name in graph:
        visit(name, ())


def test_packages_that_decide_have_no_effects():
    wrong = [
        f"{module.place(each.line)}: {module.name} imports {each.target}"
        for module in every_module(*PURE)
        for each in module.imports
        if each.target.partition(".")[0] in EFFECTS
    ]

    assert wrong == []


def test_packages_that_decide_use_few_installed_packages():
    wrong = [
        f"{module.place(each.line)}: {module.name} imports {each.target}"
        for module in every_module(*PURE)
        for each in module.imports
        if (top := each.target.partition(".")[0]) != "merrow"
        and top not in sys.stdlib_module_names
        and top not in PURE[module.package]
    ]

    assert wrong == []


def test_few_modules_of_the_repository_use_the_disk():
    wrong = []
    for module in every_module("repository"):
        if module.name in DISK_USERS:
            continue
        wrong += [module.place(each.line) for each in module.imports if each.target in DISK]
        wrong += [
            module.place(node.lineno)
            for node in ast.walk(module.tree)
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "open"
        ]

    assert wrong == []


@pytest.mark.parametrize("package", sorted(OPTIONAL))
def test_an_optional_package_is_imported_in_one_module(package):
    importers = {
        module.name
        for module in every_module()
        if any(each.target.partition(".")[0] == package for each in module.imports)
    }

    assert len(importers) == 1


def test_init_files_are_empty_but_the_first():
    wrong = [
        str(path.relative_to(ROOT))
        for path in sorted(PACKAGE.rglob("__init__.py"))
        if path.parent not in (PACKAGE, PACKAGE / "wire" / "_generated") and path.read_text().strip()
    ]

    assert wrong == []


def test_every_folder_of_modules_is_a_package():
    folders = {path.parent for path in PACKAGE.rglob("*.py")}

    assert [str(folder) for folder in sorted(folders) if not (folder / "__init__.py").exists()] == []


def test_imports_are_absolute():
    assert [m.place(each.line) for m in every_module() for each in m.imports if each.is_relative] == []


def test_no_module_takes_a_private_name_of_another():
    wrong = []
    for module in every_module():
        for each in module.imports:
            if each.target.partition(".")[0] != "merrow":
                continue
            owner = each.target.removeprefix("merrow").lstrip(".")
            # A private module or package may be used by its neighbours: `wire._generated` by `wire`.
            private = [part for part in owner.split(".") if part.startswith("_") and part != "__init__"]
            if private and not is_covered(module.name, (owner.partition(f".{private[0]}")[0],)):
                wrong.append(f"{module.place(each.line)}: {each.target}")
            wrong += [
                f"{module.place(each.line)}: {name}"
                for name in each.names
                if name.startswith("_") and not name.startswith("__") and f"{owner}.{name}" not in MODULES
            ]

    assert wrong == []


def test_names_say_what_a_module_is_about():
    vague = {"utils", "util", "helpers", "helper", "common", "misc", "manager", "tools"}

    assert [name for name in MODULES if vague & set(name.split("."))] == []
