from .other import CONSTANT
