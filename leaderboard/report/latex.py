"""Summary -> LaTeX: one tabular as papers print it (booktabs; OOD shaded, best bold, second underlined)."""

import re
from collections.abc import Iterator, Sequence

from dcsft_harness.errors import visible
from dcsft_harness.leaderboard.report.table import percent
from dcsft_harness.leaderboard.summary import Column, Line, Summary

_SPECIAL = {
    "\\": r"\textbackslash{}", "{": r"\{", "}": r"\}", "$": r"\$", "&": r"\&", "#": r"\#", "_": r"\_",
    "%": r"\%", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", '"': r"\textquotedbl{}", "`": r"\textasciigrave{}",
    # Else two or three in a row become a dash, and ?` and !` Spanish marks.
    "-": "{-}", "?": "{?}", "!": "{!}", "'": "{'}", ",": "{,}",
    # Else an optional argument of the \\ before them.
    "[": "{[}", "]": "{]}", "*": "{*}",
}  # fmt: skip
_HEAD = r"""% \usepackage{booktabs} \usepackage[table]{xcolor} \usepackage[T1]{fontenc}
% Accuracy in percent. Shaded: out of distribution. Best of each column bold, second underlined.
"""
_LETTERS = r"""% Letters that pdfLaTeX lacks: there as code points, else as they are, in a font that has them.
\ifdefined\XeTeXversion\providecommand{\dcsftletter}[2]{#2}\fi
\ifdefined\directlua\providecommand{\dcsftletter}[2]{#2}\fi
\providecommand{\dcsftletter}[2]{\texttt{U+#1}}%
"""
# What pdfLaTeX prints by itself with the encoding T1.
_KNOWN = frozenset(
    {chr(code) for code in (*range(32, 127), *range(0xA1, 0x180))}
    - set("\u0126\u0127\u0138\u013f\u0140\u0149\u0166\u0167\u017f")
    | set("‐‑–—‘’‚“”„†‡•…‰‹›€")
)


def latex(summary: Summary) -> str:
    """The board as a tabular, to be input into a table.

    Names are shown as text, whatever they contain. Quoted figures stand under a rule of their own,
    in italics with their source as a comment, and are never best.
    """
    columns = summary.columns
    spec = "l" + "".join(_column_spec(column) for column in columns)
    body = [
        rf"\begin{{tabular}}{{{spec}}}",
        r"\toprule",
        _row(["", *(escape(column.label) for column in columns)]),
        r"\midrule",
        *_measured(summary),
        *_quoted(summary),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    table = "\n".join(body) + "\n"
    return _HEAD + (_LETTERS if r"\dcsftletter" in table else "") + table


def escape(text: str) -> str:
    """A name as LaTeX that prints as that name and does nothing else."""
    return "".join(_SPECIAL.get(char, char if char in _KNOWN else _letter(char)) for char in visible(text))


def _letter(char: str) -> str:
    return rf"\dcsftletter{{{ord(char):04X}}}{{{char}}}"


def _column_spec(column: Column) -> str:
    return r">{\columncolor{black!8}}r" if column.distribution == "ood" else "r"


def _row(cells: Sequence[str]) -> str:
    return " & ".join(cells) + r" \\"


def _measured(summary: Summary) -> Iterator[str]:
    marks = [_marks(summary.lines, index) for index in range(len(summary.columns))]
    for line in summary.lines:
        cells = [escape(line.name) + (rf" ({len(line.rows)} seeds)" if line.is_group else "")]
        for entry, (best, second) in zip(line.entries, marks, strict=True):
            shown = "" if entry is None or entry.accuracy is None else percent(entry.accuracy.value)
            if shown and shown == best:
                shown = rf"\textbf{{{shown}}}"
            elif shown and shown == second:
                shown = rf"\underline{{{shown}}}"
            cells.append(shown)
        yield _row(cells)


def _marks(lines: Sequence[Line], index: int) -> tuple[str | None, str | None]:
    """Best and second accuracy as printed, so that rows which print the same are marked alike."""
    entries = [line.entries[index] for line in lines]
    found = {percent(e.accuracy.value) for e in entries if e is not None and e.accuracy is not None}
    ranked = sorted(found, key=float, reverse=True)
    return (ranked[0], ranked[1]) if len(ranked) > 1 else (None, None)


def _quoted(summary: Summary) -> Iterator[str]:
    lines = []
    for one in summary.quoted:
        cells = []
        for column in summary.columns:
            names = [task.name for task in column.tasks]
            if not column.is_mean:
                figure = one.cells.get(names[0])
            else:
                figure = one.mean if set(names) == set(one.mean_over) else None
            cells.append("" if figure is None else rf"\textit{{{percent(figure)}}}")
        if any(cells):
            source = re.sub(r"[\r\n]", " ", visible(f"{one.source}: {one.model}, {one.setting}"))
            name = rf"\textit{{{escape(one.name)}}}\textsuperscript{{q}}"
            lines += [f"% quoted, not measured here: {source}", _row([name, *cells])]
    if lines:
        yield r"\midrule"
        yield from lines
