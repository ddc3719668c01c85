"""The stages of one host, in order; deploy, rollback, catch up, adopt, prune."""
