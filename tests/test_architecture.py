"""Contracts of the package as a whole: floors, cycles, public names, documentation, imports."""

import ast
import inspect
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

import brevitas_multiquant

ROOT = Path(brevitas_multiquant.__file__).parent
PACKAGE = "brevitas_multiquant"

FLOORS = [
    ["errors", "version"],
    ["core"],
    ["quant"],
    ["nn"],
    ["rewrite"],
    ["cost"],
    ["profiles"],
    ["training"],
    ["methods"],
    ["storage"],
    ["export"],
    ["allocation"],
    ["recipes"],
    ["cli", "__main__"],
]
"""From the ground up: a file imports only from its own floor and those below."""
DOOR = "__init__"

PUBLIC = [
    "Allocation",
    "Assignment",
    "Budget",
    "InPlaceDistillation",
    "ModelSource",
    "MultiQuantConfig",
    "MultiQuantError",
    "MultiQuantNet",
    "Precision",
    "__version__",
    "allocate",
    "assigned_norms",
    "calibrate",
    "cost",
    "extract_subnet",
    "load_packed",
    "multiquantize",
    "objective_of",
    "reestimate_norms",
    "save_packed",
]


def modules():
    """Dotted name within the package -> file; a package goes by its own name."""
    found = {}
    for file in sorted(ROOT.rglob("*.py")):
        parts = file.relative_to(ROOT).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" and parts[:-1] else parts)] = file
    return found


MODULES = modules()


