"""How a page is drawn: a template of its own, on the base page, with every value escaped."""

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined


def page_environment(package: str) -> Environment:
    """Return the environment that renders the pages of a package.

    A page's template extends `base.html.j2` of this folder, which holds the colours, the layout and
    a policy that forbids every request; a page without a script forbids scripts too.

    Args:
        package: Dotted name of the package that holds the page's template.
    """
    return Environment(
        loader=ChoiceLoader([PackageLoader(package, ""), PackageLoader("llavamed.pages", "")]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
