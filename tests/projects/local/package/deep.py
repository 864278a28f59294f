import six


def dive(x):
    import bs4

    return bs4, x
