"""Modules: the tree, the layers, initial weights."""
