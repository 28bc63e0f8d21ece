"""Textual inversions: rows of the token embeddings, and the words that reach them."""
