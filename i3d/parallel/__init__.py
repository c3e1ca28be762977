"""Processes: how many there are, what each one does, and how they end."""
