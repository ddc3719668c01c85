"""Heads, compatibility, migration, dump and restore, search index."""
