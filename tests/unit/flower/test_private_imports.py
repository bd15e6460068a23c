"""Flower's private modules are imported in one package only, so that a new version breaks that."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PRIVATE = ("supercore", "superlink", "supernode", "proto", "cli", "server", "client", "common")
PUBLIC = {"flwr.common.logger"}
OURS = ROOT / "fedprune" / "flower"
FOLDERS = ("client_app", "server_app", "strategies", "fedprune", "docker", "scripts", "examples")


def imported(source: str) -> set[str]:
    """Return the modules that a file imports, wherever in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(name.name for name in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            if node.module == "flwr":
                found.update(f"flwr.{name.name}" for name in node.names)
    return found


def private(modules: set[str]) -> set[str]:
    """Return those that Flower keeps to itself."""
    roots = {f"flwr.{name}" for name in PRIVATE}
    return {name for name in modules - PUBLIC if ".".join(name.split(".")[:2]) in roots}


def test_only_one_package_imports_what_flower_keeps_to_itself():
    found = {
        str(path.relative_to(ROOT)): names
        for folder in FOLDERS
        for path in (ROOT / folder).rglob("*.py")
        if OURS not in path.parents
        and (names := private(imported(path.read_text(encoding="utf-8"))))
    }
    assert found == {}


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("from flwr.common.logger import log", set()),
        ("from flwr.app import Message", set()),
        ("def f():\n    from flwr.proto.node_pb2 import NodeInfo", {"flwr.proto.node_pb2"}),
        ("from flwr import supernode", {"flwr.supernode"}),
        ("import flwr.common.constant", {"flwr.common.constant"}),
    ],
)
def test_what_counts_as_private(line, expected):
    assert private(imported(line)) == expected


def test_every_file_says_what_happens_without_it():
    for path in OURS.glob("[!_]*.py"):
        said = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        assert "Without it:" in said, path.name
