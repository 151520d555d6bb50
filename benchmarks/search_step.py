"""What learning bit-widths costs: a step of the search over a plain step, CPU time and memory.

    python -m benchmarks.search_step cifar_resnet20 --batch-size 128 --repeats 9

One thread, forward and backward on random images, the update of the bits included. Both networks
are the individual one, at 8 bits at most; the plain one has whole bits, the other one learns them,
layer by layer or kernel by kernel. Ratios are medians over pairs that run one after the other.
"""

import argparse
import json
from collections.abc import Callable

import timm
import torch
import torch.nn.functional as F
from torch import Tensor

import brevitas_multiquant.core.cifar_networks  # noqa: F401  (registers the CIFAR networks)
from benchmarks.measure import conditions, paired_ratio, peak_bytes
from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize
from brevitas_multiquant.allocation import Budget
from brevitas_multiquant.allocation.bit_search import BitSearch

Step = Callable[[], None]


def network(options: argparse.Namespace, images: Tensor) -> MultiQuantNet:
    """The individual network, calibrated, in training mode."""
    torch.manual_seed(options.seed)
    model = timm.create_model(options.model, num_classes=10)
    net = multiquantize(
        model, [8], method="individual", input_shape=tuple(images.shape), check=False
    )
    calibrate(net, [images])
    return net.train()


def plain_step(net: MultiQuantNet, images: Tensor, labels: Tensor) -> Step:
    """Forward and backward of whole bits."""

    def step() -> None:
        net.zero_grad(set_to_none=True)
        F.cross_entropy(net(images), labels).backward()

    return step


def search_step(search: BitSearch, images: Tensor, labels: Tensor) -> Step:
    """The same while bits are learned, and their update."""

    def step() -> None:
        search.net.zero_grad(set_to_none=True)
        search(images, labels)["loss"].backward()
        search.update_bits(0.0)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cifar_resnet20")
    parser.add_argument("--batch-size", type=int, default=128)
    parser.add_argument("--img-size", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--no-compile", action="store_true", help="eager steps alone")
    options = parser.parse_args()
    torch.set_num_threads(1)
    images = torch.randn(options.batch_size, 3, options.img_size, options.img_size)
    labels = torch.randint(0, 10, (options.batch_size,))
    print(json.dumps({"model": options.model, **conditions(options.seed)}))

    plain = network(options, images)
    plain_peak = peak_bytes(plain_step(plain, images, labels))
    for name, channels in (("layer by layer", None), ("kernel by kernel", range(9))):
        net = network(options, images)
        step = search_step(BitSearch(net, Budget(uniform=3), channels=channels), images, labels)
        ratio = paired_ratio(step, plain_step(plain, images, labels), options.repeats)
        memory = peak_bytes(step) / plain_peak
        print(f"{name}: {ratio:.2f} of the time, {memory:.2f} of the memory", flush=True)
    if options.no_compile:
        return
    net = network(options, images)
    search = BitSearch(net, Budget(uniform=3))
    for one in (plain, net):
        one.compile(dynamic=False)
    ratio = paired_ratio(
        search_step(search, images, labels), plain_step(plain, images, labels), options.repeats
    )
    print(f"layer by layer, both compiled: {ratio:.2f} of the time", flush=True)


if __name__ == "__main__":
    main()
