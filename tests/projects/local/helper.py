"""Imported on the worker when it is shipped: `yaml` is needed then, the rest only by what is used."""

import yaml

try:
    import ujson
except ImportError:
    ujson = None

if __name__ == "__main__":
    import not_when_imported


def light(x):
    return yaml.safe_dump(x)


def heavy(x):
    import pandas

    return pandas.DataFrame(x)


def through(x):
    from package import part

    return part.work(x)


def unfindable():
    import missing_in_helper
