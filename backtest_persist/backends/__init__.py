"""What stands behind the registry: MongoDB with Redis in front, JSON files, or nothing."""
