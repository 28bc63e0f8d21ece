"""SDXL checkpoint → Core ML model packages: networks written in MIL, weights by reference."""

__version__ = "0.1.0"
