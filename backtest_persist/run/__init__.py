"""Run: the unit of work over all domains."""
