import os
x = "été"
