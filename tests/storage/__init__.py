"""Remote input and output against the real servers; `servers.py` starts them."""
