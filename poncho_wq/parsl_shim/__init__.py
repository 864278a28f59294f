"""A directory for the end of ``sys.path``: see ``poncho_wq.engines.parsl_shim``."""
