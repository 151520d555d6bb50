"""CPU time that ``net.compile()`` takes for each bit-width: a step with and without compiling.

    python -m benchmarks.compile_time cifar_resnet20 --method double_rounding

From an empty cache of the compiler, its child processes included; the largest bit-width first. The
graphs of one body are the same at every bit-width, so that code is generated and compiled once.
"""

import argparse
import os
import resource
import tempfile

import timm
import torch

import brevitas_multiquant.core.cifar_networks  # noqa: F401  registers the CIFAR networks
from brevitas_multiquant import MultiQuantNet, calibrate, multiquantize


def cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


def step_seconds(net: MultiQuantNet, bits: int, images: torch.Tensor) -> float:
    """CPU seconds of one forward and backward."""
    before = cpu_seconds()
    with net.at_bits(bits):
        net(images).square().mean().backward()
    return cpu_seconds() - before


def main() -> None:
    """Compile at each bit-width, and print what that took."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", nargs="?", default="cifar_resnet20", help="timm model name")
    parser.add_argument("--method", default="double_rounding")
    parser.add_argument("--bits", type=int, nargs="+", default=[2, 4, 6, 8])
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    images = torch.randn(32, 3, 32, 32).to(memory_format=torch.channels_last)
    model = timm.create_model(options.model, num_classes=10)
    shape = tuple(images[:1].shape)
    net = multiquantize(model, options.bits, method=options.method, input_shape=shape)
    calibrate(net, [images])
    net.train().compile(dynamic=False)
    total = 0.0
    with tempfile.TemporaryDirectory() as folder:
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = folder
        for bits in net.bits[::-1]:
            first, again = step_seconds(net, bits, images), step_seconds(net, bits, images)
            total += first - again
            print(f"{bits} bits: {first - again:.1f} s, then {again:.2f} s a step", flush=True)
    print(f"{options.model}, {options.method}: {total:.0f} CPU-seconds")


if __name__ == "__main__":
    main()
