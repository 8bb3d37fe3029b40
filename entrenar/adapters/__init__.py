"""Adapters: trained parts on frozen linears, and their files."""
