"""The networks of SDXL, written in MIL with coremltools' Builder."""
