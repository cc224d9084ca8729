"""The backends of a registry: MongoDB with Redis in front, JSON files, or nothing."""
