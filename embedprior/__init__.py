"""Does CT, used only in training, make a chest X-ray model better?

Importing this package loads none of the heavy libraries; each subpackage loads what it needs.
"""

__version__ = "0.1.0"
