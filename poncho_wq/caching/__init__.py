"""What looks after the cache: who uses what, what failed lately, listing, checking, eviction.

`poncho_wq.cache` is the door that builders and engines use.
"""
