"""CLIP's tokenizer: read as transformers reads it, written as the apps read it."""
