"""The rule for names of sites and data sets."""

NAME_RULE = "a name has no blanks and no separators, and does not begin with a dot"


def is_name(text: str) -> bool:
    """Whether `text` can name a site or a data set: a single folder and a single command line word."""
    return bool(text) and text[0] != "." and not any(c in "/\\\0" or c.isspace() for c in text)
