"""Sphinx settings of the documentation. `make docs` builds it, without internet access."""

import sys
from pathlib import Path

import numpydoc.xref

sys.path.insert(0, str(Path(__file__).parent))

import wgeo
from wgeo.analysis import THRESHOLDS
from wgeodocs.api import aliases, case_map

project = "wgeo"
author = copyright = "the wgeo authors"
version = release = wgeo.__version__
language = "en"

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "numpydoc",
    "sphinxcontrib.bibtex",
    "sphinx_gallery.gen_gallery",
    "sphinx_copybutton",
    "wgeo.report.mathtext",
    "wgeodocs",
]
exclude_patterns = ["_build", "gallery", "generated/measured"]
nitpicky = True
smartquotes = False  # names are shown as they are written
default_role = "py:obj"  # `names` in docstrings are links; wgeodocs.names finds their targets
templates_path = ["_templates"]
suppress_warnings = ["config.cache"]  # the gallery's settings hold functions

myst_enable_extensions = ["dollarmath", "deflist", "colon_fence", "attrs_block", "substitution"]
myst_substitutions = {name: f"{value:g}" for name, value in THRESHOLDS.items()}
myst_heading_anchors = 3

autosummary_generate = True
autosummary_filename_map = case_map()
autodoc_typehints = "none"  # numpydoc's sections say types, with shapes and ranges
autodoc_member_order = "bysource"
numpydoc_show_class_members = False  # the page of a class has them in full
numpydoc_xref_param_type = True
numpydoc_xref_aliases = aliases()
numpydoc_xref_ignore = "all"
numpydoc.xref.DEFAULT_LINKS.clear()  # they lead to other projects' pages

bibtex_bibfiles = ["references.bib"]
bibtex_reference_style = "author_year"

sphinx_gallery_conf = {
    "examples_dirs": "gallery",
    "gallery_dirs": "generated/gallery",
    "filename_pattern": r"\.py$",  # run them all
    "image_scrapers": ("wgeodocs",),  # figures without pyplot
    "reset_modules": (),
    "capture_repr": (),
    "within_subsection_order": "FileNameSortKey",
    "backreferences_dir": "generated/backreferences",
    "doc_module": ("wgeo",),
    "inspect_global_variables": False,
    "download_all_examples": False,
    "notebook_extensions": {".py"},
    "show_signature": False,
    "show_memory": False,
    "min_reported_time": 1e9,
    "abort_on_example_error": True,
    "write_computation_times": False,
}

copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

html_theme = "pydata_sphinx_theme"
html_math_renderer = "mathtext"  # no request to a CDN: the pages open from a file
html_title = f"wgeo {version}"
html_static_path = ["_static"]
html_css_files = ["docs.css"]
html_domain_indices = False  # the reference lists the packages; their pages have no module anchors
html_show_sourcelink = False
html_copy_source = False
html_context = {"default_mode": "auto"}  # light or dark as the reader's system is
html_theme_options = {
    "header_links_before_dropdown": 7,
    "navbar_end": ["theme-switcher"],
    "navbar_persistent": ["search-button"],
    "footer_start": ["copyright"],
    "footer_end": ["sphinx-version"],
    "show_toc_level": 2,
    "pygments_light_style": "a11y-high-contrast-light",
    "pygments_dark_style": "a11y-high-contrast-dark",
}
ALONE = (
    "index install quickstart choosing theory peers glossary architecture references faq citing "
    "changelog contributing generated/claims generated/commands"
)
html_sidebars = {page: [] for page in ALONE.split()}  # pages that have none below them
