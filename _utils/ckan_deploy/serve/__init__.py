"""App server, virtual host, health, maintenance, services, cron, shared files."""
