"""Where modules were before release 0.2: their old names work for one release, with a warning."""

import importlib
import sys
import warnings
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

PACKAGE = "brevitas_multiquant"

_MODULES = """
calibrate training.calibrate
checkpoint storage.packed_net
collector core.paused_collector
computed_once core.computed_once
config core.config
distill training.objective
export.cleanup export.qonnx.cleanup
export.execute export.qonnx.execute
export.folder storage.staging
fixed_point core.power_of_two
functional core.clip_quantize
hub storage.hub
models core.cifar_networks
nn.fixed_point profiles.finn.modules
nn.plain quant.plain
norm_statistics training.norm_statistics
packed_file storage.packed_file
packing core.packing
quant.fixed_point profiles.finn.quantizers
quant.state core.panel
rewrite.axes rewrite.graph.axes
rewrite.channels rewrite.graph.channels
rewrite.half rewrite.narrow.widths
rewrite.in_place rewrite.overwriting
rewrite.kinds rewrite.graph.kinds
rewrite.multiquantize methods.convert
rewrite.normalise rewrite.graph.normalise
rewrite.opaque rewrite.graph.opaque
rewrite.paths rewrite.graph.paths
rewrite.scaling rewrite.narrow.scaling
rewrite.trace rewrite.graph.trace
rewrite.tracer rewrite.graph.tracer
selection core.selection
skeleton storage.skeleton
source core.float_model
subnet nn.subnet
versions core.supported_versions
weight_format core.grids
"""
_RECIPES = """
augment data.augment
cached_batches data.cached_batches
checkpoints results.checkpoints
create run.create
data data.batches
data_options options.data
dry_run run.dry_run
errors errors
execution network.training_forwards
file_batches data.file_batches
health network.health
images data.images
interrupt run.interrupt
loop run.loop
memory run.memory
networks network.build
norms run.norms
optimizers network.optimizers
option_types options.types
options options.train
plots results.plots
processes run.processes
reading data.reading
report results.report
run run.run
run_folder results.run_folder
sampling run.sampling
seeds data.seeds
shard data.shard
sources data.sources
state results.state
step run.step
streams data.streams
tracking run.tracking
yaml_options options.yaml_files
"""

MOVED = {
    **{
        f"{PACKAGE}.{old}": f"{PACKAGE}.{new}"
        for old, new in (line.split() for line in _MODULES.strip().splitlines())
    },
    **{
        f"recipes.{old}": f"{PACKAGE}.recipes.{new}"
        for old, new in (line.split() for line in _RECIPES.strip().splitlines())
    },
}
"""Old module -> new one."""


class MovedModule(ModuleType):
    """Stands under a module's old name; looks everything up in the module itself."""

    def __init__(self, old: str) -> None:
        super().__init__(old, f"Moved to `{MOVED[old]}`.")

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # the import system asks for what a module may lack
            raise AttributeError(name)
        _warn(self.__name__)
        return getattr(importlib.import_module(MOVED[self.__name__]), name)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`rewrite` gave its function ``multiquantize`` under the name of the module."""
        return getattr(self, self.__name__.rpartition(".")[2])(*args, **kwargs)

    def __dir__(self) -> list[str]:
        return dir(importlib.import_module(MOVED[self.__name__]))


def _warn(old: str) -> None:
    message = f"{old} has moved to {MOVED[old]}; the old name goes with the next release"
    warnings.warn(message, DeprecationWarning, stacklevel=3)


class OldNames(MetaPathFinder, Loader):
    """Finds modules by their old names, after everybody else has found none."""

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """A spec for an old name; None for any other."""
        return ModuleSpec(fullname, self) if fullname in MOVED else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        """What stands under the old name."""
        return MovedModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """Load the module itself: some are imported for what that does."""
        _warn(module.__name__)
        importlib.import_module(MOVED[module.__name__])


def keep_old_names() -> None:
    """Make every old module name importable; call it once all names of the door are there.

    Example:
        >>> from brevitas_multiquant.packing import pack  # was here once
        >>> pack.__module__
        'brevitas_multiquant.core.packing'
    """
    sys.meta_path.append(OldNames())
    for name in vars(sys.modules[PACKAGE]):
        old = f"{PACKAGE}.{name}"
        if old in MOVED:  # importing it anew would put the module in the place of the function
            sys.modules.setdefault(old, MovedModule(old))
