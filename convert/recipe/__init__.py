"""TOML → typed recipe, with errors that say what was probably meant."""
