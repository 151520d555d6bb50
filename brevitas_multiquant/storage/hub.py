"""Networks on the Hugging Face Hub, and in folders like those there.

A folder holds the packed file, its configuration and a generated model card. The packed file is the
one truth: ``config.json`` is for people and for the Hub's search, and is never read back.
``huggingface_hub`` is imported where it is used.
"""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn

from brevitas_multiquant.errors import HubError, MultiQuantError
from brevitas_multiquant.nn.given import given_network
from brevitas_multiquant.nn.network import MultiQuantNet
from brevitas_multiquant.storage.model_card import CARD, WEIGHTS, Details, write_folder
from brevitas_multiquant.storage.packed_net import load_packed
from brevitas_multiquant.storage.shipped import names_shipped
from brevitas_multiquant.storage.staging import staged


def save_pretrained(
    net: MultiQuantNet,
    save_directory: str | os.PathLike[str],
    *,
    accuracy: Mapping[int, float] | None = None,
    dataset: str | None = None,
    license: str = "bsd-3-clause",
    repo_id: str | None = None,
    push_to_hub: bool = False,
    **push_to_hub_kwargs: Any,
) -> str | None:
    """Write a folder that `from_pretrained` and the Hub understand.

    ``model.safetensors`` (the packed file), ``config.json``, and ``README.md``, the model card:
    accuracy and cost of each bit-width, how to load, licence and paper; with matplotlib also a
    plot. A README that is there stays. A failure leaves the folder as it was.

    Args:
        net: the network.
        save_directory: made if it does not exist.
        accuracy: bit-width -> top-1 in %, for the card; default: of ``net.image_task``.
        dataset: what it was measured on; default: of ``net.image_task``.
        license: of the weights, as the Hub spells it.
        repo_id: name on the Hub; default: the folder's.
        push_to_hub: upload it too.
        **push_to_hub_kwargs: for `push_to_hub`.

    Returns:
        The address of the commit, or None where nothing was uploaded.

    Raises:
        SourceError, CalibrationError, PackedFileError: as `brevitas_multiquant.save_packed`.
        HubError: accuracies of other bit-widths, a missing package, a failed upload.
        ExportError: a folder that cannot be written.

    Example:
        >>> import tempfile, torch
        >>> from torchvision.models import resnet18
        >>> from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize
        >>> net = multiquantize(resnet18(num_classes=10), [2, 4], input_shape=(1, 3, 32, 32))
        >>> calibrate(net, [torch.rand(4, 3, 32, 32)])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = net.save_pretrained(folder, accuracy={2: 90.1, 4: 91.5})
        ...     MultiQuantNet.from_pretrained(folder).bits
        (2, 4)
    """
    net = given_network(net, "save_pretrained")
    details = Details.of(net, accuracy, dataset, license)
    with staged(save_directory) as staging:
        write_folder(net, staging, details)
        if (Path(save_directory) / CARD).exists():  # its author may have written more into it
            (staging / CARD).unlink()
    if not push_to_hub:
        return None
    name = repo_id or os.path.basename(os.path.abspath(save_directory))
    return _upload(net, name, details, push_to_hub_kwargs)


def push_to_hub(
    net: MultiQuantNet,
    repo_id: str,
    *,
    accuracy: Mapping[int, float] | None = None,
    dataset: str | None = None,
    license: str = "bsd-3-clause",
    **push_to_hub_kwargs: Any,
) -> str:
    """Upload what `save_pretrained` writes.

    Args:
        net: the network.
        repo_id: ``"user/name"``; made if it does not exist.
        accuracy: as for `save_pretrained`.
        dataset: as for `save_pretrained`.
        license: as for `save_pretrained`.
        **push_to_hub_kwargs: of ``huggingface_hub.ModelHubMixin.push_to_hub``: ``token``,
            ``private``, ``branch``, ``create_pr``, ``commit_message``.

    Returns:
        The address of the commit.

    Raises:
        HubError: the upload failed.
    """
    net = given_network(net, "push_to_hub")
    details = Details.of(net, accuracy, dataset, license)
    return _upload(net, repo_id, details, push_to_hub_kwargs)


def _upload(net: MultiQuantNet, repo_id: str, details: Details, options: dict[str, Any]) -> str:
    hub = _huggingface_hub()

    class Repository(hub.ModelHubMixin):  # type: ignore[misc, name-defined]
        """The library's own way to create a repository and commit a folder to it."""

        def save_pretrained(self, save_directory: Path, **_: Any) -> None:
            Path(save_directory).mkdir(parents=True, exist_ok=True)
            write_folder(net, Path(save_directory), details)

    try:
        return str(Repository().push_to_hub(repo_id, **options))
    except MultiQuantError:
        raise
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        raise HubError(f"push_to_hub: {repo_id} was not uploaded: {error}") from error


def from_pretrained(
    pretrained_model_name_or_path: str | os.PathLike[str],
    *,
    model: nn.Module | None = None,
    trainable: bool = False,
    revision: str | None = None,
    **download_kwargs: Any,
) -> MultiQuantNet:
    """The network of a folder, of a repository of the Hub, or one that comes with the package.

    Args:
        pretrained_model_name_or_path: a folder, ``"user/name"``, or ``"zoo:NAME"`` as
            `brevitas_multiquant.storage.shipped.shipped_networks` lists them.
        model: the float model, where its source is the user's own; see
            `brevitas_multiquant.load_packed`.
        trainable: make it ready for training, see `brevitas_multiquant.load_packed`; without,
            it is for evaluation.
        revision: branch, tag or commit.
        **download_kwargs: of ``huggingface_hub.hf_hub_download``: ``token``, ``cache_dir``,
            ``local_files_only``, ``force_download``.

    Returns:
        The network in evaluation mode, equal to the saved one to the bit.

    Raises:
        HubError: no such folder or repository, or it holds no packed file.
        PackedFileError, SourceError: as `brevitas_multiquant.load_packed`.
    """
    name = pretrained_model_name_or_path
    if names_shipped(name):
        return load_packed(name, model, trainable=trainable)
    if os.path.isdir(name):
        path = Path(name) / WEIGHTS
        if not path.is_file():
            raise HubError(f"from_pretrained: expected {WEIGHTS} in the folder {name}, found none")
    else:
        path = Path(_downloaded(str(name), revision, download_kwargs))
    return load_packed(path, model, trainable=trainable)


def _downloaded(repo_id: str, revision: str | None, download: dict[str, Any]) -> str:
    hub = _huggingface_hub()
    try:
        return str(hub.hf_hub_download(repo_id, WEIGHTS, revision=revision, **download))
    except (OSError, ValueError) as error:  # the Hub's own errors are of these kinds
        raise HubError(
            f"from_pretrained: expected a folder, or a repository of the Hub that holds {WEIGHTS}, "
            f"got {repo_id!r}: {error}"
        ) from error


def _huggingface_hub() -> Any:
    try:
        import huggingface_hub
    except ImportError as error:
        raise HubError(
            f"the Hub needs the package huggingface_hub, which cannot be imported ({error}); "
            'pip install "brevitas-multiquant[hub]"'
        ) from error
    return huggingface_hub


# Networks have these as methods, as people know them from other libraries. They are given from up
# here: a network that nobody shares needs no file formats.
MultiQuantNet.save_pretrained = save_pretrained
MultiQuantNet.push_to_hub = push_to_hub
MultiQuantNet.from_pretrained = staticmethod(from_pretrained)
