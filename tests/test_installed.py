"""The built wheel, installed into an empty environment, does the main job outside the clone."""

import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
from PIL import Image

import brevitas_multiquant
from brevitas_multiquant.recipes.options.configurations import shipped
from brevitas_multiquant.storage.shipped import shipped_networks
from brevitas_multiquant.version import __version__

ROOT = Path(__file__).resolve().parents[1]
BUILT_FROM = ("pyproject.toml", "README.md", "LICENSE")
TINY = [
    *(
        "-c",
        "digits_resnet8",
        "--epochs",
        "1",
        "--warmup-epochs",
        "0",
        "--subset",
        "64",
        "--img-size",
        "8",
    ),
    *("--bits", "2", "4", "--lr", "0.01", "--experiment", "run"),
]
MAIN_JOB = """
import brevitas_multiquant
from brevitas_multiquant.cli import main

packed = "output/run/last.safetensors"
print(brevitas_multiquant.__version__, brevitas_multiquant.__file__)
for command in (
    ["inspect", packed],
    ["predict", packed, "a.png"],
    ["evaluate", packed],
    ["export", packed, "--format", "onnx", "--bits", "2"],
    ["plot", "output/run"],
):
    assert main(command) == 0, command
"""


def run(command: list[str], folder: Path) -> str:
    """What a command prints, outside the clone; nothing of this process's paths reaches it."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from a copy of what git has of the package: what an old build left is not in it."""
    source, built = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("built")
    package = "brevitas_multiquant"
    shutil.copytree(
        ROOT / package, source / package, ignore=shutil.ignore_patterns("__pycache__", "*.pyc")
    )
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--quiet"]
    run([*pip, "--no-deps", "--no-build-isolation", "--wheel-dir", str(built), str(source)], built)
    (path,) = built.glob("*.whl")
    return path


def test_everything_that_is_read_is_in_the_wheel(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    package = Path(brevitas_multiquant.__file__).parent
    read = [package / "py.typed", *shipped().values(), *shipped_networks().values()]
    read += [*package.glob("recipes/results/templates/*"), *package.rglob("*.sv")]
    read += [path for path in package.rglob("*.py") if "__pycache__" not in path.parts]
    missing = {path.relative_to(package.parent).as_posix() for path in read} - names
    assert not missing
    assert not [name for name in names if name.startswith(("tests/", "benchmarks/", "recipes/"))]


def test_the_main_job_outside_the_clone(wheel: Path, tmp_path: Path) -> None:
    """Its libraries are those of this environment; the package is the one in the wheel."""
    environment, place = tmp_path / "environment", tmp_path / "place"
    place.mkdir()
    venv.create(environment, with_pip=False)
    python, program = (
        str(environment / Path(sys.executable).parent.name / name)
        for name in ("python", "brevitas-multiquant")
    )
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--python", python]
    run([*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)], place)
    base = dict.fromkeys(("base", "platbase"), str(environment))
    site = sysconfig.get_path("purelib", vars=base)
    (Path(site) / "libraries.pth").write_text(sysconfig.get_path("purelib") + "\n")
    assert "results in output/run" in run([program, "train", *TINY], place)
    Image.new("RGB", (8, 8)).save(place / "a.png")
    assert run([python, "-c", MAIN_JOB], place).startswith(f"{__version__} {site}")
    assert len(list((place / "export").glob("*.onnx"))) == 1
    assert (place / "output" / "run" / "report.html").is_file()
