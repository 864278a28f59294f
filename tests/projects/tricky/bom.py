import yaml
import six
