"""Within the recipes, too, a folder imports only from those below it."""

import ast
from pathlib import Path

import pytest

from brevitas_multiquant import recipes

PACKAGE = "brevitas_multiquant.recipes."
ROOT = Path(recipes.__path__[0])
FLOORS = ["errors", "options", "data", "results", "network", "run"]
FLOORS += ["evaluate", "export", "plot", "predict", "demo", "train", "search", "segment"]
FILES = {file.relative_to(ROOT).as_posix(): file for file in sorted(ROOT.rglob("*.py"))}


def floor_of(dotted):
    return FLOORS.index(dotted.removeprefix(PACKAGE).partition(".")[0])


@pytest.mark.parametrize("name", sorted(set(FILES) - {"__init__.py"}))
def test_imports_point_downwards(name):
    own = floor_of(name.removesuffix(".py").replace("/", "."))
    for node in ast.walk(ast.parse(FILES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.module.startswith(PACKAGE):
            assert floor_of(node.module) <= own, f"{name} imports {node.module}"


def test_nothing_asks_which_network_it_has():
    """A run asks its `Trainee`; only the parsers hand on all that was parsed."""
    for name, file in FILES.items():
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "isinstance":
                assert "MultiQuantNet" not in ast.unparse(node), name
            if isinstance(node, ast.FunctionDef) and not name.startswith("options/"):
                given = [ast.unparse(a.annotation) for a in node.args.args if a.annotation]
                assert not any("Namespace" in text for text in given), f"{name}: {node.name}"
