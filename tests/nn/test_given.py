"""Wrapped networks, and things that are none, in every function that takes a network."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel
from torch.optim.swa_utils import AveragedModel

from brevitas_multiquant import (
    InPlaceDistillation,
    ModelSource,
    MultiQuantNet,
    calibrate,
    cost,
    extract_subnet,
    reestimate_norms,
    save_packed,
)
from brevitas_multiquant.errors import NetworkError
from brevitas_multiquant.export import check_finn, export_finn, export_onnx, export_qonnx
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.storage.hub import push_to_hub, save_pretrained
from tests.tiny import TinyNet

FUNCTIONS: dict[str, Callable] = {
    "calibrate": lambda net, images, _: calibrate(net, [images]),
    "reestimate_norms": lambda net, images, _: reestimate_norms(net, [images]),
    "cost": lambda net, *_: cost(net),
    "extract_subnet": lambda net, *_: extract_subnet(net, 2),
    "save_packed": lambda net, _, folder: save_packed(net, folder / "net"),
    "save_pretrained": lambda net, _, folder: save_pretrained(
        net, folder, accuracy=None, dataset=None, license="mit"
    ),
    "check_finn": lambda net, *_: check_finn(net),
    "export_qonnx": lambda net, _, folder: export_qonnx(net, folder / "q", bits=[2]),
    "export_onnx": lambda net, _, folder: export_onnx(net, folder / "o", bits=[2]),
}
"""Those that run on any network: name -> call."""

REFUSING: dict[str, Callable] = {
    **FUNCTIONS,
    "export_finn": lambda net, _, folder: export_finn(net, folder),
    "push_to_hub": lambda net, *_: push_to_hub(net, "user/name"),
    "InPlaceDistillation": lambda net, *_: InPlaceDistillation(net),
}


@pytest.fixture(scope="module")
def one_rank(tmp_path_factory: pytest.TempPathFactory):
    store = tmp_path_factory.mktemp("ranks") / "store"
    torch.distributed.init_process_group("gloo", f"file://{store}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


WRAPPERS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "DataParallel": DataParallel,
    "DistributedDataParallel": lambda net: DistributedDataParallel(
        net, find_unused_parameters=True
    ),
    "AveragedModel": AveragedModel,
    "a compiled module": lambda net: torch.compile(net, backend="eager"),
    "DataParallel of a compiled one": lambda net: DataParallel(torch.compile(net, backend="eager")),
}


@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_wrapped_networks_are_unwrapped(
    make_net: Callable[..., MultiQuantNet],
    images: Tensor,
    tmp_path: Path,
    one_rank: None,
    wrapper: str,
) -> None:
    net = make_net(source=ModelSource("own", "TinyNet"))
    calibrate(net, [images])
    wrapped = WRAPPERS[wrapper](net)
    for call in FUNCTIONS.values():
        call(wrapped, images, tmp_path)
    assert str(cost(wrapped)) == str(cost(net))
    inner = given_network(wrapped, "it")
    assert isinstance(inner, MultiQuantNet)
    assert inner is net or wrapper == "AveragedModel"  # which has a copy


@pytest.mark.parametrize("function", REFUSING)
def test_a_float_model_is_told_to_be_converted(
    images: Tensor, tmp_path: Path, function: str
) -> None:
    for model, named in (
        (TinyNet(), "TinyNet"),
        (DataParallel(TinyNet()), "DataParallel around TinyNet"),
    ):
        with pytest.raises(
            NetworkError,
            match=rf"{function}: expected a MultiQuantNet, got {named}; call multiquantize",
        ):
            REFUSING[function](model, images, tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("function", REFUSING)
def test_no_module_at_all(images: Tensor, tmp_path: Path, function: str) -> None:
    for thing in ("net.safetensors", None, {"state": 1}):
        with pytest.raises(NetworkError, match=r"pass what multiquantize\(model, bits\) returns"):
            REFUSING[function](thing, images, tmp_path)


def test_what_holds_a_network_is_told_where(net: MultiQuantNet) -> None:
    with pytest.raises(NetworkError, match=r"got InPlaceDistillation; .* pass its \.net"):
        cost(InPlaceDistillation(net))  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match=r"got Sequential; .* pass its \.0"):
        cost(nn.Sequential(net))  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match="one bit-width alone"):
        cost(extract_subnet(net, 2))  # type: ignore[arg-type]
    with pytest.raises(NetworkError, match="SimpleNamespace"):
        cost(SimpleNamespace(module=net))  # type: ignore[arg-type]


@pytest.mark.parametrize("wrapper", [name for name in WRAPPERS if name != "AveragedModel"])
def test_the_task_refuses_a_wrapped_network(
    net: MultiQuantNet, one_rank: None, wrapper: str
) -> None:
    """Unwrapped in silence, gradients would no longer be averaged, nor anything compiled."""
    with pytest.raises(NetworkError, match="wrap the task instead"):
        InPlaceDistillation(WRAPPERS[wrapper](net))  # type: ignore[arg-type]
