"""The master's side: hosts, run record, stages over hosts, revert, progress, report, history."""
