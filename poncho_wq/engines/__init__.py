"""Engines: thin adapters between tasks and what runs them, all on ``core``."""
