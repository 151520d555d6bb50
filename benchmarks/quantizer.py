"""One quantizer, forward and backward: the CPU time of today's over that of an older commit's.

    python benchmarks/quantizer.py [--old HEAD~1] [--pairs 60]

Of the older commit only ``core/clip_quantize.py`` is taken, and the grids that it reads. Both run
one after the other in one process, on one thread; the median of the pairs' ratios is printed.
Levels in a tensor are today's alone: over the older commit's numbers.
"""

import argparse
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from benchmarks.measure import paired_ratio
from brevitas_multiquant.core import clip_quantize, grids

ROOT = Path(__file__).parents[1]

Quantize = Callable[[ModuleType, Tensor, Tensor, Tensor], Tensor]
"""Module that quantizes, x, l, u -> codes."""


def weights(module: ModuleType, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return module.quantize_weight(x, lower, upper)  # type: ignore[no-any-return]


def activations(module: ModuleType, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    return module.quantize_activation(x, lower, upper, 4)  # type: ignore[no-any-return]


def with_tensor(module: ModuleType, x: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    levels = torch.tensor(15)
    return module.quantize_activation(x, lower, upper, 8, levels=levels)  # type: ignore[no-any-return]


CASES: list[tuple[str, tuple[int, ...], Quantize, Quantize]] = [
    ("activations", (128, 16, 32, 32), activations, activations),
    ("activations", (64, 64, 8, 8), activations, activations),
    ("weights", (64, 64, 3, 3), weights, weights),
    ("levels in a tensor", (128, 16, 32, 32), activations, with_tensor),
    ("levels in a tensor", (64, 64, 8, 8), activations, with_tensor),
]
"""Name, shape, what the older commit runs, what today's runs."""


def older(commit: str) -> ModuleType:
    """The quantizer of a commit, beside the one that is imported."""
    found = {}
    now = {module.__name__: module for module in (grids, clip_quantize)}
    for name, module in now.items():
        path = Path(str(module.__file__)).relative_to(ROOT)
        source = subprocess.check_output(["git", "show", f"{commit}:{path}"], cwd=ROOT, text=True)
        found[name] = sys.modules[name] = ModuleType(name)
        exec(compile(source, f"{commit}:{path}", "exec"), vars(found[name]))
    sys.modules.update(now)
    return found[clip_quantize.__name__]


def step(quantize: Quantize, module: ModuleType, shape: tuple[int, ...]) -> Callable[[], None]:
    """Codes and all gradients, several times where tensors are small."""
    generator = torch.Generator().manual_seed(0)
    grad = torch.randn(shape, generator=generator)
    x = torch.randn(shape, generator=generator).relu().requires_grad_()
    inputs = x, *(torch.tensor(bound, requires_grad=True) for bound in (0.0, 2.0))

    def run() -> None:
        for _ in range(max(1, 2**20 // x.numel())):
            torch.autograd.grad(quantize(module, *inputs), inputs, grad)

    return run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--old", default="HEAD~1", help="the older commit")
    parser.add_argument("--pairs", type=int, default=60)
    options = parser.parse_args()
    torch.set_num_threads(1)
    old = older(options.old)
    for name, shape, before, now in CASES:
        new = step(now, clip_quantize, shape)
        ratio = paired_ratio(new, step(before, old, shape), options.pairs)
        print(f"{name} {'x'.join(map(str, shape))}: {ratio:.3f}", flush=True)


if __name__ == "__main__":
    main()
