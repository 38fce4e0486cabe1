"""Faces with labels: records, images, near-duplicates, splits, batches and the drawn demo set."""
