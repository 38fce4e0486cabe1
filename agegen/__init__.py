"""Estimate age and gender from photographs of faces; train, evaluate and compare the models that do it."""

__version__ = "0.1.0"
