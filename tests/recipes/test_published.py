"""Published weights that cannot be had are missed at once, and what to do instead is said."""

import http.server
import threading

import huggingface_hub
import pytest
import timm
import torch
import torchvision

from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.recipes import train
from brevitas_multiquant.recipes.network import published
from brevitas_multiquant.recipes.network.published import require_published, unreachable

NOBODY = "http://127.0.0.1:9"
"""A port that nobody listens at."""


@pytest.fixture
def offline(tmp_path, monkeypatch):
    """No server answers, and nothing was downloaded before."""
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", NOBODY)
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))

    def asked(*_, **__):
        raise AssertionError("a library was asked, which tries for most of a minute")

    monkeypatch.setattr(timm, "create_model", asked)
    monkeypatch.setattr(torchvision.models, "get_model", asked)


@pytest.mark.parametrize("model", ["resnet18", "tv:resnet18"])
def test_offline(offline, model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(published, "unreachable", lambda url: "no route to host")
    arguments = ["--model", model, "--pretrained", "--output", str(tmp_path / "out")]
    assert train.main(arguments) == 1
    (line,) = [one for one in capsys.readouterr().err.splitlines() if "Error" in one]
    assert "the published weights of resnet18 at http" in line
    assert "does not answer (no route to host): give --initial-checkpoint FILE" in line
    assert not (tmp_path / "out").exists()


def test_what_was_downloaded_before_needs_no_server(tmp_path, monkeypatch):
    monkeypatch.setattr(published, "unreachable", lambda url: "no route to host")
    monkeypatch.setattr(huggingface_hub, "try_to_load_from_cache", lambda *_: "a path")
    require_published(ModelSource("timm", "resnet18"))
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    url = torchvision.models.get_model_weights("resnet18").DEFAULT.url
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / url.rpartition("/")[2]).write_bytes(b"weights")
    require_published(ModelSource("torchvision", "resnet18"))


@pytest.mark.parametrize(
    "source", [("timm", "cifar_resnet8"), ("timm", "no"), ("torchvision", "no")]
)
def test_models_without_published_weights_are_left_to_their_library(source, monkeypatch):
    monkeypatch.setattr(published, "unreachable", lambda url: "no route to host")
    require_published(ModelSource(*source))


def test_who_answers():
    class Refuses(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self):
            self.send_error(403)

        def log_message(self, *_):
            pass

    server = http.server.HTTPServer(("127.0.0.1", 0), Refuses)
    threading.Thread(target=server.handle_request).start()
    try:
        assert unreachable(f"http://127.0.0.1:{server.server_port}") == ""
    finally:
        server.server_close()
    assert "refused" in unreachable(NOBODY)
