"""The one configuration of the process, as in CKAN."""

config: dict = {}
