"""Apple's own converter as a second engine, for comparison."""
