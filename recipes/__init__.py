"""Recipes ready to run; `sdxl-coreml recipes` lists them."""
