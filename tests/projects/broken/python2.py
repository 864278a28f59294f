import os
print "python 2"
