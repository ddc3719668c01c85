"""Base, virtualenv clone, resolution, installer, ini, and the assembly of a release."""
