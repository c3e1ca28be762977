"""One file per job; the command line and the Python names call these."""
