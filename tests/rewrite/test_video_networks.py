"""Networks of three dimensions convert, and pass everything that networks of images pass."""

import json

import pytest
import torch

from brevitas_multiquant import (
    InPlaceDistillation,
    calibrate,
    extract_subnet,
    load_packed,
    multiquantize,
    save_packed,
)
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.cost import cost
from brevitas_multiquant.errors import CalibrationError, ExportError, UnsupportedModelError
from brevitas_multiquant.export import check_finn, export_qonnx
from brevitas_multiquant.quant.layers import WEIGHTED, CodeLayer
from tests.dense import video
from tests.dense.video import SHAPE

# network -> layers that stay float: the stem's and those of the head
NETWORKS = {video.R3D: 2, video.S3D: 2, video.X3D: 2, video.SlowFast: 3, video.UNet3D: 2}


def layers_of(*parts):
    return [m for part in parts for m in part.modules() if isinstance(m, WEIGHTED)]


def network_of(kind, bits, **options):
    torch.manual_seed(0)
    source = ModelSource("own", kind.__name__)
    net = multiquantize(kind(), bits, input_shape=SHAPE, source=source, **options)
    videos = torch.randn(2, *SHAPE[1:])
    calibrate(net, [videos])
    return net, videos


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_converts_and_is_exact(kind, tmp_path):
    net, videos = network_of(kind, [2, 4])
    assert len(layers_of(net.stem, net.head)) == NETWORKS[kind]
    assert all(isinstance(layer, CodeLayer) for layer in layers_of(*net.branches))
    save_packed(net.eval(), tmp_path / "net.safetensors")
    loaded = load_packed(tmp_path / "net.safetensors", model=kind())
    assert loaded.input_shape == SHAPE
    outputs = {}
    for bits in net.bits:
        with torch.no_grad(), net.at_bits(bits), loaded.at_bits(bits):
            outputs[bits] = net(videos)
            assert torch.equal(extract_subnet(net, bits)(videos), outputs[bits])
            assert torch.equal(loaded(videos), outputs[bits])
    assert not torch.equal(outputs[2], outputs[4])
    costs = cost(net)
    assert costs[2].bitops < costs[4].bitops


@pytest.mark.parametrize("kind", NETWORKS, ids=lambda kind: kind.__name__)
def test_its_qonnx_file_is_verified(kind, tmp_path):
    net, _ = network_of(kind, [2], check=False)
    (path,) = export_qonnx(net.eval(), tmp_path, allow_ties=True).values()
    report = json.loads((tmp_path / "export.json").read_text())
    assert path.is_file() and report["input_shape"] == list(SHAPE)


@pytest.mark.parametrize("kind", [video.X3D, video.UNet3D], ids=lambda kind: kind.__name__)
def test_trains_at_half_a_branch_too(kind):
    net, videos = network_of(kind, [2, 3, 4])
    size = (2, *SHAPE[2:]) if kind is video.UNet3D else (2,)
    labels = torch.randint(video.CLASSES, size)
    loss = InPlaceDistillation(net.train()).step(videos, labels)["loss"]
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in net.parameters())
    narrow, whole = (layers_of(part) for part in (net.halves, net.branches[1]))
    assert sum(m.weight.numel() for m in narrow) < sum(m.weight.numel() for m in whole)
    with torch.no_grad(), net.eval().at_bits(3):
        assert torch.equal(extract_subnet(net, 3)(videos), net(videos))


def test_videos_of_another_size():
    net, _ = network_of(video.UNet3D, [2], check=False)
    larger = torch.randn(1, 3, 10, 20, 12)
    with torch.no_grad():
        output = net.eval()(larger)
        assert torch.equal(extract_subnet(net, 2)(larger), output)
    assert output.shape == (1, video.CLASSES, 10, 20, 12)


def test_a_shortcut_of_a_video_may_stay_float():
    net, _ = network_of(video.R3D, [2, 4], method="any_precision", shortcuts="float")
    assert not isinstance(net.branches[0].get_submodule("shortcut.0"), CodeLayer)


def test_a_batch_of_images_is_no_video():
    """A layer of three dimensions would take its images for channels of one video."""
    net, videos = network_of(video.R3D, [2], check=False)
    expected = r"images such as \(1, 3, 8, 16, 16\), got \(3, 8, 16, 16\)"
    with pytest.raises(CalibrationError, match=expected):
        calibrate(net, [videos[0]])
    with pytest.raises(ExportError, match=r"five positive integers \(N, C, T, H, W\), got \(1, 3"):
        export_qonnx(net, "nowhere", input_shape=(1, 3, 16, 16))


def test_hardware_takes_images_alone():
    with pytest.raises(UnsupportedModelError, match=r"expected images .* got videos"):
        multiquantize(video.R3D(), [2], profile="finn", input_shape=SHAPE)
    net, _ = network_of(video.R3D, [2], check=False)
    (violation,) = check_finn(net)
    assert violation.where == "image" and "expected images (N, C, H, W)" in violation.advice
