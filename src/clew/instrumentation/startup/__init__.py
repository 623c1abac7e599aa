"""The folder that ``clew run`` puts on the path of what it starts."""
