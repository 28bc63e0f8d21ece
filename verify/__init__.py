"""What we ship, checked: an ML Program evaluator and comparisons with PyTorch."""
