"""Answers over HTTP: requests of many clients, run through a model together."""
