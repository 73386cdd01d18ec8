"""What runs on one machine: the embedded server, the demo, the importer."""
