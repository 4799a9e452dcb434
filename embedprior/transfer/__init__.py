"""What embeddings are worth: retrieval, linear probes, few labels, prompts, and another cohort."""
