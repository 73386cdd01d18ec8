"""The command ``osgprod``, and ``python -m shim``: Ctrl-C during the import ends it without a traceback."""

from __future__ import annotations


def main() -> None:
    """Runs the command line; a Ctrl-C while its modules still load ends it without a traceback."""
    try:
        from shim.cli import run

        run()
    except KeyboardInterrupt:
        raise SystemExit(130) from None  # as a shell counts: 128 + SIGINT


if __name__ == "__main__":
    main()
