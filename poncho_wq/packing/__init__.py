"""From a prefix's files to layers: what goes where, in which order and form, compiled and compressed.

`poncho_wq.pack` is the door; `poncho_wq.manifest` describes what came of it.
"""
