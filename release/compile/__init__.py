""".mlpackage → .mlmodelc, on any system."""
