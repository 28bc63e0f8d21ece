"""Jobs → artifacts: cached, in worker processes, with their manifests."""
