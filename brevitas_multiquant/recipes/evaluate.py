"""Top-1 accuracy of a packed network, a bit-width or assignment at a time, beside its cost."""

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from accelerate import Accelerator

from brevitas_multiquant import Assignment, MultiQuantNet, cost, load_packed
from brevitas_multiquant.core.precision import key_of
from brevitas_multiquant.cost.table import Cost
from brevitas_multiquant.recipes.data.batches import Eval, eval_batches
from brevitas_multiquant.recipes.data.shard import Shard
from brevitas_multiquant.recipes.errors import OptionError, exit_code
from brevitas_multiquant.recipes.network.accuracy import top1
from brevitas_multiquant.recipes.network.build import choose_num_classes
from brevitas_multiquant.recipes.network.modes import evaluating
from brevitas_multiquant.recipes.network.multi_branch import IMAGE_CHANNELS
from brevitas_multiquant.recipes.options.data import DataOptions
from brevitas_multiquant.recipes.options.evaluate import EvaluateOptions, parse_evaluate
from brevitas_multiquant.recipes.results.image_task import data_set_name
from brevitas_multiquant.recipes.results.report import result_table
from brevitas_multiquant.recipes.run.header import evaluation_header


def run(options: EvaluateOptions) -> dict[int | Assignment, float]:
    """Evaluate and print the table.

    Raises:
        OptionError: no data is named, or it does not go with other options; bit-widths, an image
            size or classes that the network does not have.
        BitWidthError: an assignment that cannot be read, or does not fit the network.
    """
    assignments = [Assignment.load(path) for path in options.assignment or ()]
    accelerator = Accelerator(cpu=options.device.device == "cpu")
    net = load_packed(options.packed).to(accelerator.device)
    options.check_named()
    data = as_trained(options.data, net)
    bits = tuple(options.bits or net.bits)
    if unknown := sorted(set(bits) - set(net.bits)):
        raise OptionError(f"--bits: expected some of {list(net.bits)}, got {unknown}")
    shard = Shard(accelerator.process_index, accelerator.num_processes, accelerator.device)
    batches = eval_batches(data, shard)
    data = replace(data, num_classes=choose_num_classes(data.num_classes, batches.num_classes))
    check_fits(net, options.packed, data)
    if accelerator.is_main_process and not options.json:
        print(evaluation_header(options.packed, data, batches, bits), flush=True)
    settings: list[int | Assignment] = [*bits, *assignments]
    shape = (1, IMAGE_CHANNELS, data.img_size, data.img_size)
    costs = cost(net, shape, assignments=assignments)
    accuracy = top1(net, batches, settings, accelerator)
    if accelerator.is_main_process:
        if options.json:
            print(as_json(options.packed, data, batches, accuracy, costs))
        else:
            print(result_table(accuracy, {**costs, **costs.assignments}))
    return accuracy


def as_trained(data: DataOptions, net: MultiQuantNet) -> DataOptions:
    """Images of the size that a network was made for, normalised as its file says.

    What the options say stands above both.

    Raises:
        OptionError: as `square_size`.
    """
    data = replace(data, img_size=data.img_size or square_size(net))
    if net.image_task is None:
        return data
    told = net.image_task.preprocessing
    return replace(data, mean=data.mean or list(told.mean), std=data.std or list(told.std))


def as_json(
    packed: str,
    data: DataOptions,
    batches: Eval,
    accuracy: Mapping[int | Assignment, float],
    costs: Cost,
) -> str:
    """What was measured, and on what, as one document; accuracies are top-1 in percent."""
    document = {
        "packed": packed,
        "dataset": data_set_name(data),
        "images": batches.count,
        "img_size": data.img_size,
        "num_classes": data.num_classes,
        "normalisation": data.normalisation,
        "top1": {key_of(setting): value for setting, value in accuracy.items()},
        **costs.to_dict(),
    }
    return json.dumps(document, indent=2)


def square_size(net: MultiQuantNet) -> int:
    """Height and width of the images that a network was made for.

    Raises:
        OptionError: it does not tell, or they differ.
    """
    *_, height, width = net.input_shape or (0, 1)
    if height != width:
        raise OptionError(
            f"--img-size: expected a network for square images, got one for {net.input_shape}: "
            "give the size"
        )
    return height


@torch.no_grad()
def check_fits(net: MultiQuantNet, packed: str, options: DataOptions) -> None:
    """Check that a network reads such images and tells as many classes as they have.

    Raises:
        OptionError: it does not.
    """
    channels = (net.input_shape or (1, IMAGE_CHANNELS))[1]
    if channels != IMAGE_CHANNELS:
        raise OptionError(
            f"{packed}: expected a network for images of {IMAGE_CHANNELS} channels, which the "
            f"recipes read, got one for {channels}"
        )
    image = torch.zeros(1, IMAGE_CHANNELS, options.img_size, options.img_size)
    with evaluating(net):
        outputs = net(image.to(next(net.parameters()).device)).shape[1]
    if outputs != options.num_classes:
        raise OptionError(
            f"--dataset {options.dataset or options.data_dir}: expected the {outputs} classes that "
            f"{packed} tells, got {options.num_classes}: name the data that it was trained for, "
            f"or add --num-classes {outputs} where its first labels mean the same"
        )


def main(argv: Sequence[str] | None = None) -> int:
    """Run the recipe; 0 for success, 2 for wrong usage, 1 for any other named error."""
    return exit_code(lambda: run(parse_evaluate(argv)))


if __name__ == "__main__":
    sys.exit(main())
