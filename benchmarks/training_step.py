"""What quantization adds to a training step: quantized against float, interleaved, CPU time.

    python benchmarks/training_step.py cifar_resnet20 --batch-size 128 --img-size 32

Prints the median ratio of CPU times of pairs that ran one after the other, so that what else the
machine does cancels out: a step of one branch at 2 bits against the float network, and the full
step (all bit-widths, one backward each) against as many float passes as it has branch passes.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F

import brevitas_multiquant.models  # noqa: F401  registers the CIFAR networks
from brevitas_multiquant import InPlaceDistillation, calibrate, multiquantize


def paired_ratio(a: Callable[[], object], b: Callable[[], object], repeats: int) -> float:
    """Median over pairs of CPU time of ``a`` over that of ``b``; the first pair warms up."""
    ratios = []
    for _ in range(repeats + 1):
        times = []
        for step in (a, b):
            start = time.process_time()
            step()
            times.append(time.process_time() - start)
        ratios.append(times[0] / times[1])
    return statistics.median(ratios[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cifar_resnet20")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--channels-last", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)

    model = timm.create_model(options.model, num_classes=10).train()
    shape = (options.batch_size, 3, options.img_size, options.img_size)
    net = multiquantize(model, options.bits, input_shape=shape, branch_init="shuffle", check=False)
    images, labels = torch.randn(shape), torch.randint(0, 10, (options.batch_size,))
    calibrate(net, [images])
    if options.channels_last:
        for module in (model, net):
            module.to(memory_format=torch.channels_last)
        images = images.to(memory_format=torch.channels_last)
    task = InPlaceDistillation(net)
    passes = sum(len(branches) for branches in net.selection.values())

    def float_step() -> None:
        F.cross_entropy(model(images), labels).backward()

    def one_branch() -> None:
        with net.at_bits(min(net.bits)):
            F.cross_entropy(net(images), labels).backward()

    def float_passes() -> None:
        for _ in range(passes):
            float_step()

    def full_step() -> None:
        task.step(images, labels)

    one = paired_ratio(one_branch, float_step, options.repeats)
    full = paired_ratio(full_step, float_passes, max(options.repeats // 2, 3))
    layout = "channels_last" if options.channels_last else "contiguous"
    print(
        f"{options.model}, batch {options.batch_size} at {options.img_size}, {layout}, torch "
        f"{torch.__version__}: one branch / float {one:.3f}; full step / {passes} float passes "
        f"{full:.3f}"
    )


if __name__ == "__main__":
    main()
