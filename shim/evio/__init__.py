"""EVIO files: index, scan, writer."""
