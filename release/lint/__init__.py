"""What the apps make of a bundle, by their own reading rules."""