@cache
def imports_of(module):
    """Modules of the package that a module imports, anywhere in it, functions included."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[module].read_text())):
        names = []
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: expected absolute imports"
            names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
        for name in names:
            inner = name.removeprefix(f"{PACKAGE}.")
            if name.startswith(f"{PACKAGE}.") and inner in MODULES:
                found.add(inner)
    return frozenset(found - {module})


def floor_of(module):
    unit = module.partition(".")[0]
    floors = [floor for floor, units in enumerate(FLOORS) if unit in units]
    assert len(floors) == 1, f"{unit} stands on no floor: put it into FLOORS and into the design"
    return floors[0]


@pytest.mark.parametrize("module", sorted(set(MODULES) - {DOOR}))
def test_imports_only_from_below(module):
    for imported in imports_of(module):
        assert floor_of(imported) <= floor_of(module), f"{module} imports {imported} from above"


def test_names_given_to_importlib_point_downwards():
    """They would go unseen otherwise; old names of modules are looked up wherever they are now."""
    for module in set(MODULES) - {"core.moved"}:
        for node in ast.walk(ast.parse(MODULES[module].read_text())):
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "import_module":
                (name,) = node.args
                if isinstance(name, ast.Constant) and name.value.startswith(f"{PACKAGE}."):
                    assert floor_of(name.value.removeprefix(f"{PACKAGE}.")) <= floor_of(module)


def test_no_cycles():
    done, path = set(), []

    def visit(module):
        assert module not in path, " -> ".join([*path[path.index(module) :], module])
        if module not in done:
            path.append(module)
            for imported in sorted(imports_of(module)):
                # a package's own door imports its members; that a member loads its door is no cycle
                if not module.startswith(f"{imported}."):
                    visit(imported)
            path.pop()
            done.add(module)

    for module in MODULES:
        visit(module)


def test_core_below_the_leaves_knows_no_torch():
    """Selection, packing and configuration are pure."""
    core = (
        "selection",
        "packing",
        "grids",
        "build_options",
        "config",
        "precision",
        "exact_sums",
        "supported_versions",
        "moved",
    )
    pure = ["errors", "version", *(f"core.{name}" for name in core)]
    pure += [module for module in MODULES if module.startswith("cost.luts")]
    for module in pure:
        statements = ast.walk(ast.parse(MODULES[module].read_text()))
        imported = {
            name.partition(".")[0]
            for node in statements
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in (*(alias.name for alias in node.names), getattr(node, "module", None) or "")
        }
        assert "torch" not in imported, module


def test_public_names():
    assert sorted(PUBLIC) == PUBLIC == brevitas_multiquant.__all__
    for name in PUBLIC:
        assert hasattr(brevitas_multiquant, name)


def definitions(module):
    """Public functions, classes and methods of a module, by name."""
    waiting = [("", node) for node in ast.parse(MODULES[module].read_text()).body]
    while waiting:
        prefix, node = waiting.pop()
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)) and not node.name.startswith("_"):
            yield f"{prefix}{node.name}", node
            if isinstance(node, ast.ClassDef):
                waiting += [(f"{prefix}{node.name}.", child) for child in node.body]


@pytest.mark.parametrize("module", sorted(MODULES))
def test_public_definitions_are_documented(module):
    bare = [name for name, node in definitions(module) if not ast.get_docstring(node)]
    assert not bare


# `load_packed` is in the example of `save_packed`: the one is of no use without the other
@pytest.mark.parametrize("name", sorted({*PUBLIC} - {"load_packed"}))
def test_public_functions_have_an_example(name):
    member = getattr(brevitas_multiquant, name)
    if inspect.isfunction(member):
        assert ">>> " in inspect.getdoc(member)


def loaded_by(statement):
    """Top-level packages that a fresh interpreter has loaded after a statement."""
    code = f"{statement}\nimport sys\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        cwd=ROOT.parent,
        capture_output=True,
        text=True,
        check=True,
    )
    return set(run.stdout.split())


def test_light_to_import():
    """What only some users need is loaded where it is used, not at the door."""
    heavy = {"timm", "torchvision", "onnx", "accelerate", "sklearn", "matplotlib", "finn", "qonnx"}
    loaded = loaded_by(f"import {PACKAGE}")
    assert PACKAGE in loaded
    assert not loaded & heavy


def test_the_command_line_needs_no_optional_package():
    """It is installed with the package alone; what a command needs is imported when it runs."""
    missing = sorted(name for name in OPTIONAL if "." not in name)
    lacking = f"import sys\nsys.modules.update(dict.fromkeys({missing}))"
    assert PACKAGE in loaded_by(f"{lacking}\nfrom {PACKAGE}.cli import parsers\nparsers()")


TOP = {"__init__", "__main__", "errors", "version"}
"""The only files that lie on no shelf."""
LONGEST = 350
OPTIONAL = {
    *("timm", "torchvision"),  # models
    *("onnx", "onnxruntime", "qonnx"),  # export
    *("huggingface_hub", "matplotlib"),  # hub, plots of its cards
    *("accelerate", "sklearn", "torchmetrics", "tqdm", "yaml"),  # recipes
    "scipy",  # exact allocations
    "gradio",  # the demo
    "PIL",  # image files, in exported projects
    "finn",
    "brevitas.export",  # imports onnx
}
"""What a user may lack: only this is imported inside functions, where it is needed."""


def test_no_module_lies_loose():
    assert {file.stem for file in ROOT.glob("*.py")} == TOP


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_file_is_longer_than_a_few_screens(module):
    assert len(MODULES[module].read_text().splitlines()) <= LONGEST


def imports_in_functions(module):
    """Modules that the functions of a module import."""
    for function in ast.walk(ast.parse(MODULES[module].read_text())):
        if isinstance(function, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            for node in ast.walk(function):
                if isinstance(node, ast.Import):
                    yield from (alias.name for alias in node.names)
                elif isinstance(node, ast.ImportFrom):
                    yield node.module or ""


@pytest.mark.parametrize("module", sorted(MODULES))
def test_functions_import_only_what_a_user_may_lack(module):
    """Anywhere else it hides a cycle."""
    for name in imports_in_functions(module):
        assert any(f"{name}.".startswith(f"{package}.") for package in OPTIONAL), name
