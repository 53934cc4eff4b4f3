"""Files of GPU code: which there are, and what is in one."""


class UnsupportedLibrary(Exception):
    """This is not a library, or the device cannot load its code; the message names what, and where."""
