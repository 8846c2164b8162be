"""Eager PyTorch model of the HySparse specification, and a maker of tiny random checkpoints: what the runtime is checked against."""
