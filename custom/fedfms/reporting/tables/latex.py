"""Sheets as LaTeX, for a paper: booktabs, best bold, second underlined."""

from __future__ import annotations

from collections.abc import Iterable

from fedfms.reporting.tables.sheets import BEST, NONE, SECOND, Field, Sheet

_HEAD = "% Needs \\usepackage{booktabs}, and \\usepackage{graphicx} for \\resizebox. Made by fedfms.\n"
_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "%": r"\%", "_": r"\_",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}", ">": r"\textgreater{}",
    "|": r"\textbar{}", '"': "''{}", "±": r"$\pm$",
}  # fmt: skip


def latex_tables(sheets: Iterable[Sheet]) -> str:
    """A `table*` a sheet, as wide as the page at most."""
    return _HEAD + "".join(_table(sheet) for sheet in sheets)


def _table(sheet: Sheet) -> str:
    columns = "l" * sheet.names + "r" * (len(sheet.head) - sheet.names)
    foot = ["\\midrule", *map(_line, sheet.foot)] if sheet.foot else []
    lines = [
        "", "\\begin{table*}", "\\centering", f"\\caption{{{escape(sheet.caption)}}}", "\\resizebox{\\ifdim\\width>"
        "\\textwidth\\textwidth\\else\\width\\fi}{!}{%", f"\\begin{{tabular}}{{{columns}}}", "\\toprule",
        _line(map(Field, sheet.head)), "\\midrule", *map(_line, sheet.rows), *foot, "\\bottomrule", "\\end{tabular}}",
        "\\end{table*}", "",
    ]  # fmt: skip
    return "\n".join(lines)


def escape(text: str) -> str:
    """`text` with nothing in it that LaTeX reads, on one line."""
    return "".join(_SPECIAL.get(character, character) for character in " ".join(text.split()))


def _line(fields: Iterable[Field]) -> str:
    return " & ".join(map(_field, fields)) + r" \\"


def _field(field: Field) -> str:
    text = "--" if field.text == NONE else escape(field.text)
    return {BEST: f"\\textbf{{{text}}}", SECOND: f"\\underline{{{text}}}"}.get(field.mark, text)
