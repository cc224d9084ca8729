"""The JSON backend: the fifteen domains as a tree of files."""
