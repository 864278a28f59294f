"""Every import says in a comment what is to become of it: in PACKAGE, out, or missing."""

from __future__ import annotations

import os, sys  # out
import yaml  # in PyYAML
import numpy.linalg as la, six  # in numpy, six
from google.protobuf import message  # in protobuf
from google.cloud import storage  # in google-cloud-storage
import importlib  # out
import importlib.util  # out
from typing import TYPE_CHECKING  # out
import contextlib, typing  # out

try:
    import ujson as json  # out
except ImportError:
    import json  # out

try:
    import tomllib  # out
except ModuleNotFoundError:
    import tomli as tomllib  # out

try:
    import needed_after_all  # missing
except ImportError as error:
    raise RuntimeError("pip install needed_after_all") from error

try:
    import needed_too  # missing
except (ImportError, OSError):
    print("please install it")
    sys.exit(1)

try:
    import quietly  # out
except (AttributeError, ImportError):
    pass

try:
    import anything  # out
except:
    anything = None

try:
    import wrong_handler  # missing
except ValueError:
    pass

with contextlib.suppress(ImportError):
    import suppressed  # out

if TYPE_CHECKING:
    import only_for_types  # out
    from .nowhere import relative_for_types  # out
elif typing.TYPE_CHECKING:
    import only_for_types_too  # out
else:
    import attr  # in attrs

if not TYPE_CHECKING:
    import dateutil  # in python-dateutil

if sys.version_info < (3, 0):
    import urllib2  # out
elif sys.version_info[0] == 2:
    import cPickle  # out
elif sys.platform == "win32" or os.name == "nt":
    import win32api  # out
elif sys.platform.startswith("darwin"):
    import AppKit  # out

if False:
    import never  # out


def function():
    import pandas  # in pandas

    try:
        def later():
            import within_function  # missing
    except ImportError:
        pass

    async def inner():
        from skimage import io  # in scikit-image

    plugin = importlib.import_module("cv2.data")  # in opencv-python
    __import__("serial.tools")  # in pyserial
    module = importlib.import_module(name="zmq")  # in pyzmq
    return importlib.import_module("computed" + plugin)


class Class(six.with_metaclass(type)):
    import bs4  # in beautifulsoup4

    def method(self):
        def deeper():
            return lambda: __import__("PIL.Image")  # in Pillow
        return deeper


match sys.argv:
    case [*_, "x"]:
        import jwt  # in PyJWT
    case _:
        import magic  # in python-magic

for _ in ():
    import slugify  # in python-slugify
else:
    while 0:
        import docx  # in python-docx

if __name__ == "__main__":
    import dotenv  # in python-dotenv
