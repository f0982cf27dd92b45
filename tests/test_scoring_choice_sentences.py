"""Sentences that name several options, or one in many forms."""

import pytest

from dcsft_harness.scoring.choice import choice

NUMBERS = ["3", "5", "7", "9"]
ANGLES = ["30°", "45°", "60°", "90°"]
ANIMALS = ["squid", "lantern fish", "octopus", "sea horse"]
YES_NO = ["Yes", "No"]
LETTERS = ["A", "B", "C", "D", "E"]
COLOURS = ["red", "blue", "green", "dark green"]

ROWS = [
    ("Therefore, x = 7 and y = 3.", NUMBERS, None),
    ("So AB = 5 and BC = 7.", NUMBERS, None),
    ("Since AC = 12 and BC = 7, AB = 5.", NUMBERS, "B"),
    ("The angle B is 30° and the angle C is 60°.", ANGLES, None),
    ("Since the angle B is 30° and A is 60°, the angle C is 90°.", ANGLES, "D"),
    ("We know ∠A = 30°. So ∠B = 180° - 30° - 90° = 60°.", ANGLES, "C"),
    ("The perimeter is 3 + 4 + 5 = 12, and the area is 6.", ["5", "6", "12", "24"], None),
    ("The legend shows that red is the largest.", COLOURS, "A"),
    ("The car is blue and the truck is red.", COLOURS, None),
    ("It is red or blue.", COLOURS, None),
    ("The answer is D because red mixed with green is dark green", COLOURS, "D"),
    ("The figure shows a squid eating a sea horse.", ANIMALS, None),
    ("The tallest bar is B.", LETTERS, "B"),
    ("Sure! The answer is (B).", NUMBERS, "B"),
    ("Sure, I can help you with that. The angle is 60 degrees. The answer is (C).", ANGLES, "C"),
    ("The answer is 3πcm, so (B)", ["2πcm", "3πcm"], "B"),
    ("The correct answer is: (B)\n5", NUMBERS, "B"),
    ("The best option to choose is C.", NUMBERS, "C"),
    ("Based on the given information the correct answer would be option C (7).", NUMBERS, "C"),
    ("Out of the given options, C is the closest to the actual value.", NUMBERS, "C"),
    ('The option that best describes the picture is "octopus".', ANIMALS, "C"),
    ("Looking at the picture, the sea horse is the answer.", ANIMALS, "D"),
    ("Sea horse is correct because it lives in the reef.", ANIMALS, "D"),
    ("(C)octopus", ANIMALS, "C"),
    ("C.octopus", ANIMALS, "C"),
    ("C:octopus", ANIMALS, "C"),
    ("C、octopus", ANIMALS, "C"),
    ("C octopus", ANIMALS, "C"),
    ("octopus (C)", ANIMALS, "C"),
    ("octopus - C", ANIMALS, "C"),
    ("**C**: octopus", ANIMALS, "C"),
    ("**C:** octopus", ANIMALS, "C"),
    ("**C.** octopus", ANIMALS, "C"),
    ("The answer is: **C. octopus**\n\nExplanation: A squid has ten arms, B is a fish.", ANIMALS, "C"),
    ("Therefore the correct answer is option C: octopus.", ANIMALS, "C"),
    ("The final answer is: $\\boxed{\\text{C. octopus}}$", ANIMALS, "C"),
    ("Thus the measure is \\(60^\\circ\\).\n\n**Correct choice: (C)**", ANGLES, "C"),
    ("Therefore, the measure of angle C is \\( \\boxed{60^\\circ} \\).", ANGLES, "C"),
    ("Hence the value of x is **60°** → **Option C**", ANGLES, "C"),
    ("x = 60°, so the answer is C", ANGLES, "C"),
    ("∴ x = 60°", ANGLES, "C"),
    ("所以选C", NUMBERS, "C"),
    ("∴选C", NUMBERS, "C"),
    ("The correct option is A, as the triangle has 3 sides.", NUMBERS, "A"),
    ("A, because 3 is prime.", NUMBERS, "A"),
    ("I think it's (A) squid.", ANIMALS, "A"),
    ("It looks like a squid, but it is an octopus.", ANIMALS, "C"),
    ("Not a squid.", ANIMALS, None),
    ("The picture shows neither a squid nor an octopus.", ANIMALS, None),
    ("Unlike a squid, the octopus has eight arms.", ANIMALS, "C"),
    ("Answer:\n```\nB\n```", NUMBERS, "B"),
    ('{"final_answer": "C", "confidence": 0.9}', NUMBERS, "C"),
    ('The answer is "C".', NUMBERS, "C"),
    ("The answer is 'C'.", NUMBERS, "C"),
    ("The answer is <C>.", NUMBERS, "C"),
    ("The answer is C (octopus).", ANIMALS, "C"),
    ("Let me count: 1, 2, 3, 4, 5. So there are 5.", NUMBERS, "B"),
    ("Count: 1 2 3 4 5 6 7\n7", NUMBERS, "C"),
    ("The number of sides is 5.\nThe number of corners is 5.", NUMBERS, "B"),
    ("Yes, the answer is (B).", YES_NO, "B"),
    ("Yes, because there are no dogs.", YES_NO, "A"),
    ("True", ["True", "False"], "A"),
    ("The statement is false.", ["True", "False"], "B"),
    ("The statement is true.", ["True", "False"], "A"),
    ("It is not true.", ["True", "False"], None),
    ("The function is not even, so the answer is No.", YES_NO, "B"),
    ("The answer to the question is yes.", YES_NO, "A"),
    ('so the correct answer is "Yes".', YES_NO, "A"),
    ("Both statements together are sufficient, so C.", NUMBERS, "C"),
]


