"""External names are shown as text, whatever they contain."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dcsft_harness.leaderboard import build
from dcsft_harness.leaderboard.report.table import markdown_text, spreadsheet_text
from tests.leaderboard.test_leaderboard import OOD_R, scores_folder

HOSTILE = [
    "a|b",
    "a\nb | c |",
    "<script>alert(1)</script>",
    "[x](javascript:alert(1))",
    "**best** _x_ `y` ~~z~~",
    "\u202egnp.exe",
    "=HYPERLINK(\"http://x\")",
    "  @SUM(A1)",
    "a & b &lt;",
    "$x$",
    "名前 ü",
]  # fmt: skip


class TestHostileNames:
    @pytest.mark.few(4)
    @pytest.mark.parametrize("name", HOSTILE)
    def test_rows_and_tasks_break_neither_markdown_nor_csv(self, tmp_path, name):
        folders = [
            scores_folder(tmp_path / "a", name, {name: [1, 0], OOD_R: [1, 1]}),
            scores_folder(tmp_path / "b", "b", {OOD_R: [1, 0]}),
        ]
        build(folders, tmp_path / "board", baseline=name)
        text = (tmp_path / "board" / "leaderboard.md").read_text(encoding="utf-8")
        tables = [part.splitlines() for part in text.split("\n\n") if part.startswith("|")]
        bars = [{line.replace("\\|", "").count("|") for line in table} for table in tables]
        assert bars[0] == {8} and all(len(one) == 1 for one in bars)
        # The plots are the only links.
        links = text.replace("![In and out of distribution](plots/id_ood.png)", "").replace("\\](", "")
        assert "<" not in text and "\u202e" not in text and "](" not in links
        read = list(
            csv.reader(io.StringIO((tmp_path / "board" / "leaderboard.csv").read_text(encoding="utf-8")))
        )
        assert {len(row) for row in read} == {12}
        assert not any(cell.lstrip().startswith(("=", "+", "@")) for row in read for cell in row)

    @pytest.mark.parametrize(
        ("name", "shown"),
        [
            ("sft_m", "sft_m"),
            ("_x_", r"\_x\_"),
            ("a|b", r"a\|b"),
            ("a\r\nb", "a  b"),
            ("<b>&", "&lt;b&gt;&amp;"),
            ("a\\|", r"a\\\|"),
            ("\u202ex\x1b[0m", r"\\u202ex\\x1b\[0m"),
        ],
    )
    def test_markdown_is_escaped(self, name, shown):
        assert markdown_text(name) == shown

    @given(st.text())
    def test_markdown_never_contains_markup_or_control_characters(self, name):
        shown = markdown_text(name)
        assert shown.isprintable()
        assert not set("<>") & set(shown)
        unescaped = shown.replace("\\\\", "")
        assert all(unescaped.count(c) == unescaped.count(f"\\{c}") for c in "|`*[]~$")

    @given(st.sampled_from(["=", "+", "-", "@", "\t=", "\r@", " -"]), st.text())
    def test_spreadsheet_cells_are_text(self, start, rest):
        assert spreadsheet_text(start + rest).startswith("'")

    @pytest.mark.parametrize(
        ("name", "cell"),
        [
            ("a;=1+1", "a;'=1+1"),
            ("a; @x;-", "a;' @x;'-"),
            ("＝1", "'＝1"),
            ("\t=1", "' =1"),
            ("a=b;c", "a=b;c"),
        ],
    )
    def test_cells_that_are_formulas_in_other_locales_are_text_too(self, name, cell):
        assert spreadsheet_text(name) == cell

    def test_a_harmless_name_is_unchanged_in_a_spreadsheet(self):
        assert spreadsheet_text("SFT-M (seed=0)") == "SFT-M (seed=0)"
