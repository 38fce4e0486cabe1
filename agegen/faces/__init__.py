"""Faces in photographs: found by a detector, aligned to the crop that a model was trained on."""
