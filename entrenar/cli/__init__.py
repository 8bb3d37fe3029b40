"""The command line: what a program does around its work."""
