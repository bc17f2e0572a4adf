"""Baselines of the latent memory: the memories of other methods, behind the same protocol."""
