"""Small networks on embeddings, shared by teachers, students and the prior."""
