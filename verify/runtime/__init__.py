"""What runs an ML Program: the evaluator, with PyTorch, or Core ML."""
