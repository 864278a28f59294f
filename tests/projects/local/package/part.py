from . import deep


def work(x):
    return deep.dive(x)


def unused():
    import cv2