DENIED = [
    # what is denied, rejected or dismissed is not stated
    ("The answer cannot be A.", COLOURS, None),
    ("The answer can't be (A).", COLOURS, None),
    ("The answer is not (A).", COLOURS, None),
    ("The correct answer should not be A.", COLOURS, None),
    ("The answer won't be A, so it is B.", COLOURS, "B"),
    ("The answer is B. The answer cannot be A.", COLOURS, "B"),
    ("The answer is B, but the correct answer cannot be determined.", COLOURS, None),
    ("The answer is B because the car is not red.", COLOURS, "B"),
    ("(B) because the car is not red.", COLOURS, "B"),
    ("B since it is not correct to call it red", COLOURS, "B"),
    ("Option A does not fit.", COLOURS, None),
    ("(A) does not match.", COLOURS, None),
    ("Option A can't be true.", COLOURS, None),
    ("Option A can be eliminated.", COLOURS, None),
    ("So we can exclude option A.", COLOURS, None),
    ("Option A does not fit. Option B fits.", COLOURS, "B"),
    ("A, C and D are incorrect", COLOURS, None),
    ("A, B and D are wrong, leaving C.", COLOURS, "C"),
    ("不选B", COLOURS, None),
    ("不能选A", COLOURS, None),
    ("不选A,选B", COLOURS, "B"),
    # several letters
    ("Both B and C are correct.", COLOURS, None),
    ("Options B and C are correct.", COLOURS, None),
    ("B和C正确", COLOURS, None),
    ("B、C都正确", COLOURS, None),
    ("选项B和C正确", COLOURS, None),
    ("A and B are incorrect, C is correct", COLOURS, "C"),
    ("Unlike A and B, C is correct", COLOURS, "C"),
    ("I rule out A and C. Between B and D, B is best.", COLOURS, "B"),
    # preferred to another one
    ("The answer is C rather than B.", COLOURS, "C"),
    ("The answer is C instead of B because it is green", COLOURS, "C"),
    ("The answer is C (not B).", COLOURS, "C"),
    ("The correct option is **B** and not **A**.", COLOURS, "B"),
    ("The answer cannot be determined.", ["3", "5", "Cannot be determined"], "C"),
    ("The correct answer cannot be determined.", ["3", "5", "7"], None),
    ("The statement that must be true is C.", COLOURS, "C"),
    ("The answer that cannot be true is (C).", COLOURS, "C"),
    ("The answer that is not red is a lot of work.", COLOURS, None),
    # taken back
    ("The answer is A. Wait, actually it is B.", COLOURS, "B"),
    ("The answer is A. Actually, it's B.", COLOURS, "B"),
    ("The answer is A. Sorry, I meant B.", COLOURS, "B"),
    ("The answer is A. It is actually not far away.", COLOURS, "A"),
    # hedged, or in other words
    ("Probably B", COLOURS, "B"),
    ("Most likely B.", COLOURS, "B"),
    ("If I had to guess, B.", COLOURS, "B"),
    ("B is my final answer.", COLOURS, "B"),
    ("B looks right", COLOURS, "B"),
    ("Only B works.", COLOURS, "B"),
    ("A match is shown.", COLOURS, None),
    ("所以是B。", COLOURS, "B"),
    ("我认为是C", COLOURS, "C"),
    ("∠ABC应该是30°", COLOURS, None),
    # signs, relations and styles
    ("\\boxed{1 \\text{ or } 2}", ["1", "2", "3"], None),
    ("1 or 3", ["1", "2", "3"], None),
    ("The answer is 1 or 2.", ["1", "2", "3"], None),
    ("The square is formed by pieces 1 and 2.", ["1 & 2", "1 & 3", "2 & 3"], "A"),
    ("1 & 3", ["1 and 2", "1 and 3"], "B"),
    ("\\boxed{7x}", ["5", "7", "10"], None),
    ("2", ["2x", "3x"], None),
    ("\\boxed{2x}", ["2x", "3x"], "A"),
    ("5 million", ["5", "7", "10"], None),
    ("4 cm2", ["4 cm^2", "8 cm^2"], "A"),
    ("¾", ["1/4", "3/4"], "B"),
    ("The answer is negative 3.", ["-3", "3"], "A"),
    ("The slope is negative 3.", ["-3", "3"], "A"),
    ("\\boxed{x \\geq 3}", ["x ≥ 3", "x ≤ 3"], "A"),
    ("\\boxed{x \\ge 3}", ["x \\geq 3", "x \\leq 3"], "A"),
    ("\\boxed{\\alpha + \\beta}", ["α + β", "α - β"], "A"),
    ("\\boxed{\\texttt{C}}", COLOURS, "C"),
    ("\\boxed{\\Large C}", COLOURS, "C"),
    ("\\boxed{\\color{red}C}", COLOURS, "C"),
    ("\\boxed{\\textcolor{red}{C}}", COLOURS, "C"),
]


