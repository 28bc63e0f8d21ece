"""From verified packages to what people download and load."""
