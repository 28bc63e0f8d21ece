"""A release → the Hub."""
