"""Contractions of codes: exact under autocast, in half and double networks, and on CUDA's terms."""

import copy
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, backends, nn

from brevitas_multiquant import MultiQuantNet, calibrate, extract_subnet, save_packed
from brevitas_multiquant.errors import MultiQuantError, PrecisionError
from brevitas_multiquant.export import check_finn, export_finn, export_onnx, export_qonnx
from brevitas_multiquant.quant.exact import contract_exactly, exact_arithmetic

BITS = (2, 3, 8, 12)
HALVES = (torch.float16, torch.bfloat16)


@pytest.fixture(params=["paper", "finn"])
def evaluated(
    request: pytest.FixtureRequest, make_net: Callable[..., MultiQuantNet], images: Tensor
) -> MultiQuantNet:
    """A calibrated network of either profile, in evaluation mode."""
    net = make_net(bits=BITS, profile=request.param)
    calibrate(net, [images])
    return net.eval()


def wide_net(make_net: Callable[..., MultiQuantNet]) -> MultiQuantNet:
    """256 channels at 8 bits: sums of codes up to 256 * 9 * 255 * 3, far above 65504."""
    c = 256
    model = nn.Sequential(
        *(nn.Conv2d(3, c, 3, padding=1), nn.ReLU()),
        *(nn.Conv2d(c, c, 3, padding=1, bias=False), nn.BatchNorm2d(c), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(c, 10)),
    )
    with torch.no_grad():
        model[2].weight[:8].abs_()  # filters that smooth
    net = make_net(model, (2, 8))
    calibrate(net, [torch.randn(4, 3, 8, 8)])
    return net.eval()


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("within", [False, True])
def test_a_contraction_is_that_of_integers(dtype: torch.dtype, within: bool) -> None:
    x = torch.randint(0, 256, (4, 900)).to(dtype)
    weight = torch.tensor([-3, -1, 1, 3]).repeat(225).expand(5, -1).to(dtype)
    with torch.autocast("cpu", dtype, enabled=within):
        got = contract_exactly(F.linear, x, weight)
    assert got.dtype == torch.float32
    assert torch.equal(got.long(), x.long() @ weight.long().T)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", BITS)
def test_autocast_has_no_say_behind_the_stem(
    evaluated: MultiQuantNet, images: Tensor, dtype: torch.dtype, bits: int
) -> None:
    """Given the same stem output, merged branches are those of fp32 to the bit."""
    with torch.no_grad(), evaluated.at_bits(bits):
        with torch.autocast("cpu", dtype):
            features = evaluated.stem(images)
            inside = evaluated.merge([part(features) for part in evaluated.branches_at(bits)])
        wide = features.float()
        outside = evaluated.merge([part(wide) for part in evaluated.branches_at(bits)])
    assert inside.dtype == torch.float32
    assert torch.equal(inside, outside)


@pytest.mark.parametrize("dtype", HALVES)
@pytest.mark.parametrize("bits", BITS)
def test_a_finn_network_under_autocast_is_the_same_to_the_bit(
    make_net: Callable[..., MultiQuantNet], images: Tensor, dtype: torch.dtype, bits: int
) -> None:
    net = make_net(bits=BITS, profile="finn")
    calibrate(net, [images])
    with torch.no_grad(), net.eval().at_bits(bits):
        expected = net(images)
        with torch.autocast("cpu", dtype):
            assert torch.equal(net(images), expected)


@pytest.mark.parametrize("way", ["autocast", "half"])
def test_sums_beyond_fp16_stay_finite(make_net: Callable[..., MultiQuantNet], way: str) -> None:
    net, x = wide_net(make_net), torch.randn(2, 3, 8, 8)
    with torch.no_grad(), net.at_bits(8):
        expected = net(x)
        if way == "half":
            got = net.half()(x.half())
        else:
            with torch.autocast("cpu", torch.float16):
                got = net(x)
    # 11 bits a value in stem, norms and head, and codes that flip for it
    torch.testing.assert_close(got.float(), expected, rtol=2e-2, atol=2e-3)


@pytest.mark.parametrize("name, dtype", [("half", 2e-2), ("bfloat16", 2e-1), ("double", 2e-2)])
def test_evaluation_in_another_type(
    evaluated: MultiQuantNet, images: Tensor, name: str, dtype: float
) -> None:
    """Finite, of that type, and near fp32: as near as ranges and norms in that type allow."""
    expected = {}
    for bits in BITS:
        with torch.no_grad(), evaluated.at_bits(bits):
            expected[bits] = evaluated(images)
    converted = getattr(copy.deepcopy(evaluated), name)()
    kind = next(converted.parameters()).dtype
    for bits in BITS:
        with torch.no_grad(), converted.at_bits(bits):
            got = converted(images.to(kind))
        assert got.dtype == kind
        # a code that flips moves a logit by some percent of the spread
        torch.testing.assert_close(got.float(), expected[bits], rtol=dtype, atol=0.1)


