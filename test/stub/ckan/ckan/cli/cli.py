"""The `ckan` command."""

from __future__ import annotations

import argparse
import os
import sys

from ckan import __version__
from ckan.cli import CKANConfigLoader, db, jobs
from ckan.config.middleware import make_app


def ckan() -> None:
    """Entry point of the console script."""
    parser = argparse.ArgumentParser(prog="ckan")
    parser.add_argument("-c", "--config", default=os.environ.get("CKAN_INI", "ckan.ini"))
    parser.add_argument("--version", action="version", version=f"%(prog)s, version {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)
    db_command = commands.add_parser("db")
    db_command.add_argument("action", choices=["init", "upgrade", "pending-migrations", "version"])
    db_command.add_argument("--apply", action="store_true")
    db_command.add_argument("-p", "--plugin", default="")
    commands.add_parser("search-index").add_argument("action", choices=["check", "rebuild"])
    jobs_command = commands.add_parser("jobs")
    jobs_command.add_argument("action", choices=["worker"])
    jobs_command.add_argument("queues", nargs="*")
    arguments = parser.parse_args()

    # Like CKAN, each command boots the whole application first.
    make_app(CKANConfigLoader(arguments.config).get_config())
    if arguments.command == "jobs":
        jobs.work(arguments.queues or ["default"])
    elif arguments.command == "search-index":
        from ckan.plugins import toolkit

        toolkit.get_action("package_search")({}, {"rows": 0})
    elif arguments.action == "version":
        print(f"Current DB version: {db.current_revision(arguments.plugin)}")
    elif arguments.action == "pending-migrations" and not arguments.apply:
        for name, count in db._get_pending_plugins(core=True).items():
            print(f"{count} unapplied migrations for {name}")
        # CKAN says this here too, though it has upgraded nothing.
        print("Upgrading DB: SUCCESS")
    else:
        db.upgrade()
        print("Upgrading DB: SUCCESS")
    sys.exit(0)
