"""Files, processes, disk, supervisor: what any program needs of a machine."""
