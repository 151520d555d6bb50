"""Files that onnxruntime runs on integers: no float convolution is left, and the integers agree."""

import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from brevitas_multiquant import calibrate, extract_subnet, multiquantize
from brevitas_multiquant.errors import ExportError
from brevitas_multiquant.export import export_onnx
from brevitas_multiquant.export.onnx.integer.halved import halve
from brevitas_multiquant.export.onnx.integer.processors import PROCESSORS
from brevitas_multiquant.export.onnx.integer.steps import fitted
from brevitas_multiquant.export.onnx.integer.values import Integers, Product
from brevitas_multiquant.export.onnx.integer.walk import to_integer
from brevitas_multiquant.export.onnx.integer.weights import folded
from brevitas_multiquant.export.onnx.qcdq import to_onnx
from brevitas_multiquant.export.sample import smooth_images

SHAPE = (1, 3, 16, 16)


class Block(nn.Module):
    """A shortcut, a max pool, norms of both signs, a depthwise convolution."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.pool = nn.MaxPool2d(2)
        self.one = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.two = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8))
        self.last = nn.Sequential(nn.Conv2d(8, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5))
        for module in self.modules():
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.weight)
                nn.init.normal_(module.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Logits."""
        x = self.pool(self.stem(x))
        return self.head(self.last(torch.relu(self.two(self.one(x)) + x)))


def network(bits, **more):
    torch.manual_seed(0)
    net = multiquantize(Block(), bits, input_shape=SHAPE, **more)
    calibrate(net, [smooth_images((8, *SHAPE[1:]))])
    return net.eval()


def report_of(folder):
    return json.loads((folder / "export.json").read_text())["bits"]


@pytest.mark.parametrize(
    ("bits", "more"),
    [
        ([2, 4, 8], {}),
        ([2, 8], {"method": "double_rounding"}),
        ([8], {"method": "individual", "grid": "integer"}),
    ],
    ids=["branches", "nested", "8 bits"],
)
def test_no_float_convolution_is_left(bits, more, tmp_path):
    net = network(bits, profile="finn", **more)
    files = export_onnx(net, tmp_path, integer=True)
    assert files == {bit: tmp_path / f"model_{bit}b_qdq.onnx" for bit in bits}
    images = smooth_images((8, *SHAPE[1:]))
    for bit, path in files.items():
        entry = report_of(tmp_path)[str(bit)]
        assert entry["float_convolutions"] == 0 and entry["float_layers"] == {}
        layers = sum(entry["kernels"].get(kind, 0) for kind in ("QLinearConv", "ConvInteger"))
        assert layers == 1 + 3 * len(net.selection[bit])
        assert entry["compared"]["other_codes"] <= entry["compared"]["codes"] / 1000
        session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        actual = np.concatenate([session.run(None, {"input": i[None].numpy()})[0] for i in images])
        with torch.no_grad(), net.at_bits(bit):
            expected = net(images).numpy()
        difference = np.abs(actual - expected).max()
        assert difference == pytest.approx(entry["compared"]["largest_logit_difference"], abs=1e-5)
        assert difference < 0.1 * np.abs(expected).max()
        constants = onnx.load(path).graph.initializer
        weights = [t for t in constants if np.prod(t.dims) > max(t.dims, default=1)]
        assert {t.data_type for t in weights} <= {onnx.TensorProto.INT8, onnx.TensorProto.UINT8}


def test_two_bits_are_the_integers_of_torch(tmp_path):
    export_onnx(network([2], profile="finn"), tmp_path, integer=True)
    compared = report_of(tmp_path)["2"]["compared"]
    assert compared["other_codes"] == 0 and compared["largest_logit_difference"] < 1e-5


def test_odd_weights_of_eight_bits_are_halved_and_named(tmp_path):
    net = network([8], profile="finn", method="adabits")
    export_onnx(net, tmp_path, integer=True)
    entry = report_of(tmp_path)["8"]
    assert entry["float_convolutions"] == 0 and len(entry["halved_weights"]) == 3


def test_the_paper_profile_says_which_layers_stay_float(tmp_path):
    export_onnx(network([2], profile="paper"), tmp_path, integer=True)
    entry = report_of(tmp_path)["2"]
    layers = entry["float_layers"]
    assert layers["stem.stem.0"] == "its weights are floats"
    assert layers["branches.0.two.0.0"] == "its sums are read as floats by Add"
    assert entry["float_convolutions"] == 3 and entry["kernels"]["QLinearConv"] == 1


def test_a_network_without_integer_layers_is_refused(tmp_path):
    torch.manual_seed(0)
    body = nn.Sequential(
        *(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.Sigmoid()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5)),
    )
    net = multiquantize(body, [2], input_shape=SHAPE)
    calibrate(net, [smooth_images((8, *SHAPE[1:]))])
    with pytest.raises(ExportError, match=r'read as floats by Sigmoid.*profile="finn"'):
        export_onnx(net.eval(), tmp_path / "out", integer=True)
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_kernel_is_found(tmp_path, monkeypatch):
    def wrong(*given):
        right = folded(*given)
        return type(right)(**{**vars(right), "scale": right.scale * 1.01})

    monkeypatch.setattr("brevitas_multiquant.export.onnx.integer.kernels.folded", wrong)
    with pytest.raises(ExportError, match="expected identical codes after"):
        export_onnx(network([8], profile="finn"), tmp_path / "out", integer=True)
    assert list(tmp_path.iterdir()) == []


