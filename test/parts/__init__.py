"""The real services that CKAN needs, started in a sandbox directory for the integration tests and the demo.

Each part is a process in the foreground, on loopback, with all its files below the sandbox:

- `log/NAME.log` is what it says, `run/NAME.json` says which process it is, `NAME/` holds its data;
- `process.stop_all(sandbox)` stops them all, also from another process and only what was started here.

The sandbox must be a directory that other users may enter: PostgreSQL and the web workers do not run as root.
"""
