"""Published float weights: whether they are at hand, found out in seconds."""

import urllib.error
import urllib.request
from pathlib import Path
from urllib.parse import urlparse

import huggingface_hub
import timm
import torch
import torchvision

from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.recipes.errors import MissingFileError

HUB_FILES = ("model.safetensors", "pytorch_model.bin")
SECONDS = 5


def require_published(source: ModelSource) -> None:
    """Check that published weights were downloaded before, or that their server answers.

    The libraries try again and again where it does not, for most of a minute.

    Args:
        source: of a model; one that the library does not know, or knows no weights of, passes,
            for the library to say so.

    Raises:
        MissingFileError: neither; says what to do without a network.
    """
    url, is_here = _address(source)
    if url is None or is_here:
        return
    if reason := unreachable(url):
        raise MissingFileError(
            f"--pretrained: expected the published weights of {source.name} at {url}, which does "
            f"not answer ({reason}): give --initial-checkpoint FILE with float weights, "
            "--no-pretrained to start from random ones, or come back with a network"
        )


def _address(source: ModelSource) -> tuple[str | None, bool]:
    """Where the weights are published, and whether a former download is at hand."""
    if source.library == "torchvision":
        if source.name.lower() not in torchvision.models.list_models(module=torchvision.models):
            return None, False
        return _plain(torchvision.models.get_model_weights(source.name.lower()).DEFAULT.url)
    known = timm.get_pretrained_cfg(source.name) if timm.is_model(source.name) else None
    if known is None or not known.hf_hub_id:
        url = known.url if known is not None else None
        return _plain(url if isinstance(url, str) else None)
    repository = known.hf_hub_id
    here = [huggingface_hub.try_to_load_from_cache(repository, name) for name in HUB_FILES]
    endpoint = huggingface_hub.constants.ENDPOINT
    return f"{endpoint}/{repository}", any(isinstance(path, str) for path in here)


def _plain(url: str | None) -> tuple[str | None, bool]:
    """Of a file that torch downloads by its address."""
    if not url:
        return None, False
    name = Path(urlparse(url).path).name
    return url, (Path(torch.hub.get_dir()) / "checkpoints" / name).is_file()


def unreachable(url: str) -> str:
    """Why a server does not answer within `SECONDS`; empty where it does, whatever it says.

    Example:
        >>> bool(unreachable("http://127.0.0.1:9"))
        True
    """
    asked = urllib.request.Request(url, method="HEAD")
    try:
        with urllib.request.urlopen(asked, timeout=SECONDS):
            return ""
    except urllib.error.HTTPError:
        return ""
    except urllib.error.URLError as error:
        return str(error.reason)
    except OSError as error:
        return str(error)
