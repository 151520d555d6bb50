"""Sharing a network, as methods that people know from other libraries.

What they do is in `brevitas_multiquant.hub`, floors above: it is looked up when it is asked for, so
that a network without a hub needs neither that module nor ``huggingface_hub``.
"""

import importlib
import os
from collections.abc import Mapping
from typing import Any, Self

from torch import nn


class PretrainedMethods:
    """Mixed into `MultiQuantNet`: a folder, or a repository of the Hugging Face Hub."""

    def save_pretrained(
        self,
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
            save_directory: made if it does not exist.
            accuracy: bit-width -> top-1 in %, for the card.
            dataset: what it was measured on.
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
        url: str | None = _hub().save_pretrained(
            self, save_directory, accuracy=accuracy, dataset=dataset, license=license
        )
        if push_to_hub:
            name = repo_id or os.path.basename(os.path.abspath(save_directory))
            details = {"accuracy": accuracy, "dataset": dataset, "license": license}
            url = self.push_to_hub(name, **details, **push_to_hub_kwargs)  # type: ignore[arg-type]
        return url

    def push_to_hub(
        self,
        repo_id: str,
        *,
        accuracy: Mapping[int, float] | None = None,
        dataset: str | None = None,
        license: str = "bsd-3-clause",
        **push_to_hub_kwargs: Any,
    ) -> str:
        """Upload what `save_pretrained` writes.

        Args:
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
        url: str = _hub().push_to_hub(
            self,
            repo_id,
            accuracy=accuracy,
            dataset=dataset,
            license=license,
            **push_to_hub_kwargs,
        )
        return url

    @classmethod
    def from_pretrained(
        cls,
        pretrained_model_name_or_path: str | os.PathLike[str],
        *,
        model: nn.Module | None = None,
        trainable: bool = False,
        revision: str | None = None,
        **download_kwargs: Any,
    ) -> Self:
        """The network of a folder, or of a repository of the Hub.

        Args:
            pretrained_model_name_or_path: a folder, or ``"user/name"``.
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
        net: Self = _hub().from_pretrained(
            pretrained_model_name_or_path,
            model=model,
            trainable=trainable,
            revision=revision,
            **download_kwargs,
        )
        return net


def _hub() -> Any:
    return importlib.import_module("brevitas_multiquant.hub")
