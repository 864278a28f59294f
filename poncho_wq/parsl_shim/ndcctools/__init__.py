"""Stands in for ndcctools where only Debian's binding of Work Queue is: see ``poncho_wq.engines.parsl_shim``."""
