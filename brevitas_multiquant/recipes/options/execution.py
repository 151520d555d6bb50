"""Where and how a step is computed; the network that comes out is meant to be the same."""

from dataclasses import dataclass

from brevitas_multiquant.recipes.options.option import SWITCH, option
from brevitas_multiquant.recipes.options.types import positive


@dataclass(frozen=True)
class DeviceOptions:
    """Where to compute."""

    device: str = option("auto", choices=["auto", "cpu"], help="auto: what Accelerate finds")


@dataclass(frozen=True)
class ExecutionOptions:
    """How a step is computed."""

    grad_accum_steps: int = option(1, positive, "batches an update", metavar="N")
    amp: str | None = option(nargs="?", const="bf16", choices=["bf16"], help="mixed precision")
    channels_last: bool = option(True, action=SWITCH, help="memory format: faster on CPU and GPU")
    compile: bool = option(False, help="compile what training steps run")
    recompute: bool = option(False, help="run branches again in backward: less memory")
