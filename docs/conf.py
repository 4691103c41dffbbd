"""How Sphinx builds the site: the pages as they are, and the API reference from the docstrings, without looking anything up elsewhere."""

from importlib.metadata import version as version_of

project = "streamview"
author = "The streamview contributors"
release = version = version_of("streamview")

extensions = ["myst_parser", "sphinx.ext.autodoc", "numpydoc"]
exclude_patterns = ["_build"]
source_suffix = {".md": "markdown"}

myst_heading_anchors = 3  # links such as networks.md#what-it-takes
default_role = "py:obj"  # `name` in a docstring is a link where the name is in the reference, else code

numpydoc_show_class_members = False  # api.md names the members to show
numpydoc_class_members_toctree = False
autosummary_generate = False  # numpydoc loads it
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # the signature has them

html_theme = "furo"
html_title = "streamview"
html_static_path = ["_static"]
html_css_files = ["width.css"]
html_show_copyright = False
html_show_sourcelink = False
html_copy_source = False
