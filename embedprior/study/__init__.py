"""Methods × resamples on the same held-out cases → a predictions table."""
