"""The words of a specification: its document, requirements, MatchSpecs, addresses and variables, each parsed by one.

`poncho_wq.spec` is the door: the value that these make, its canonical form and its hash.
"""