@pytest.mark.parametrize(("response", "choices", "letter"), ROWS + DENIED)
def test_a_response_is_read_as_a_careful_reader_would(response, choices, letter):
    verdict = choice(response, answer=letter or "A", choices=choices)
    assert (verdict.extracted, verdict.score) == (letter, float(letter is not None))


QUESTIONS = [
    ("Isn't the answer B?", NUMBERS, None),
    ("Isn't the answer 5?", NUMBERS, None),
    ("Could the answer be (B)?", NUMBERS, None),
    ("Hmm, then is it B?", LETTERS, None),
    ("Could it be an octopus? Or is the answer A?", ANIMALS, None),
    ("The answer is A. But isn't the answer B?", NUMBERS, "A"),
    ("The answer is A. Wait, could it be C? No.", NUMBERS, "A"),
    ("So is the answer B? No, it is C.", NUMBERS, "C"),
    ("Wait, is the answer A? Hmm. It is (C).", NUMBERS, "C"),
    # A yes makes a statement of it.
    ("So is the answer B? Yes.", NUMBERS, "B"),
    ("Is the answer 5? Yes, it is.", NUMBERS, "B"),
    ("Can the correct answer be (B) 5? Yes, since 2 + 3 = 5.", NUMBERS, "B"),
    ("Is option C correct? Indeed.", ANIMALS, "C"),
    ("Is C right? Yes!", ANIMALS, "C"),
    ("The answer is A. Or is it B? Yes, the answer is B.", NUMBERS, "B"),
    # These ask for consent, or for what follows.
    ("The answer is B, isn't it?", NUMBERS, "B"),
    ("The answer is B, right?", NUMBERS, "B"),
    ("What is the answer? B", NUMBERS, "B"),
    ("What's the answer? It's (B) 5.", NUMBERS, "B"),
    ("Which option is correct? (B) 5", NUMBERS, "B"),
    ("Is the squid larger than the octopus? Yes", YES_NO, "A"),
    ("Is the answer yes or no? No.", YES_NO, "B"),
    ("答案是B吗？", NUMBERS, None),
    ("是不是选B？", NUMBERS, None),
    ("难道答案是B吗？不，答案是C。", NUMBERS, "C"),
    ("答案是B吗？是的。", NUMBERS, "B"),
    ("正确答案是什么？B", NUMBERS, "B"),
]
"""What only asks states nothing."""

