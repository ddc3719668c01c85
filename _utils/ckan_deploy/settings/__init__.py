"""What the pillar says: classes with default, rule and text; read and checked; secrets masked."""
