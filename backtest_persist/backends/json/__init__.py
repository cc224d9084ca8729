"""The JSON backend: the rows of all domains as a tree of files."""
