"""Import and export: the transfer between a dump and MongoDB, in either direction."""
