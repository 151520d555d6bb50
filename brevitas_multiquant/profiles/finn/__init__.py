"""Everything quantized that the dataflow compiler FINN needs."""
