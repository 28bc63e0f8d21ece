"""How each weight is stored: which method, its palette or integers, and weight.bin."""
