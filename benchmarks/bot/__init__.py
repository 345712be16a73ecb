"""A bot is killed and stopped while buyers write, and every message must be answered once."""
