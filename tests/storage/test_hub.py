"""Networks in a folder and on the Hub; nothing here touches the network."""

import builtins
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from huggingface_hub import ModelCard
from torch import Tensor

from brevitas_multiquant import ModelSource, MultiQuantError, MultiQuantNet, cost
from brevitas_multiquant.errors import CalibrationError, HubError, SourceError
from brevitas_multiquant.storage.model_card import CARD, CONFIG, PLOT, WEIGHTS
from tests.tiny import TinyNet

OWN = ModelSource("own", "TinyNet")
ACCURACY = {2: 90.25, 4: 91.5}


@pytest.fixture
def net(net: MultiQuantNet) -> MultiQuantNet:
    net.source = OWN
    return net


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)


def outputs(net: MultiQuantNet, images: Tensor) -> list[Tensor]:
    with torch.no_grad():
        return [net(images) for bits in net.bits for _ in [net.set_active_bits(bits)]]


def test_round_trip_is_equal_to_the_bit(net: MultiQuantNet, images: Tensor, tmp_path: Path) -> None:
    assert net.save_pretrained(tmp_path / "new" / "net", accuracy=ACCURACY) is None
    loaded = MultiQuantNet.from_pretrained(tmp_path / "new" / "net", model=TinyNet())
    assert type(loaded) is MultiQuantNet
    assert not loaded.training
    assert loaded.config == net.config
    for ours, theirs in zip(outputs(loaded, images), outputs(net.eval(), images), strict=True):
        assert torch.equal(ours, theirs)


def test_files(net: MultiQuantNet, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path, accuracy=ACCURACY, dataset="cifar10", license="mit")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([WEIGHTS, CONFIG, CARD, PLOT])
    config = json.loads((tmp_path / CONFIG).read_text())
    assert config["multiquant"] == net.config.to_dict()
    assert config["architecture"] == OWN.to_dict()
    assert config["top1"] == {"2": 90.25, "4": 91.5}
    assert (tmp_path / PLOT).read_bytes().startswith(b"\x89PNG")


def test_model_card(net: MultiQuantNet, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path, accuracy=ACCURACY, dataset="cifar10", license="mit")
    card = ModelCard.load(tmp_path / CARD)
    data = card.data.to_dict()
    assert data["license"] == "mit"
    assert data["library_name"] == "brevitas_multiquant"
    assert data["pipeline_tag"] == "image-classification"
    assert data["datasets"] == ["cifar10"]
    assert data["tags"] == ["quantization", "brevitas", "multiquant", "arxiv:2305.08117"]
    one = cost(net)[4]
    row = f"| 4 | 91.50 % | 2 | {one.macs / 1e6:.1f} | {one.bitops / 1e9:.3f} |"
    assert row in card.text
    assert "top-1 on cifar10" in card.text
    assert "Weights are odd (-3, -1, 1, 3),\nstored in two bits each." in card.text
    assert f"]({PLOT})" in card.text
    assert "MultiQuantNet.from_pretrained(" in card.text
    assert "model=YOUR_FLOAT_MODEL" in card.text
    assert "https://arxiv.org/abs/2305.08117" in card.text


def test_card_without_accuracies(net: MultiQuantNet, tmp_path: Path) -> None:
    net.save_pretrained(tmp_path)
    text = (tmp_path / CARD).read_text()
    assert text.count("not measured") == len(net.bits)
    assert PLOT not in text
    assert not (tmp_path / PLOT).exists()


def test_a_card_that_is_there_stays(net: MultiQuantNet, tmp_path: Path) -> None:
    (tmp_path / CARD).write_text("mine")
    net.save_pretrained(tmp_path)
    assert (tmp_path / CARD).read_text() == "mine"
    assert (tmp_path / WEIGHTS).exists()


@pytest.mark.parametrize("accuracy", [{2: 90.0}, {2: 90.0, 3: 1.0}, {}])
def test_accuracies_of_other_bit_widths(
    accuracy: dict[int, float], net: MultiQuantNet, tmp_path: Path
) -> None:
    with pytest.raises(HubError, match=r"one number for each of the bit-widths \[2, 4\]"):
        net.save_pretrained(tmp_path / "net", accuracy=accuracy)
    assert not list(tmp_path.iterdir())


