"""The way out of a study: an X-ray-only bundle, and its scores for new radiographs."""
