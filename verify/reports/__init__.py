"""Results kept, summed up, judged again and compared."""
