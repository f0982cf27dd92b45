"""HTML, JSON, tables, LaTeX and options judged one by one: each of these was once unread or misread."""

import pytest

from dcsft_harness.scoring.choice import choice

NUMBERS = ["3", "5", "7", "9"]
ANIMALS = ["squid", "lantern fish", "octopus", "sea horse"]

ROWS = [
    ("<b>C</b>", NUMBERS, "C"),
    ("<strong>B</strong>", NUMBERS, "B"),
    ("The answer is <b>C</b>.", NUMBERS, "C"),
    ("<p>Answer: <em>D</em></p>", NUMBERS, "D"),
    ("Answer:<br>C", NUMBERS, "C"),
    ("<font color='red'>C</font>", NUMBERS, "C"),
    ("<u>B</u>", NUMBERS, "B"),
    ("<h3>Final Answer</h3><p>C</p>", NUMBERS, "C"),
    ("The answer is <code>D</code>.", NUMBERS, "D"),
    ('<span style="color:red">**D**</span>', NUMBERS, "D"),
    ("\\boxed{\\underline{C}}", NUMBERS, "C"),
    ("\\framebox{C}", NUMBERS, "C"),
    ("Answer: A\nFinal: B", NUMBERS, "B"),
    ("Initial answer: A\nFinal: (B)", NUMBERS, "B"),
    ("- A: No\n- B: Yes", NUMBERS, "B"),
    ("A: No\nB: Yes\nC: No\nD: No", NUMBERS, "B"),
    ("A. Incorrect\nB. Incorrect\nC. Correct\nD. Incorrect", NUMBERS, "C"),
    ("A: incorrect, B: correct, C: correct", NUMBERS, None),
    ("A: ✗\nB: ✓\nC: ✗\nD: ✗", NUMBERS, "B"),
    ("A ❌\nB ✅\nC ❌\nD ❌", NUMBERS, "B"),
    ("- (A) 3 ❌\n- (B) 5 ✅\n- (C) 7 ❌\n- (D) 9 ❌", NUMBERS, "B"),
    ("❌ A. 3\n✅ B. 5\n❌ C. 7", NUMBERS, "B"),
    (
        "A. squid – no, it has ten arms.\nB. lantern fish – no.\nC. octopus – yes, eight arms.\n"
        "D. sea horse – no.",
        ANIMALS,
        "C",
    ),
    ("A: False\nB: True\nC: False\nD: False", NUMBERS, "B"),
    ("A: 错误\nB: 正确\nC: 错误\nD: 错误", NUMBERS, "B"),
    ("A. 错误。\nB. 错误。\nC. 错误。\nD. 正确。", NUMBERS, "D"),
    ("✓ C", NUMBERS, "C"),
    ("| Option | Verdict |\n|---|---|\n| A | No |\n| B | Yes |\n| C | No |", NUMBERS, "B"),
    ("| A | 3 | Incorrect |\n| B | 5 | Correct |\n| C | 7 | Incorrect |", NUMBERS, "B"),
    ("| Answer | B |", NUMBERS, "B"),
    ("| **Answer** | **B** |", NUMBERS, "B"),
    ("| Question | Answer |\n|---|---|\n| 1 | B |", NUMBERS, "B"),
    ("| A | ❌ |\n| B | ✅ |\n| C | ❌ |\n| D | ❌ |", NUMBERS, "B"),
    ('{"correct_option": "C"}', NUMBERS, "C"),
    ('{"choice": "C"}', NUMBERS, "C"),
    ('{"option": "C"}', NUMBERS, "C"),
    ('{"correctAnswer": "C"}', NUMBERS, "C"),
    ('{"selected_option": "C"}', NUMBERS, "C"),
    ('{"answer": ["B","C"]}', NUMBERS, None),
    ('{"result": "B"}', NUMBERS, "B"),
    ('{"prediction": "B"}', NUMBERS, "B"),
    ('{"answer_letter": "C"}', NUMBERS, "C"),
    ("<answer><b>C</b></answer>", NUMBERS, "C"),
    ("<ans>C</ans>", NUMBERS, "C"),
    ("<choice>C</choice>", NUMBERS, "C"),
    ("<option>C</option>", NUMBERS, "C"),
    ("<result>C</result>", NUMBERS, "C"),
    ("<output>C</output>", NUMBERS, "C"),
    ("\\underline{\\textbf{C}}", NUMBERS, "C"),
    ("\\emph{C}", NUMBERS, "C"),
    ("The answer is \\emph{C}.", NUMBERS, "C"),
    ("The answer is \\textsc{C}", NUMBERS, "C"),
    ("The answer is $\\mathcal{C}$", NUMBERS, "C"),
    ("The answer is \\underline{C}", NUMBERS, "C"),
    ("The answer is $\\circled{C}$", NUMBERS, "C"),
    ("The answer is Ⓒ", NUMBERS, "C"),
    ("The answer is 𝐂.", NUMBERS, "C"),
    ("𝐂", NUMBERS, "C"),
    ("_Answer_: C", NUMBERS, "C"),
    ("Answer: C\n\nNote: If the angle had been acute, the answer would be A.", NUMBERS, "C"),
    ("~~A~~ C", NUMBERS, "C"),
    ("The answer is ~~A~~ **C**.", NUMBERS, "C"),
    ("Option A: No arms.\nOption B: No legs.", ANIMALS, None),
    (
        "**Option A**: The squid has ten arms. This is incorrect.\n"
        "**Option B**: The lantern fish is a fish. This is incorrect.\n"
        "**Option C**: The octopus has eight arms. This is correct.\n"
        "**Option D**: Sea horses have none. This is incorrect.",
        ANIMALS,
        "C",
    ),
    (
        "- A) 3: This is too small, so incorrect.\n- B) 5: This matches, so correct.\n"
        "- C) 7: Too large, so incorrect.",
        NUMBERS,
        "B",
    ),
    ("1. **A: 3** → ❌\n2. **B: 5** → ✅\n3. **C: 7** → ❌", NUMBERS, "B"),
    (
        "| Option | Value | Correct? |\n|---|---|---|\n| A | 3 | No |\n| B | 5 | Yes |\n| C | 7 | No |\n"
        "| D | 9 | No |",
        NUMBERS,
        "B",
    ),
    (
        "| Option | Correct? | Reason |\n|:--|:-:|--|\n| A | No | too small |\n| B | Yes | matches |\n"
        "| C | No | too big |",
        NUMBERS,
        "B",
    ),
    ("A. 3 (incorrect)\nB. 5 (correct)\nC. 7 (incorrect)\nD. 9 (incorrect)", NUMBERS, "B"),
    ("- A: ✔️\n- B: ✖️\n- C: ✖️\n- D: ✖️", NUMBERS, "A"),
    ("A (✗), B (✗), C (✓), D (✗)", NUMBERS, "C"),
    ("Option A - No\nOption B - Yes", ANIMALS, "B"),
    ("A — No.\nB — Yes.", ANIMALS, "B"),
    ("选项A：错误。\n选项B：错误。\n选项C：正确。\n选项D：错误。", NUMBERS, "C"),
    (
        "A. 鱿鱼：不正确，有十条腕。\nB. 章鱼：正确，有八条腕。\nC. 海马：不正确。",
        ["鱿鱼", "章鱼", "海马"],
        "B",
    ),
    ("A×，B×，C√，D×", NUMBERS, "C"),
    ("<ol><li>A: no</li><li>B: no</li><li>C: yes</li></ol>", ANIMALS, "C"),
    ("x<sup>2</sup> = 9, so x = 3 &rarr; <b>A</b>", NUMBERS, "A"),
    ("The answer is&nbsp;<b>C</b>", NUMBERS, "C"),
    ("<table><tr><td>Answer</td><td>C</td></tr></table>", NUMBERS, "C"),
    ("<details><summary>Answer</summary>C</details>", NUMBERS, "C"),
    ("<answer>Option <b>C</b></answer>", NUMBERS, "C"),
    ('{"answer": "C", "explanation": "If it were A, the answer would be A."}', NUMBERS, "C"),
    ('{"A": false, "B": true, "C": false}', NUMBERS, "B"),
    ('{"A": "no", "B": "yes"}', NUMBERS, "B"),
    ('{"bbox": [1,2,3,4], "label": "B"}', NUMBERS, "B"),
    ('<tool_call>{"name": "answer", "arguments": {"answer": "C"}}</tool_call>', NUMBERS, "C"),
    ("\\begin{center}\\textbf{C}\\end{center}", NUMBERS, "C"),
    ("\\colorbox{yellow}{C}", NUMBERS, "C"),
    ("\\boxed{\\begin{aligned}C\\end{aligned}}", NUMBERS, "C"),
    ("**Analysis:**\n- A (3): ✗ too small\n- B (5): ✓ matches\n- C (7): ✗\n- D (9): ✗", NUMBERS, "B"),
    (
        "**Analysis**\n\n| Option | Result |\n|--------|--------|\n| A. 3 | ✗ |\n| B. 5 | ✓ |\n| C. 7 | ✗ |",
        NUMBERS,
        "B",
    ),
    ("A选项：3，太小，错误。\nB选项：5，正确。\nC选项：7，错误。", NUMBERS, "B"),
    ("1. A\n2. B\n3. C", NUMBERS, None),
    ("A\nB\nC\nD", NUMBERS, None),
    ("A.\nB.\nC.\nD.", NUMBERS, None),
]


@pytest.mark.parametrize(("response", "choices", "letter"), ROWS)
def test_an_answer_is_read_in_every_form_that_models_write(response, choices, letter):
    verdict = choice(response, answer=letter or "A", choices=choices)
    assert (verdict.extracted, verdict.score) == (letter, float(letter is not None))
