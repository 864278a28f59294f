"""Measurements against the tools that people have today, as ratios of one run on one machine."""
