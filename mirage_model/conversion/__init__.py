"""Import of weights that others published, as a model folder."""
