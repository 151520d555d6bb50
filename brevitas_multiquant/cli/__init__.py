"""``brevitas-multiquant``: one command, from a float model to files for an FPGA."""

from brevitas_multiquant.cli.commands import main, parsers

__all__ = ["main", "parsers"]
