"""To the FPGA: every bit-width as a project of the dataflow compiler FINN."""
