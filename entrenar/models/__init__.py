"""Decoder models: families, configuration, module tree, weights in and out, generation."""