WEIGHED = [
    ("It could be A, but more likely it is C.", NUMBERS, "C"),
    ("The answer could be A, but more likely it is C.", NUMBERS, "C"),
    ("The answer could be A, but most likely C.", LETTERS, "C"),
    ("The answer is probably (A), though more likely the answer is (C).", NUMBERS, "C"),
    ("The answer may be A, but C is more likely.", NUMBERS, "C"),
    ("The answer might be squid, but octopus seems more plausible.", ANIMALS, "C"),
    ("The answer might be a squid, however it is more likely to be an octopus.", ANIMALS, "C"),
    ("答案可能是A，但更可能是C。", NUMBERS, "C"),
    ("答案可能是A，不过更有可能的是C", NUMBERS, "C"),
    # Nothing is more likely here.
    ("The answer could be A, but I am not sure.", NUMBERS, "A"),
    ("The incorrect answer is A, so the correct answer is C.", NUMBERS, "C"),
    ("The wrong answer is A. The answer is C", NUMBERS, "C"),
    ("The answer is C. An incorrect answer is A.", NUMBERS, "C"),
    ("The answer may be A, but the drawing is not to scale.", NUMBERS, "A"),
]
"""What is weighed gives way to what is found more likely."""


@pytest.mark.parametrize(("response", "choices", "letter"), QUESTIONS + WEIGHED)
@pytest.mark.parametrize("before", ["", "The picture shows a pond with some animals in it.\n" * 9])
def test_what_is_asked_or_weighed_is_not_what_is_stated(response, choices, letter, before):
    verdict = choice(before + response, answer=letter or "A", choices=choices)
    assert (verdict.extracted, verdict.score) == (letter, float(letter is not None))


ODD = ["3", "5", "7", "9"]
SIGNED = ["-3", "3", "-5", "5"]
SCENES = ["The dog is running", "The cat sleeps", "A bird flies", "The fish swims"]
REVIEWED = [
    ("The answer is \u20113.", SIGNED, "A"),
    ("答案是－3。", SIGNED, "A"),
    ("A、错误\nB、正确\nC、错误\nD、错误", SCENES, "B"),
    ("ABCD is a rectangle, so angle A is right. Then BD = 5.", ODD, "B"),
    ("∠C is the right angle, so AB = 5.", ODD, "B"),
    ("Since angle B is right, AC = 9.", ODD, "D"),
    ("A is right of B. The distance is 5.", ODD, "B"),
    ("A is true north. The bearing is 5.", ODD, "B"),
    ("Student A is right, student B is wrong. So the total is 7.", ODD, "C"),
    ("B is most likely a base. Its pH is 9.", ODD, "D"),
    ("B is most likely a correct answer.", ODD, "B"),
    ("If A is correct then B is false. Therefore D.", SCENES, "D"),
    ("If the correct answer was A, we would see a red ball. We don't. So it's B.", SCENES, "B"),
    ("Options: (A) 3 (B) 5 (C) 7 (D) 9\nI choose (D).", ODD, "D"),
    ("Choices: (A) 3 (B) 5 (C) 7 (D) 9\n(D)", ODD, "D"),
    ("Options: A. 3 B. 5 C. 7 D. 9\n\nThe perimeter is 7.", ODD, "C"),
    ("Option: B", ODD, "B"),
    ("So B is the right answer.", ODD, "B"),
]


@pytest.mark.parametrize(("response", "choices", "expected"), REVIEWED)
def test_what_is_right_is_an_option_and_signs_are_kept(response, choices, expected):
    assert choice(response, answer="A", choices=choices).extracted == expected
