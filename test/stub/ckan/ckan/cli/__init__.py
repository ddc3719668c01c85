"""Reading the ini file."""

from __future__ import annotations

import os
from configparser import ConfigParser

from ckan.exceptions import CkanConfigurationException


class CKANConfigLoader:
    """Reads the section `app:main` of an ini file, with `here` and the CKAN_ environment as defaults."""

    def __init__(self, filename: str) -> None:
        self.config_file = os.path.abspath(filename.strip())
        if not os.path.exists(self.config_file):
            raise CkanConfigurationException(f"Config file not found: {self.config_file}")
        defaults = {key: value for key, value in os.environ.items() if key.startswith("CKAN_")}
        defaults["here"] = os.path.dirname(self.config_file)
        defaults["__file__"] = self.config_file
        parser = ConfigParser()
        parser.optionxform = str
        parser.read_dict({"DEFAULT": {key: value.replace("%", "%%") for key, value in defaults.items()}})
        parser.read(self.config_file)
        self.config = {option: parser.get("app:main", option) for option in parser.options("app:main")}

    def get_config(self) -> dict:
        return self.config.copy()
