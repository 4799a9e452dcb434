"""CT classifiers. A teacher's frozen head is the matching layer that scores generated embeddings."""
