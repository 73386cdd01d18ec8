"""The command ``osgprod``: a subcommand is one function call and a way to show its rows."""

from shim.commands.base import osgprod, run

from shim.commands import production, project, running, work  # isort: skip  # they add their subcommands

__all__ = ["osgprod", "production", "project", "run", "running", "work"]