@pytest.mark.parametrize("name", ["half", "bfloat16", "double"])
def test_files_are_of_fp32_networks(
    evaluated: MultiQuantNet, images: Tensor, name: str, tmp_path: Path
) -> None:
    net = getattr(evaluated, name)()
    for call in (
        lambda: export_qonnx(net, tmp_path / "q"),
        lambda: export_onnx(net, tmp_path / "o"),
        lambda: export_finn(net, tmp_path / "f"),
        lambda: check_finn(net),
        lambda: extract_subnet(net, 2),
    ):
        with pytest.raises(PrecisionError, match=r"float32.*call net\.float\(\) first"):
            call()
    with pytest.raises(MultiQuantError):
        save_packed(net, tmp_path / "net")
    assert not list(tmp_path.iterdir())
    assert extract_subnet(net.float(), 2)(images).isfinite().all()


@pytest.mark.parametrize("name", ["half", "bfloat16"])
def test_training_in_half_precision_is_right_or_refused(
    evaluated: MultiQuantNet, images: Tensor, name: str
) -> None:
    """Codes up to 8 bits are exact in any type; what is not is no raw error."""
    net = getattr(evaluated, name)().train()
    x = images.to(next(net.parameters()).dtype)
    for bits in BITS:
        exact = bits <= 8 and net.config.profile == "paper"
        with net.at_bits(bits):
            if exact:
                assert net(x).isfinite().all()
                continue
            with pytest.raises(PrecisionError, match="and train under"):
                net(x)


def test_a_compiled_graph_under_autocast(
    make_net: Callable[..., MultiQuantNet], images: Tensor
) -> None:
    net = make_net(bits=(2,), profile="finn")
    calibrate(net, [images])
    compiled = torch.compile(net.eval(), backend="eager", fullgraph=True)
    with torch.no_grad():
        expected = net(images)
        assert torch.equal(compiled(images), expected)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(compiled(images), expected)


class TestSettingsOfCuda:
    """Without a device: the settings are those of the process and can be read and written."""

    @pytest.fixture(autouse=True)
    def _restored(self) -> Iterator[None]:
        before = settings()
        legacy = backends.cudnn.allow_tf32
        yield
        torch.set_float32_matmul_precision("highest")
        backends.cudnn.allow_tf32 = legacy
        backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision = before

    @pytest.mark.parametrize("matmul", ["highest", "high", "medium"])
    @pytest.mark.parametrize("convolution", [False, True])
    def test_set_inside_and_restored(self, matmul: str, convolution: bool) -> None:
        torch.set_float32_matmul_precision(matmul)
        backends.cudnn.allow_tf32 = convolution
        before = settings()
        for fails in (False, True):
            try:
                with exact_arithmetic(torch.device("cuda")):
                    assert settings() == ("ieee", "ieee")
                    assert not backends.cudnn.allow_tf32  # the older names can still be read
                    assert not backends.cuda.matmul.allow_tf32
                    if fails:
                        raise RuntimeError
            except RuntimeError:
                assert fails
            assert settings() == before
            assert torch.get_float32_matmul_precision() == matmul
            assert backends.cudnn.allow_tf32 is convolution

    @pytest.mark.parametrize("precision", ["ieee", "tf32"])
    def test_a_user_of_the_newer_names(self, precision: str) -> None:
        backends.cuda.matmul.fp32_precision = precision
        backends.cudnn.conv.fp32_precision = precision
        with exact_arithmetic(torch.device("cuda")):
            assert settings() == ("ieee", "ieee")
        assert settings() == (precision, precision)

    def test_threads_inside_at_once(self) -> None:
        """The first one out leaves them off for the second."""
        torch.set_float32_matmul_precision("high")
        before, both = settings(), Barrier(2)

        def run(waits: bool) -> tuple[str, str]:
            with exact_arithmetic(torch.device("cuda")):
                both.wait(10)
                if waits:
                    both.wait(10)
                inside = settings()
            if not waits:
                both.wait(10)
            return inside

        with ThreadPoolExecutor(2) as pool:
            results = list(pool.map(run, (True, False)))
        assert results == [("ieee", "ieee")] * 2 and settings() == before

    @pytest.mark.parametrize("what", ["network", "subnet"])
    def test_evaluation_is_inside_and_training_is_not(
        self, net: MultiQuantNet, images: Tensor, what: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With a device that says that it is CUDA."""
        where = f"brevitas_multiquant.{'nn.network' if what == 'network' else 'nn.subnet'}"
        cuda = exact_arithmetic
        monkeypatch.setattr(f"{where}.exact_arithmetic", lambda _: cuda(torch.device("cuda")))
        torch.set_float32_matmul_precision("high")
        outside, seen = settings(), []
        run = net.eval() if what == "network" else extract_subnet(net, 4)
        run.branches[0].register_forward_hook(lambda *_: seen.append(settings()))
        with torch.no_grad():
            run(images)
        assert seen == [("ieee", "ieee")] and settings() == outside
        if what == "network":
            run.train()(images)
            assert seen[1] == outside

    def test_nothing_on_other_devices(self) -> None:
        torch.set_float32_matmul_precision("high")
        before = settings()
        for device in ("cpu", "meta"):
            with exact_arithmetic(torch.device(device)):
                assert settings() == before


def settings() -> tuple[str, str]:
    """How CUDA multiplies matrices, and convolves."""
    return backends.cuda.matmul.fp32_precision, backends.cudnn.conv.fp32_precision