def test_lines_round_all_sums_as_the_real_ones():
    generator = np.random.default_rng(0)
    slope, shift = generator.uniform(0.02, 0.4, 200), generator.normal(0, 3, 200)
    line = fitted(slope, shift, np.full(200, 42), np.full(200, 900), (-8, 7))
    sums = np.arange(-900, 901)[:, None]
    real = np.rint(slope * sums + shift).clip(-8, 7)
    scale = line.scale.astype(np.float32)
    whole = (line.times * sums + line.bias).astype(np.float32)
    assert np.array_equal(np.rint(scale * whole).clip(-8, 7), real)


def test_two_products_of_int8_weights_fit_in_16_bits():
    for largest_byte in (3, 63, 127, 128, 255):
        read = Integers("x", 0, 0, largest_byte, (1, 4, 8, 8))
        for magnitude in (3, 64, 65, 127):
            weight = np.full((2, 4, 1, 1), magnitude)
            made = folded(Product(None, read, weight, {}), np.ones(2), np.zeros(2), (0, 255))
            if made.dtype is np.int8:
                assert 2 * largest_byte * np.abs(made.integers).max() < 2**15
            assert np.array_equal(
                (made.integers - made.zero_point) * made.scale[:, None, None, None], weight
            )


def test_weights_for_vnni_are_int8_and_the_same_numbers(tmp_path):
    """Run without fused kernels, as floats, so that any processor gets the exact sums."""
    subnet = extract_subnet(network([8], profile="finn", method="double_rounding"), 8)
    images = smooth_images((4, *SHAPE[1:]))
    exact = to_onnx(subnet, images[:1])
    logits, types = {}, {}
    for processor in PROCESSORS:
        model = to_integer(exact, processor).model
        options = onnxruntime.SessionOptions()
        options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        session = onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        runs = [session.run(None, {"input": image[None].numpy()})[0] for image in images]
        logits[processor] = np.concatenate(runs)
        weights = [t for t in model.graph.initializer if len(t.dims) > 1]
        types[processor] = {onnx.TensorProto.DataType.Name(t.data_type) for t in weights}
    assert types["vnni"] == {"INT8"} and "UINT8" in types["any"]
    assert np.array_equal(logits["vnni"], logits["any"])


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"processor": "vnni"}, "processor='vnni': expected integer=True"),
        ({"processor": "arm", "integer": True}, "expected 'any' or 'vnni', got 'arm'"),
    ],
)
def test_processors_that_cannot_be_are_refused(more, message, tmp_path):
    with pytest.raises(ExportError, match=message):
        export_onnx(network([2], profile="finn"), tmp_path / "out", **more)
    assert list(tmp_path.iterdir()) == []


def test_minus_128_turned_over_keeps_its_value():
    read = Integers("x", 0, 0, 255, (1, 1, 8, 8))
    product = Product(None, read, np.array([[[[-128]]], [[[100]]]]), {})
    made = folded(product, np.array([-0.5, -0.5]), np.array([3.0, 3.0]), (0, 255))
    values = (made.integers - made.zero_point).flatten() * made.scale
    assert values.tolist() == [64.0, -50.0]
    assert (made.bias * made.scale).tolist() == [3.0, 3.0]
    assert made.integers.min() >= 0 and made.integers.max() <= 255


def test_a_stem_of_bytes_before_coarse_integers_is_exact(tmp_path):
    """No whole bias is right for 15 thresholds and a thousand sums between two of them."""
    export_onnx(network([4], profile="finn", method="individual"), tmp_path, integer=True)
    entry = report_of(tmp_path)["4"]
    assert entry["kernels"]["ConvInteger"] == 1
    path = tmp_path / "model_4b_qdq.onnx"
    stem = next(n for n in onnx.load(path).graph.node if n.op_type == "ConvInteger")
    assert stem.input[0] in {n.output[0] for n in onnx.load(path).graph.node[:2]}


def test_where_no_line_is_right_the_fewest_sums_are_wrong():
    generator = np.random.default_rng(1)
    slope, shift = generator.uniform(1e-3, 2e-3, 50), generator.normal(0, 3, 50)
    largest = np.full(50, 9000)
    line = fitted(slope, shift, np.full(50, 3), largest, (0, 31))
    off = ~line.fits
    assert off.any()
    sums = np.arange(-9000, 9001)[:, None]
    real = np.rint(slope * sums + shift).clip(0, 31)

    def wrong(scale, times, bias):
        return (np.rint(scale * (times * sums + bias)).clip(0, 31) != real).sum(0)

    found = wrong(*line[:3])
    assert (found[~off] == 0).all() and (found[off] > 0).all()
    for times in (1, 2, 3):
        for bias in (np.floor(times * shift / slope), np.ceil(times * shift / slope)):
            others = wrong(slope / times, times, bias)
            assert (found[off] <= others[off] + 1).all()  # 1: a sum on a threshold, in fp64
    assert found[off].mean() < wrong(slope, 1, np.rint(shift / slope))[off].mean()


def test_halves_err_by_nothing_in_the_sum():
    odd = torch.randint(-127, 127, (4, 8, 3, 3)) * 2.0 + 1
    error = halve(odd) * 2 - odd
    assert error.abs().max() == 1 and error.flatten(1).sum(1).abs().max() <= 1
