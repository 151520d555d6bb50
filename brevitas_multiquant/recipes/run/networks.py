"""The network that the options ask for, and the task that trains it."""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import timm
import torchvision
from torch import Tensor, nn

from brevitas_multiquant import InPlaceDistillation, MultiQuantNet, multiquantize
from brevitas_multiquant.core.float_model import ModelSource
from brevitas_multiquant.recipes.errors import OptionError
from brevitas_multiquant.recipes.run.initial import load_initial, require_file

FLOAT_BITS = 32
IMAGE_CHANNELS = 3


class FloatTask(nn.Module):
    """The float baseline behind the interface of `InPlaceDistillation`: plain cross-entropy."""

    def __init__(self, net: nn.Module, criterion: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.criterion = criterion

    def forward(self, images: Tensor, target: Tensor) -> dict[str, Any]:
        """``loss`` and ``outputs`` of a batch."""
        logits = self.net(images)
        loss = self.criterion(logits, target)
        return {"loss": loss, "outputs": {FLOAT_BITS: logits}}

    def step(
        self,
        images: Tensor,
        target: Tensor,
        backward: Callable[[Tensor], None],
        bits: Sequence[int] | None = None,
    ) -> dict[str, Any]:
        """The same, after ``backward(loss)``."""
        parts = self(images, target)
        backward(parts["loss"])
        return parts


def model_source(args: argparse.Namespace, num_classes: int) -> ModelSource:
    """Library, name and arguments of the float model that the options ask for.

    Raises:
        OptionError: arguments that other options or the images decide.
    """
    given = dict(args.model_kwargs)
    if "num_classes" in given:
        raise OptionError(
            f"--model-kwargs num_classes={given['num_classes']}: expected it as --num-classes"
        )
    if given.get("in_chans", IMAGE_CHANNELS) != IMAGE_CHANNELS:
        raise OptionError(
            f"--model-kwargs in_chans={given['in_chans']}: expected {IMAGE_CHANNELS}, the channels "
            "of the images that the recipes read, grey ones too"
        )
    kwargs = {**given, "num_classes": num_classes}
    for prefix in ("tv:", "torchvision:", "torchvision/"):
        if args.model.startswith(prefix):
            return ModelSource("torchvision", args.model.removeprefix(prefix), kwargs)
    return ModelSource("timm", args.model.removeprefix("timm/"), kwargs)


def create_float_model(source: ModelSource, pretrained: bool, checkpoint: str | None) -> nn.Module:
    """The float model, with published weights or those of a file where asked for.

    Raises:
        OptionError: an unknown model, or arguments or weights that it does not take.
        MissingFileError: no such checkpoint.
    """
    if checkpoint is not None:
        require_file(checkpoint)
    try:
        source.check()
        if not pretrained:
            model = source.build()
        elif source.library == "torchvision":
            model = torchvision.models.get_model(source.name, weights="DEFAULT", **source.kwargs)
        else:
            model = timm.create_model(source.name, pretrained=True, **source.kwargs)
    except (KeyError, OSError, RuntimeError, TypeError, ValueError) as error:
        raise OptionError(
            f"--model {source.name}: {source.library} cannot create it with {source.kwargs}"
            f"{' and published weights' if pretrained else ''}: {error}"
        ) from error
    if checkpoint is not None:
        load_initial(model, checkpoint)
    return model


def create_network(args: argparse.Namespace, num_classes: int) -> nn.Module:
    """The network to train: multi-branch, or with ``--float`` the float model itself."""
    source = model_source(args, num_classes)
    model = create_float_model(source, args.pretrained, args.initial_checkpoint)
    if args.float:
        return model
    trained = args.pretrained or args.initial_checkpoint is not None
    return multiquantize(
        model,
        args.bits,
        profile=args.profile,
        selection=args.selection,
        merge=args.merge,
        weights=args.weights,
        branch_init=args.branch_init or ("copy" if trained else "shuffle"),
        head=args.head,
        input_shape=(1, 3, args.img_size, args.img_size),
        source=source,
        seed=args.seed,
    )


def create_task(args: argparse.Namespace, net: nn.Module) -> FloatTask | InPlaceDistillation:
    """The training task: images and labels to a loss."""
    criterion = nn.CrossEntropyLoss(label_smoothing=args.smoothing)
    if not isinstance(net, MultiQuantNet):
        return FloatTask(net, criterion)
    return InPlaceDistillation(
        net,
        loss=args.distill_loss,
        distill=not args.no_distill,
        criterion=criterion,
    )


def choose_num_classes(args: argparse.Namespace, found: int) -> int:
    """``--num-classes``, or as many as the training images have.

    Raises:
        OptionError: fewer asked for than the images have, a single one, or none known.
    """
    if (args.num_classes or found) == 1:
        raise OptionError(
            "--num-classes: expected two classes or more, got 1: the cross entropy of a single "
            "output is 0 whatever the network does"
        )
    if args.num_classes is None and found == 0:
        raise OptionError("--num-classes: this data set does not tell its classes; give the number")
    if args.num_classes is not None and args.num_classes < found:
        raise OptionError(
            f"--num-classes: expected at least the {found} classes of the training images, "
            f"got {args.num_classes}"
        )
    return args.num_classes or found
