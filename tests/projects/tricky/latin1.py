# -*- coding: latin-1 -*-
# été
import yaml
