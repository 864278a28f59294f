# -*- coding: no-such-coding -*-
import os
