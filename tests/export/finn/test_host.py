"""A project classifies image files: the classes and the logits that torch gives."""

import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export import Preprocessing, export_finn
from tests.export.finn.nets import build
from tests.export.finn.test_export import imported

MEAN, STD = [0.49, 0.48, 0.45], [0.25, 0.24, 0.26]
NAMES = [f"thing {index}" for index in range(10)]
BITS = (2, 4)
PREPROCESSING = Preprocessing(MEAN, STD, NAMES, crop=0.8)


@pytest.fixture(scope="module")
def switchable(tmp_path_factory):
    folder = tmp_path_factory.mktemp("host")
    net = build("residual", bits=BITS, negative=False)
    options = {"preprocessing": PREPROCESSING, "estimate": False, "switchable": True}
    export_finn(net, folder, **options)
    return folder / "switchable"


def picture(path, size, mode="RGB"):
    """Noise in colours, upscaled so that resizing means something."""
    noise = np.random.default_rng(3).integers(0, 256, (7, 9, 3), dtype=np.uint8)
    Image.fromarray(noise).resize(size, Image.Resampling.BICUBIC).convert(mode).save(path)
    return path


def run(project, *arguments):
    return subprocess.run(
        [sys.executable, "host.py", *map(str, arguments)],
        cwd=project,
        capture_output=True,
        text=True,
        check=False,
    )


def in_torch(image, bits):
    """Logits of the same picture by torchvision's usual transforms, and torch."""
    from torchvision import transforms

    ways = [
        transforms.Resize(10, transforms.InterpolationMode.BICUBIC),  # 8 / 0.8
        transforms.CenterCrop(8),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    images = transforms.Compose(ways)(Image.open(image).convert("RGB"))[None]
    subnet = extract_subnet(build("residual", bits=BITS, negative=False), bits)
    with torch.no_grad():
        return images, subnet(images)[0]


@pytest.mark.parametrize("bits", BITS)
def test_a_picture_from_the_file_to_the_name(bits, switchable, tmp_path, monkeypatch):
    image = picture(tmp_path / "picture.png", (30, 40))
    images, logits = in_torch(image, bits)
    host = imported(switchable / "host.py", monkeypatch)
    assert np.array_equal(host.Host.load(switchable / "host.json").read(image), images.numpy())
    found = host.classify(image, switchable, bits)
    assert [name for name, _ in found] == [NAMES[i] for i in (-logits).argsort(stable=True)]
    assert [logit for _, logit in found] == logits.sort(descending=True).values.tolist()


def test_the_command_line(switchable, tmp_path):
    image = picture(tmp_path / "picture.png", (12, 12))
    shown = {}
    for bits in (None, *BITS):
        done = run(switchable, image, *([] if bits is None else ["--bits", bits]))
        assert done.returncode == 0, done.stderr
        shown[bits] = done.stdout.splitlines()
    assert len(shown[2]) == 5 and shown[2] != shown[4] == shown[None]
    _, logits = in_torch(image, 4)
    best = int(logits.argmax())
    assert shown[4][0] == f"{logits[best]:.6f}\t{NAMES[best]}"


def test_what_the_command_line_refuses(switchable, tmp_path):
    image = picture(tmp_path / "picture.png", (12, 12))
    done = run(switchable, image, "--bits", 3)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith("error: bits: expected one of ['2b', '4b'], got 3")
    (tmp_path / "text.png").write_text("no picture")
    assert run(switchable, tmp_path / "text.png").stderr.startswith("error: ")
    (project,) = export_finn(build("residual"), tmp_path / "out", [2], estimate=False).values()
    assert "Preprocessing(mean, std, class_names)" in run(project, image).stderr
    assert "one bit-width alone, got 2" in run(project, image, "--bits", 2).stderr
    (project / "PIL.py").write_text("raise ModuleNotFoundError('No module named PIL')")
    shutil.copy(switchable / "host.json", project)
    assert "error: No module named PIL; host.py needs" in run(project, image).stderr


def test_numbers_where_nobody_gave_names(tmp_path, monkeypatch):
    options = {"preprocessing": Preprocessing(MEAN, STD), "estimate": False}
    (project,) = export_finn(build("residual"), tmp_path / "out", [2], **options).values()
    host = imported(project / "host.py", monkeypatch)
    found = host.classify(picture(tmp_path / "picture.png", (12, 12), "L"), project)
    assert sorted(name for name, _ in found) == [str(index) for index in range(10)]
    shutil.rmtree(project)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"mean": [0.5], "std": [0.5]}, r"mean and std: expected 3 each"),
        ({"std": [0.5, 0.5, 0.0]}, "expected a positive std for each mean"),
        ({"class_names": ["one"]}, r"class_names: expected 10 names, got '1 names'"),
        ({"crop": 0.0}, "crop: expected a share"),
        ({"interpolation": "cubic"}, "interpolation: expected one of"),
    ],
)
def test_bad_preprocessing(values, message, tmp_path):
    given = {"mean": MEAN, "std": STD, **values}
    with pytest.raises(ExportError, match=message):
        export_finn(
            build("residual"),
            tmp_path / "new",
            [2],
            preprocessing=Preprocessing(**given),
            estimate=False,
        )
    assert not (tmp_path / "new").exists()


def test_a_map_of_logits(tmp_path, monkeypatch):
    """Hardware has channels last, torch behind the images; a picture gives shares of positions."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()),
        nn.Conv2d(4, 5, 1),
    )
    net = multiquantize(model, [2], profile="finn", input_shape=(1, 3, 8, 6), check=False)
    images = torch.rand(2, 3, 8, 6)
    calibrate(net, [images])
    options = {"images": images, "preprocessing": Preprocessing(MEAN, STD), "estimate": False}
    (project,) = export_finn(net.eval(), tmp_path / "out", **options).values()
    module = imported(project / "host.py", monkeypatch)
    host = module.Host.load(project / "host.json")
    logits = host.logits(np.load(project / "expected_output.npy"))
    with torch.no_grad():
        assert torch.equal(torch.from_numpy(logits), extract_subnet(net, 2)(images))
        image = picture(tmp_path / "picture.png", (6, 8))
        classes = extract_subnet(net, 2)(torch.from_numpy(host.read(image)))[0].argmax(0)
    shares = dict(module.classify(image, project))
    assert shares == {str(one): float((classes == one).sum()) / 48 for one in range(5)}
    values = list(shares.values())
    assert list(module.classify(image, project)[0])[1] == max(values)
