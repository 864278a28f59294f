import dateutil

CONSTANT = 1
