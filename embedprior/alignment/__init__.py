"""Radiograph, CT and report in one space: contrastive training on cached embeddings (X2CT-CLIP), and its use."""
