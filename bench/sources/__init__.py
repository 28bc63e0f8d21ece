"""What checkpoints come as: the cost of reading them, each module a program of its own."""
