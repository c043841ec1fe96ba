"""Formulas of captions as they are set in print, from the plain text of the source."""

from typing import Final

_PRINTED: Final = {
    "sigma": "\N{GREEK SMALL LETTER SIGMA}",
    " - ": " \N{MINUS SIGN} ",
    "(N, -q": "(N, \N{MINUS SIGN}q",
    "^2": "\N{SUPERSCRIPT TWO}",
    "^4": "\N{SUPERSCRIPT FOUR}",
    "||": "\N{DOUBLE VERTICAL LINE}",
    " x ": " \N{MULTIPLICATION SIGN} ",
}


def printed(text: str) -> str:
    """Our own words with real minus signs, powers and norms; never for what a run says.

    Example:
        >>> from lightning_root.diagnostics.report.typography import printed
        >>> printed("(s - 1)^2") == "(s \N{MINUS SIGN} 1)\N{SUPERSCRIPT TWO}"
        True
    """
    for plain, symbol in _PRINTED.items():
        text = text.replace(plain, symbol)
    return text
