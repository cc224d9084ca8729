"""Import and export: between a dump and MongoDB, in either direction."""
