"""Exceptions with CKAN's names."""


class CkanConfigurationException(Exception):
    """The configuration cannot be used."""
