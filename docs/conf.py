"""Sphinx: HTML and the man page from one source; ``make docs``."""

from importlib.metadata import version as installed_version

project = "modamafs"
version = release = installed_version("modamafs")
copyright = "the modamafs authors"

extensions = ["myst_parser"]
myst_enable_extensions = ["deflist"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]

html_theme = "furo"
html_title = f"modamafs {release}"

# The page has a NAME section of its own, so that the HTML has one as well.
man_pages = [("modamafs.8", "modamafs", "", "", 8)]
