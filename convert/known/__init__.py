"""What is known of SDXL without a network: its configs and CLIP's vocabulary, as data."""
