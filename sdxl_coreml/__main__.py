"""`python -m sdxl_coreml`."""

from sdxl_coreml.app import main

main()
