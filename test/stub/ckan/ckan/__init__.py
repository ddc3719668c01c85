"""Stand-in for CKAN: the names that the formula uses, with the behaviour that it relies on."""

__version__ = "2.12.0"

# How many core migrations this version brings; the option `stub.migrations` overrules it.
STUB_MIGRATIONS = 3