def test_failures_leave_no_folder(make_net: Callable[..., MultiQuantNet], tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="call calibrate"):
        make_net(source=OWN).save_pretrained(tmp_path / "net")
    with pytest.raises(SourceError, match="unknown source"):
        make_net().save_pretrained(tmp_path / "net")
    assert not list(tmp_path.iterdir())


def test_folders_without_a_network(tmp_path: Path) -> None:
    with pytest.raises(HubError, match=f"expected {WEIGHTS} in the folder"):
        MultiQuantNet.from_pretrained(tmp_path)


@pytest.mark.parametrize("name", ["somebody/some-net", "no/such/folder", "", "a b"])
def test_names_that_are_neither_folder_nor_repository(name: str, tmp_path: Path) -> None:
    with pytest.raises(HubError, match="expected a folder, or a repository of the Hub"):
        MultiQuantNet.from_pretrained(name, cache_dir=tmp_path)


def test_download(net: MultiQuantNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    net.save_pretrained(tmp_path)
    asked: list[Any] = []

    def download(repo_id: str, filename: str, **options: Any) -> str:
        asked.append((repo_id, filename, options))
        return str(tmp_path / filename)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", download)
    MultiQuantNet.from_pretrained("me/net", model=TinyNet(), revision="v1", token="t")
    assert asked == [("me/net", WEIGHTS, {"revision": "v1", "token": "t"})]


class Uploads:
    """Stands in for the Hub: what was made and uploaded."""

    def __init__(self) -> None:
        self.created: list[Any] = []
        self.files: dict[str, bytes] = {}
        self.options: dict[str, Any] = {}

    def create_repo(self, _api: object, repo_id: str, **options: Any) -> Any:
        self.created.append((repo_id, options))
        whole = repo_id if "/" in repo_id else f"me/{repo_id}"
        return huggingface_hub.RepoUrl(f"https://huggingface.co/{whole}")

    def upload_folder(self, _api: object, *, folder_path: Path, **options: Any) -> str:
        self.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        self.options = options
        return "https://huggingface.co/me/net/commit/1"


@pytest.fixture
def uploads(monkeypatch: pytest.MonkeyPatch) -> Uploads:
    fake = Uploads()
    api = huggingface_hub.HfApi
    monkeypatch.setattr(api, "create_repo", lambda *a, **k: fake.create_repo(*a, **k))
    monkeypatch.setattr(api, "upload_folder", lambda *a, **k: fake.upload_folder(*a, **k))
    return fake


def test_push(net: MultiQuantNet, uploads: Uploads, tmp_path: Path) -> None:
    url = net.push_to_hub("me/net", accuracy=ACCURACY, private=True, commit_message="First")
    assert url == "https://huggingface.co/me/net/commit/1"
    ((repo_id, options),) = uploads.created
    assert repo_id == "me/net"
    assert options["private"] is True
    assert uploads.options["commit_message"] == "First"
    net.save_pretrained(tmp_path, accuracy=ACCURACY)
    written = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert uploads.files.keys() == written.keys()
    assert uploads.files[WEIGHTS] == written[WEIGHTS]
    assert uploads.files[CARD] == written[CARD]


def test_save_and_push(net: MultiQuantNet, uploads: Uploads, tmp_path: Path) -> None:
    url = net.save_pretrained(tmp_path / "mynet", push_to_hub=True, private=True)
    assert url == "https://huggingface.co/me/net/commit/1"
    assert uploads.created[0][0] == "mynet"
    assert (tmp_path / "mynet" / WEIGHTS).read_bytes() == uploads.files[WEIGHTS]


def test_push_that_fails(net: MultiQuantNet, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub.HfApi, "create_repo", refuse)
    with pytest.raises(HubError, match="me/net was not uploaded: no route to host"):
        net.push_to_hub("me/net")


def test_without_huggingface_hub(
    net: MultiQuantNet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder needs no package of the Hub."""
    real = builtins.__import__

    def without(name: str, *rest: Any, **options: Any) -> Any:
        if name.partition(".")[0] == "huggingface_hub":
            raise ImportError(f"No module named {name}")
        return real(name, *rest, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    net.save_pretrained(tmp_path)
    MultiQuantNet.from_pretrained(tmp_path, model=TinyNet())
    with pytest.raises(MultiQuantError, match=r'pip install "brevitas-multiquant\[hub\]"'):
        net.push_to_hub("me/net")
