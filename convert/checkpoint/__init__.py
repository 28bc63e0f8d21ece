"""What a checkpoint is: configs, tensors by reference, what pipelines ask of it."""
