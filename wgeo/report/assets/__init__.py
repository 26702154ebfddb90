"""Files that a report is made of, as they are in the package."""

from importlib import resources


def asset(name: str) -> str:
    """The text of a file in this folder."""
    return resources.files(__name__).joinpath(name).read_text(encoding="utf-8")
