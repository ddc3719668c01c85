"""What all tests share."""

from __future__ import annotations

import salt._logging

# Salt keeps log lines back for a handler of its own, and would write them to pytest's closed streams at exit.
salt._logging.shutdown_temp_handler()
