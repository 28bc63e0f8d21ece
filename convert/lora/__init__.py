"""LoRAs and kin: merged into a checkpoint's weights as they are read."""
