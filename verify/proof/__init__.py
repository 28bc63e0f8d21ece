"""What has to be shown of a run's artifacts, done once for all that share it, and kept."""
