"""The command ``osgprod``: a subcommand is one function call and a way to show its rows."""

from shim.cli.base import osgprod, run

from shim.cli import jobs, notify, outputs, production, project, running, work  # isort: skip  # they add their subcommands

__all__ = ["jobs", "notify", "osgprod", "outputs", "production", "project", "run", "running", "work"]
