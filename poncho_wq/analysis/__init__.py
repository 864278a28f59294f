"""What code imports, found without running it, and what is installed to provide it.

`sources` reads files and notebooks, `scopes` says who uses which name, `modules` follows names from a function to the
imports they come from; `bytecode` and `objects` do the same for live functions. `resolve` decides about each import,
`memory` remembers the answer. `poncho_wq.analyze` is the door to all of it.
"""
