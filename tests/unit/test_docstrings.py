"""What others call says what it does: itself, or what it overrides does."""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = sorted(
    path for room in ("methods", "pruning") for path in (ROOT / "fedprune" / room).rglob("*.py")
)


def bases(node):
    named = (base.value if isinstance(base, ast.Subscript) else base for base in node.bases)
    return [base.id for base in named if isinstance(base, ast.Name)]


def test_a_public_method_has_a_docstring_or_overrides_one_that_has():
    classes = [
        (path, node)
        for path in FILES
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ClassDef)
    ]

    def told(name, method):
        nodes = [node for _, node in classes if node.name == name]
        parts = [one for node in nodes for one in node.body]
        own = [one for one in parts if isinstance(one, ast.FunctionDef) and one.name == method]
        above = {base for node in nodes for base in bases(node)} - {name}
        return any(map(ast.get_docstring, own)) or any(told(base, method) for base in above)

    silent = [
        f"{path.relative_to(ROOT)}: {node.name}.{one.name}"
        for path, node in classes
        for one in node.body
        if isinstance(one, ast.FunctionDef) and not node.name.startswith("_")
        if not one.name.startswith("_") and not told(node.name, one.name)
    ]
    assert not silent
    assert told("BlockExchange", "answer") and not told("BlockExchange", "__init__")
