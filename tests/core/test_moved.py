"""Old module names: they import, warn, and give what stands under the new ones."""

import importlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

import brevitas_multiquant
from brevitas_multiquant import MultiQuantNet
from brevitas_multiquant.core.moved import MOVED, PACKAGE
from tests.tiny import IMAGE

ROOT = Path(brevitas_multiquant.__file__).parents[1]


def own_names(module):
    """Public functions and classes that a module defines itself."""
    return [
        name
        for name, member in vars(module).items()
        if not name.startswith("_") and getattr(member, "__module__", None) == module.__name__
    ]


@pytest.fixture(params=sorted(MOVED))
def old(request):
    """An old name that nobody has imported yet."""
    kept = sys.modules.pop(request.param, None)
    yield request.param
    sys.modules.pop(request.param, None)
    if kept is not None:
        sys.modules[request.param] = kept


@pytest.fixture(autouse=True)
def door_as_it_was():
    """Importing a module puts it into its package; the door's own functions come back."""
    kept = dict(vars(brevitas_multiquant))
    yield
    vars(brevitas_multiquant).update(kept)


def test_an_old_name_gives_the_same_objects(old):
    with pytest.warns(DeprecationWarning, match=f"{old} has moved to {MOVED[old]}") as told:
        module = importlib.import_module(old)
    assert len(told) == 1
    new = importlib.import_module(MOVED[old])
    assert own_names(new)
    for name in own_names(new):
        with pytest.warns(DeprecationWarning, match=f"{old} has moved") as told:
            assert getattr(module, name) is getattr(new, name)
        assert [Path(warning.filename).name for warning in told] == [Path(__file__).name]


def test_what_was_never_there_is_missing_under_the_old_name_too(old):
    with pytest.warns(DeprecationWarning):
        module = importlib.import_module(old)
    with pytest.warns(DeprecationWarning), pytest.raises(AttributeError, match="no_such_name"):
        _ = module.no_such_name
    with pytest.raises(ModuleNotFoundError):
        importlib.import_module(f"{old}_that_never_was")


def test_new_names_are_no_old_names():
    assert not MOVED.keys() & set(MOVED.values())


def test_pickles_of_old_names_load(old):
    new = importlib.import_module(MOVED[old])
    for name in own_names(new):
        with pytest.warns(DeprecationWarning, match=f"{old} has moved"):
            assert pickle.loads(f"c{old}\n{name}\n.".encode()) is getattr(new, name)


IN_A_PROJECT = f"""
import json, sys, warnings
import timm
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import {PACKAGE}
from {PACKAGE}.core.moved import MOVED
facts = dict(
    told=[str(warning.message) for warning in caught if "has moved" in str(warning.message)],
    loaded=sorted(MOVED.keys() & sys.modules.keys()),
)
import {PACKAGE}.models
facts["registered"] = timm.is_model("cifar_resnet8")
import {PACKAGE}.packing
facts["in its package"] = {PACKAGE}.packing.pack.__module__
import {PACKAGE}.calibrate
from {PACKAGE}.calibrate import calibrate
facts["the function stays"] = {PACKAGE}.calibrate is calibrate
from recipes.data import WHOSE
facts["recipes.data"] = WHOSE
print(json.dumps(facts))
"""


def test_in_a_project_of_somebody_else(tmp_path):
    """In a fresh interpreter, beside a package of their own that is called ``recipes``."""
    (tmp_path / "recipes").mkdir()
    (tmp_path / "recipes" / "__init__.py").touch()
    (tmp_path / "recipes" / "data.py").write_text("WHOSE = 'theirs'\n")
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", IN_A_PROJECT],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert json.loads(done.stdout) == {
        "told": [],  # the door alone
        "loaded": [f"{PACKAGE}.calibrate"],  # stands behind the function of its name
        "registered": True,
        "in its package": f"{PACKAGE}.core.packing",
        "the function stays": True,
        "recipes.data": "theirs",
    }


def test_a_function_under_the_name_of_its_module_can_be_called(tiny):
    sys.modules.pop(f"{PACKAGE}.rewrite.multiquantize", None)
    vars(brevitas_multiquant.rewrite).pop("multiquantize", None)
    with pytest.warns(DeprecationWarning, match="rewrite.multiquantize has moved"):
        from brevitas_multiquant.rewrite import multiquantize

        net = multiquantize(tiny, [2], input_shape=IMAGE)
    assert isinstance(net, MultiQuantNet)
