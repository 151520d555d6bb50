"""To the FPGA: every bit-width as a project of the dataflow compiler FINN."""

from brevitas_multiquant.export.finn.check import Violation, check_finn
from brevitas_multiquant.export.finn.export import export_finn

__all__ = ["Violation", "check_finn", "export_finn"]
