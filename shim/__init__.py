"""osgprod: the web shim, the operator's commands, and what they stand on."""
