"""Side-by-side measurements at full size."""
