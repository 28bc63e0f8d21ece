"""Recipe × checkpoint → jobs, and what they take; from headers alone."""
