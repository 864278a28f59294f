import helper
import package.part
from package import other as renamed
from . import sibling
from .package import part
import scattered.piece
import missing_one, missing_two
import yaml


def uses_helper(x):
    return helper.light(x)
