"""The releases of a host: id, manifest, states, the link ``current``, the host's lock and log, what to keep."""
