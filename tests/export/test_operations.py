"""Operations of a body in both exports: the same values as in torch, or a named refusal."""

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from brevitas_multiquant import calibrate, multiquantize
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export import export_onnx, export_qonnx
from brevitas_multiquant.export.exporter import readable_ir_version, run_exporter
from brevitas_multiquant.export.operations import operations_named
from brevitas_multiquant.export.qonnx.execute import execute, session_of
from brevitas_multiquant.export.qonnx.files import _exported, clean_up
from brevitas_multiquant.nn.subnet import extract_subnet


class Apply(nn.Module):
    """A function as a module."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


def qcdq(module, x):
    from brevitas.export import export_onnx_qcdq

    session = session_of(run_exporter(export_onnx_qcdq, module, x))
    return session.run(None, {"input": x.numpy()})[0]


def qonnx(module, x):
    model = _exported(module, x)
    with readable_ir_version():
        model = clean_up(model)
        name = model.graph.output[0].name
        return execute(model, x.numpy(), [name])[name]


def image(height=12, width=10):
    return torch.randn(1, 8, height, width, generator=torch.Generator().manual_seed(0))


TARGETS = [
    {"size": (24, 20)},
    {"size": (23, 7)},
    {"size": (5, 31)},
    {"scale_factor": 2},
    {"scale_factor": 1.5},
    {"scale_factor": 0.5},
    {"scale_factor": 1.25},
    {"scale_factor": 1.3, "recompute_scale_factor": True},
]
MODES = [
    {"mode": "nearest"},
    {"mode": "nearest-exact"},
    {"mode": "bilinear", "align_corners": False},
    {"mode": "bilinear", "align_corners": True},
    {"mode": "area"},
]


@pytest.mark.parametrize("mode", MODES, ids=lambda mode: "-".join(map(str, mode.values())))
@pytest.mark.parametrize("target", TARGETS, ids=lambda target: str(list(target.values())))
def test_a_resize_gives_torchs_values(mode, target):
    module = Apply(lambda x: F.interpolate(x, **mode, **target))
    x = image()
    expected = module(x).numpy()
    for actual in (qcdq(module, x), qonnx(module, x)):
        if mode["mode"].startswith("nearest"):
            np.testing.assert_array_equal(actual, expected)
        else:  # sums of four to some dozens of fp32 terms, and fp32 coordinates
            np.testing.assert_allclose(actual, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("old", "new"), [(1, 7), (7, 3), (5, 41), (41, 41 * 3), (47, 61), (6, 14)])
def test_a_nearest_resize_reads_the_positions_that_torch_reads(old, new):
    """Executors divide, and their rounding gives the position beside for some sizes."""
    module = Apply(lambda x: F.interpolate(x, size=(new, new)))
    x = image(old, old)
    for actual in (qcdq(module, x), qonnx(module, x)):
        np.testing.assert_array_equal(actual, module(x).numpy())


@pytest.mark.parametrize("mode", ["nearest", "nearest-exact"])
@pytest.mark.parametrize("factor", [1.3, 1.7, 0.3, 2.3])
def test_a_factor_that_fp32_does_not_hold_gives_torchs_size_and_values(mode, factor):
    module = Apply(lambda x: F.interpolate(x, scale_factor=factor, mode=mode))
    x = image()
    for actual in (qcdq(module, x), qonnx(module, x)):
        np.testing.assert_array_equal(actual, module(x).numpy())


def test_whole_factors_stay_one_resize():
    model = _exported(Apply(lambda x: F.interpolate(x, size=(24, 30))), image())
    assert [n.op_type for n in model.graph.node if n.op_type != "Constant"] == ["Resize"]


def frames(x):
    """Four frames of three rows."""
    return x.unflatten(2, (4, 3))


EXACT = {
    "unpooling": lambda x: F.max_unpool2d(*F.max_pool2d(x, 2, return_indices=True), 2),
    "unpooling of one dimension": lambda x: F.max_unpool1d(
        *F.max_pool1d(x.flatten(2), 3, return_indices=True), 3
    ),
    "unpooling of frames": lambda x: F.max_unpool3d(
        *F.max_pool3d(frames(x), (2, 1, 2), return_indices=True), (2, 1, 2)
    ),
    "unpooling to a size": lambda x: F.max_unpool2d(
        *F.max_pool2d(x, 3, 2, return_indices=True), 3, 2, output_size=x.shape
    ),
    "nearest resize of frames": lambda x: F.interpolate(frames(x), scale_factor=1.7),
    "nearest exact resize of frames": lambda x: F.interpolate(
        frames(x), size=(7, 4, 11), mode="nearest-exact"
    ),
    "channel shuffle": lambda x: F.channel_shuffle(x, 4),
    "average of one position to seven": lambda x: F.adaptive_avg_pool2d(x[:, :, :1, :1], 7),
}
CLOSE = {
    "average pool to a size": lambda x: F.adaptive_avg_pool2d(x, (7, 4)),
    "average pool to a factor": lambda x: F.adaptive_avg_pool2d(x, (6, 5)),
    "average pool to one": lambda x: F.adaptive_avg_pool2d(x, 1),
    "local response norm": lambda x: F.local_response_norm(x, 3),
    "rms norm": lambda x: F.rms_norm(x, (10,), torch.linspace(0.5, 1.5, 10), 1e-3),
    "rms norm of its own eps": lambda x: F.rms_norm(x, (12, 10)),
    "tile": lambda x: x.tile(1, 2, 1, 1)[:, :8],
    "squeeze behind a pool": lambda x: F.avg_pool3d(x.unsqueeze(1), (3, 1, 1)).squeeze(1),
}


@pytest.mark.parametrize("name", [*EXACT, *CLOSE])
def test_an_operation_gives_torchs_values(name):
    module = Apply(EXACT.get(name) or CLOSE[name])
    x = image()
    expected = module(x).numpy()
    for actual in (qcdq(module, x), qonnx(module, x)):
        # fp32 sums in another order
        np.testing.assert_allclose(actual, expected, rtol=0, atol=0 if name in EXACT else 2e-6)


def net_with(middle, bits=(2, 4)):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, padding=1),
        middle,
        nn.ReLU(),
        nn.Conv2d(8, 8, 1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(8, 10),
    )
    net = multiquantize(model, bits, input_shape=(1, 3, 16, 16))
    calibrate(net, [torch.randn(4, 3, 16, 16)])
    return net.eval()


PASSES = {
    "channel shuffle": nn.ChannelShuffle(2),
    "average pool to 7": nn.AdaptiveAvgPool2d(7),
    "local response norm": nn.LocalResponseNorm(3),
    "resize to a size": Apply(lambda x: F.interpolate(x, size=(23, 20))),
    "bilinear resize to a size": nn.Upsample(size=(24, 24), mode="bilinear"),
    "max pool to a factor": nn.AdaptiveMaxPool2d(4),
}


@pytest.mark.parametrize("name", PASSES)
@pytest.mark.parametrize("export", [export_qonnx, export_onnx])
def test_networks_with_such_operations_export(name, export, tmp_path):
    options = {"allow_ties": True} if export is export_qonnx else {}
    assert set(export(net_with(PASSES[name]), tmp_path, **options)) == {2, 4}


STOPS = {
    "max pool to 7": (nn.AdaptiveMaxPool2d(7), r"branches\.0\.3 \(AdaptiveMaxPool2d\): .*factor"),
    "rotation": (Apply(lambda x: x.rot90(1, (2, 3))), r"rot90 in branches\.0 .*aten::rot90"),
    "transform": (Apply(lambda x: torch.fft.fft2(x).abs()), r"fft_fft2 in branches\.0 .*fft_fft2"),
}


@pytest.mark.parametrize("name", STOPS)
@pytest.mark.parametrize("export", [export_qonnx, export_onnx])
def test_an_operation_without_a_form_is_named_and_nothing_is_left(name, export, tmp_path, capfd):
    middle, message = STOPS[name]
    net = net_with(middle)
    capfd.readouterr()
    with pytest.raises(ExportError, match=message) as caught:
        export(net, tmp_path / "out")
    assert "operator set 13" in str(caught.value)
    assert "github" not in str(caught.value).lower()
    assert list(tmp_path.iterdir()) == []
    assert capfd.readouterr().out == ""  # torch's own graph is tens of kilobytes


def test_another_error_stays_what_it_is():
    subnet = extract_subnet(net_with(nn.Identity(), (2,)), 2)
    with pytest.raises(ZeroDivisionError), operations_named(subnet, image(16, 16)[:, :3], qcdq):
        raise ZeroDivisionError


class Skip(nn.Module):
    """A resize to another tensor's size, then a concatenation, as in feature pyramids."""

    def __init__(self, mode) -> None:
        super().__init__()
        self.mode = mode
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.down, self.up = nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.Conv2d(24, 8, 3)
        self.fc = nn.Linear(8, 10)

    def forward(self, x):
        x = torch.relu(self.stem(x))
        y = torch.relu(self.down(x))
        y = F.interpolate(y, size=(15, 17), **self.mode)
        return self.fc(torch.relu(self.up(torch.cat([y, x], 1))).mean((2, 3)))


@pytest.mark.parametrize("mode", MODES[:4], ids=lambda mode: "-".join(map(str, mode.values())))
def test_a_skip_connection_by_a_resize_exports(mode, tmp_path):
    net = multiquantize(Skip(mode), [2], input_shape=(1, 3, 15, 17))
    calibrate(net, [torch.randn(4, 3, 15, 17)])
    export_qonnx(net, tmp_path / "qonnx", allow_ties="align_corners" in mode)
    (path,) = export_onnx(net, tmp_path / "onnx").values()
    x = torch.randn(1, 3, 15, 17)
    (actual,) = onnxruntime.InferenceSession(path).run(None, {"input": x.numpy()})
    with torch.no_grad(), net.eval().at_bits(2):
        np.testing.assert_allclose(actual, net(x).numpy(), rtol=1e-3, atol=1e-3)
