"""Render HTML pages: each is a template on top of the base page, with every value escaped."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def page_environment(package: str) -> Environment:
    """Return the environment that renders the pages of a package.

    The template of a page extends `base.html.j2` in this folder. The base page holds the colours,
    the layout and a policy that forbids all requests, and scripts too unless a page has one of its
    own.

    Args:
        package: Dotted name of the package with the page's template.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("llavamed.pages", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
