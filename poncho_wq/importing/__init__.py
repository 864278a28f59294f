"""Readers, one a kind of thing that users have; ``poncho_wq.importers`` chooses between them.

All of them only read: nothing is installed, downloaded or run, not even an environment's own interpreter.
"""
