"""Models and scripts that run as they are (some libraries install a package of this name, which would hide this one)."""
