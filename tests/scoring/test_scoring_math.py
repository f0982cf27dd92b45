"""Free-form mathematics: checked golds, responses by kind, exact comparison, bounded time."""

import time
from concurrent.futures import ThreadPoolExecutor
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dcsft_harness.errors import HarnessError
from dcsft_harness.scoring import SCORERS, Verdict
from dcsft_harness.scoring.math import math

# Kind -> (response, gold, score).
KINDS = {
    "the last box, or the boxes of one list": [
        (r"\boxed{8}. Wait, I forgot one. It is \boxed{9}.", "9", 1),
        (r"\boxed{8}. Wait, I forgot one. It is \boxed{9}.", "8", 0),
        (r"Row one has \boxed{12} tiles.\n\nAll rows have \boxed{48} tiles.", "48", 1),
        (r"Row one has \boxed{12} tiles.\n\nAll rows have \boxed{48} tiles.", r"\{12, 48\}", 0),
        (r"$a = \boxed{4}$, $b = \boxed{9}$", "4, 9", 1),
        (r"(1) $\boxed{4}$" + "\n" + r"(2) $\boxed{9}$", "(1)$$4$$ (2)$$9$$", 1),
        (r"\boxed{4}, that is, \boxed{4}", "4", 1),
        (r'{"answer": "11\n(2, 3)"}', "11\n(2,3)", 1),
        (r'{"answer": "x \neq 11"}', r"x \ne 11", 1),
        (r'{"answer": "x \\neq 11"}', r"x \ne 11", 1),
        (r"So $\fbox{11}$. The check gives 3.", "11", 1),
        (r"\boxed{}, so \boxed{\text{11}}", "11", 1),
    ],
    "what follows, in symbols": [
        ("3x = 33 => x = 11", "11", 1),
        (r"$3x = 33 \Rightarrow x = 11$", "11", 1),
        ("∴ x = 11", "11", 1),
        (r"\boxed{(1,2) \rightarrow (3,8)}", "(1,2)\n(3,8)", 1),
        ("ANSWER: 11", "11", 1),
        ("- 2.5", "-2.5", 1),
        ("- 5\n- 6", "5, 6", 1),
        ("**Answer:**\n- 5", "5", 1),
    ],
    "denied and compared": [
        ("The answer is not 11.", "11", 0),
        ("The answer is not 11 but 12.", "12", 1),
        ("Thus x = 12, which is greater than 11.", "11", 0),
        ("Thus x = 12, which is greater than 11.", "12", 1),
        ("The part that is not shaded is 30 - 18 = 12.", "12", 1),
        ("The result is not an integer: 2.5", "2.5", 1),
        ("The white part is larger than the other by 12.", "12", 1),
        ("We do not count it, 12 remain.", "12", 1),
        ("The number of students not wearing hats = 12", "12", 1),
        ("Students who do not like tea total 12.", "12", 1),
        ("It is not equal to 12.", "12", 0),
    ],
    "percent, thousands, powers of ten": [
        (r"\boxed{40.0\%}", "40", 1),
        (r"\boxed{0.4}", r"40\%", 1),
        (r"\boxed{4}", r"40\%", 0),
        ("1,250", 1250, 1),
        (r"\boxed{1{,}250}", "1250", 1),
        (r"\boxed{1\,250}", "1250", 1),
        (r"\boxed{1.25\times10^{3}}", "1250", 1),
        ("3 million", "3000000", 1),
        ("\u20118", "-8", 1),
        ("It is minus 8.", "-8", 1),
        ("12 minus 4 is 8", "8", 1),
    ],
    "mixed numbers": [
        ("3 1/4", "13/4", 1),
        ("3 1/4", "3", 0),
        (r"\boxed{3\frac{1}{4}}", "3.25", 1),
        ("It takes 1½ hours.", "1.5", 1),
        ("It takes 1½ hours.", "1/2", 0),
        ("three and a half", "3.5", 1),
    ],
    "units and degrees": [
        *(
            (rf"\boxed{{7{unit}}}", "7", 1)
            for unit in ("cm", r"\text{ cm}^2", r"\,\mathrm{kg}", "°", "平方米")
        ),
        *(
            (rf"\boxed{{7{unit}}}", "7", 1)
            for unit in ("J", " g/mL", r"\,\Omega", r"\text{ boxes}", "只", "°C")
        ),
        (r"\boxed{7x\text{ m}}", "7x", 1),
        ("7℃", "7", 1),
        ("7 N", "7", 1),
        ("about 7 kΩ", "7", 1),
        (r"\boxed{7}", "7 square feet", 1),
        (r"\boxed{70\text{ mm}}", "7 cm", 1),
        (r"\boxed{7\text{ m}}", "7 cm", 0),
        (r"\boxed{7 kg}", "7 cm", 0),
        (r"\boxed{18 km/h}", "5 m/s", 1),
        (r"\boxed{2小时}", "120分钟", 1),
        (r"\boxed{\frac{\pi}{4}}", r"45^\circ", 1),
        (r"\boxed{45°}", r"\frac{\pi}{4}", 1),
        ("π/4 rad", "45°", 1),
        ("3 × 4 - 5 = 7 (cm)", "7", 1),
        (r"\boxed{20^{\circ}30^{\prime}}", "20.5°", 1),
        ("20.5°", r"$20^{\circ}30'$", 1),
        ("20°3'", r"$20^{\circ}30'$", 0),
        ("20", r"$20^{\circ}30'$", 0),
        ("1 rad", "1°", 0),
        (r"\boxed{\frac{\pi}{4}}", "45", 0),
        (r"\boxed{\frac{\pi}{4}}", r"60^\circ", 0),
        (r"\boxed{\frac{\pi}{4} cm}", r"45^\circ", 0),
        ("答案是7厘米", "7", 1),
        ("面积是12π平方厘米。", "12", 0),
        ("面积是12π平方厘米。", r"12\pi", 1),
        ("It is 12 m long.", "12 cm", 0),
        ("It is 120 mm long.", "12 cm", 1),
        ("There are 12 in total.", "12 cm", 1),
        ("It moves at 18 km/h, as computed.", "5 m/s", 1),
        ("The area is 20 square meters.", "20 cm²", 0),
        ("It takes 120 minutes in all.", "2 hours", 1),
        ("他的体重是50克。", "50 kg", 0),
        ("The result is 3 m + 2.", "3m+2", 1),
        ("Thus the sides are 5 cm and 6 cm.", "$5$ m; $6$ m", 0),
    ],
    "ratios and times": [
        (r"\boxed{3:4}", "0.75", 1),
        (r"\boxed{6:8}", "3:4", 1),
        ("The ratio is 3:4.", "3", 0),
        ("The ratio is 3:4.", "4", 0),
        (r"\boxed{2:4:6}", "1:2:3", 1),
        ("The ratio of boys to girls is 3 to 4.", "3:4", 1),
        ("The ratio of boys to girls is 3 to 4.", "4", 0),
        (r"\boxed{7:45}", "7:45", 1),
        (r"\boxed{28:180}", "7:45", 1),
    ],
    "points, sets, intervals": [
        ("(2, -5)", "(2,-5)", 1),
        ("(-5, 2)", "(2,-5)", 0),
        (r"\boxed{\{5,2\}}", r"\{2,5\}", 1),
        (r"\boxed{[2,+\infty)}", r"x \geqslant 2", 1),
        (r"\boxed{(2,+\infty)}", r"x \geqslant 2", 0),
        (r"\boxed{2<x\le 7}", "(2,7]", 1),
        (r"\boxed{x<2 \text{ or } x>7}", r"(-\infty,2)\cup(7,\infty)", 1),
        (r"\boxed{(2, 7), (3, 8)}", "(2,7)\n(3,8)", 1),
        (r"\boxed{(3, 8), (2, 7)}", "(2,7)\n(3,8)", 0),
    ],
    "several parts": [
        (r"\boxed{5, 12}", "$$5$$ $$12$$", 1),
        (r"\boxed{12, 5}", "$$5$$ $$12$$", 0),
        (r"\boxed{12}", "$$5$$ $$12$$", 0),
        (r"\boxed{12 \text{ or } 5}", "5 or 12", 1),
        (r"\boxed{5, 5}", "5 5", 1),
        (r"\boxed{a+b}, \boxed{a-b}", "1. $a+b$ 2. $a-b$", 1),
        (r"\boxed{a-b}, \boxed{a+b}", "1. $a+b$ 2. $a-b$", 0),
        (r"\boxed{x_1=5, x_2=12}", r"x=12 \text{ or } x=5", 1),
        (r"\boxed{\pm 5}", "5, -5", 1),
        (r"\boxed{5}", r"\pm 5", 0),
        (r"\boxed{①④}", "(1)(4)", 1),
        (r"\boxed{1, 4}", "(1)(4)", 1),
        (r"\boxed{4}", "(1)(4)", 0),
    ],
    "equations": [
        (r"\boxed{4x+2y=6}", "2x+y-3=0", 1),
        (r"\boxed{2x+y+3=0}", "2x+y-3=0", 0),
        (r"\boxed{3-2x}", "y=3-2x", 1),
        ("$$a_n = 3^{n-1}$$", "$$3^{n-1}$$", 1),
        (r"\boxed{BA=DC}", "AB=CD", 1),
        (r"\boxed{\vec{a}-\vec{b}}", r"$\overrightarrow{a}-\overrightarrow{b}$", 1),
        (r"\boxed{<, >}", "<, >", 1),
        (r"\boxed{>, <}", "<, >", 0),
        (r"\boxed{AB=CE}", "AB=CD", 0),
    ],
    "exact values": [
        (r"\boxed{\frac{1}{2006!}}", r"\frac{1}{2004!}", 0),
        (r"\boxed{0.3333}", "1/3", 0),
        (".5", "1/2", 1),
        (r"\boxed{-.5}", "-1/2", 1),
        ("x = .5", "5", 0),
        (r"\boxed{\frac{\sqrt{2}}{2}}", r"\frac{1}{\sqrt{2}}", 1),
        (r"\boxed{1.41421356}", r"\sqrt{2}", 0),
        (r"\boxed{(a-b)^2}", "a^2-2ab+b^2", 1),
        (r"\boxed{|a|}", "a", 0),
        (r"\boxed{2\sin x\cos x}", r"\sin 2x", 1),
        (r"\boxed{3^{1000}+1}", "3^{1000}", 0),
    ],
    "only a part": [
        ("5x", "5", 0),
        (r"16 $\pi$", r"\pi", 0),
        (r"16 $\pi$", r"16\pi", 1),
        (r"\boxed{\sqrt{7}}", r"3$\sqrt{7}$", 0),
        ("(1/5, 9)", "9", 0),
    ],
    "without a box": [
        ("**5/9**", "5/9", 1),
        ("`14`", "14", 1),
        ("a^2 - 1", "(a-1)(a+1)", 1),
        ("### Answer\n**14**", "14", 1),
        ("The answer is 14, because 7 + 7 = 14 and not 15.", "14", 1),
        ("There are 14 birds with more than 3 feathers.", "14", 1),
        ("There are 14 birds with more than 3 feathers.", "3", 0),
        ("There are fourteen birds.", "14", 1),
        ('{"reasoning": "7 + 7", "answer": "14"}', "14", 1),
        ('```json\n{"answer": 14, "steps": ["x = 7", "7 + 8"]}\n```', "14", 1),
        (r'{"answer": "\\frac{1}{2}", "check": "2 / 4"}', "1/2", 1),
        ('{"answer": 14, "option": "B"}', "14", 1),
        ("【答案】14\n【解析】7 + 7。", "14", 1),
        ("<think>It is 7.</think><answer>14</answer>", "14", 1),
        ("We find\n\\[\nx = \\frac{7}{2}\n\\]", "3.5", 1),
        ("so it is 14\\pi", "14", 0),
        ("x = 24/7 ≈ 3.43", "24/7", 1),
    ],
    "an option's letter next to its number": [
        ("5 + 6 = 11 (B)", "11", 1),
        ("5 + 6 = 11 (B)", "12", 0),
        ("\\boxed{(B) 11}", "11", 1),
        ("(B)", "11", 0),
        ("5(A)", "5", 0),
    ],
    "quantities in two units": [
        ("3 hours and 30 minutes", "3.5 h", 1),
        ("It takes 3 hours 30 minutes.", "3.5 h", 1),
        (r"\boxed{3 \text{ hours } 30 \text{ minutes}}", "210 minutes", 1),
        ("3h 20min", "3.5 h", 0),
        ("3 hours", "3 hours 30 minutes", 0),
        ("5 feet 6 inches", "66 inches", 1),
        ("5 m and 3 s", "5 m", 0),
        ("2小时30分钟", "2.5小时", 1),
    ],
    "a conclusion behind its reasons": [
        ("x=5, y=7 so x+y=12", "12", 1),
        ("x=5, y=7 so x+y=12", "5", 0),
        ("We have a=3, b=4, hence c=5", "5", 1),
        ("The answer is x = 3, thus 14", "14", 1),
        ("so x=5, y=7", "x=5, y=7", 1),
        ("Since x=5 and y=7, x+y=12", "12", 1),
        ("Since x=5 and y=7, x+y=12", "7", 0),
        ("Because AB = 6 and BC = 8, AC is 10.", "10", 1),
        ("Since x=2, the roots are 3, 4", "3, 4", 1),
        ("Since x=2, y=3, so x+y=5", "5", 1),
    ],
    "a number stated to equal another": [
        ("0 = 651", "0", 0),
        ("651 = 0", "0", 0),
        (r"\boxed{0 = 651}", "0", 0),
        ("651 - 651 = 0", "0", 1),
        ("0.5 = 0.50", "1/2", 1),
    ],
    "quoted lines": [
        ("> 14", "14", 1),
        ("> So we get\n> 14", "14", 1),
        ("*The answer is 14.*", "14", 1),
        ("14 ✅", "14", 1),
    ],
    "named values": [
        (r"\boxed{m=4, k=1}", "k=1, m=4", 1),
        (r"\boxed{m=1, k=4}", "k=1, m=4", 0),
        (r"\boxed{m=1, k=4}", "4, 1", 1),
    ],
    "swapped named values": [
        (r"$\angle A = 70^\circ$, $\angle B = 40^\circ$", "∠A=40°, ∠B=70°", 0),
        (r"$\angle B = 70^\circ$, $\angle A = 40^\circ$", "∠A=40°, ∠B=70°", 1),
        (r"\boxed{m\angle A = 70, m\angle B = 40}", "∠A=40°, ∠B=70°", 0),
        (r"\boxed{m\angle B = 70, m\angle A = 40}", "∠A=40°, ∠B=70°", 1),
        ("V_{1}=9, V_{2}=4", "V_1=4, V_2=9", 0),
        ("V₂=9, V₁=4", "V_1=4, V_2=9", 1),
        (r"\boxed{\text{AB} = 9, \text{BC} = 4}", "AB=4, BC=9", 0),
        ("$|AB| = 9$, $|BC| = 4$", "AB=4, BC=9", 0),
        ("$|BC| = 9$, $|AB| = 4$", "AB=4, BC=9", 1),
        (r"\boxed{S_{\triangle ABC}=9, S_{\triangle ABD}=4}", "S_{ABC}=4, S_{ABD}=9", 0),
        ("α = 70, β = 40", r"\alpha=40, \beta=70", 0),
        (r"\boxed{A(3,8), B(2,7)}", "A(2,7), B(3,8)", 0),
        ("A = (3,8), B = (2,7)", "A(2,7), B(3,8)", 0),
        ("B = (3,8), A = (2,7)", "A(2,7), B(3,8)", 1),
        ("The corners are (2,7) and (3,8).", "A(2,7), B(3,8)", 1),
    ],
    "named coordinates and ratios": [
        (r"\boxed{(x, y) = (2, 7)}", "(2, 7)", 1),
        (r"\boxed{(x, y) = (7, 2)}", "(2, 7)", 0),
        (r"\boxed{(a,b,c)=(2,7,3)}", "(2,7,3)", 1),
        ("The solution is $(x, y) = (2, 7)$.", "(x,y)=(2,7)", 1),
        ("x = 2, y = 7", "(x,y)=(2,7)", 1),
        ("x = 7, y = 2", "(x,y)=(2,7)", 0),
        (r"\boxed{(2, 7)}", "x=2, y=7", 1),
        (r"\boxed{(2, 7)}", "2, 7", 0),
        ("a:b = 2:7", "2:7", 1),
        ("a:b = 7:2", "a:b=2:7", 0),
        ("So S_1:S_2 = 4:9", "4:9", 1),
        (r"\boxed{AD : DB = 4 : 9}", "4:9", 1),
    ],
    "one value said twice": [
        (r"\boxed{\frac{5}{2}\text{ or }2.5}", "2.5", 1),
        (r"\boxed{\frac{5}{2}\text{ or }3}", "2.5", 0),
        (r"The share is $\frac18$, or about 12.6%.", "1/8", 1),
        (r"\boxed{\text{B. } 14}", "14", 1),
    ],
    "a list in a sentence": [
        ("The two roots are $x_1 = 3$ and $x_2 = -8$.", "$x_{1}=3$, $x_{2}=-8$", 1),
        ("Therefore it is 6 or 2 or 10", "6 or 2 or 10", 1),
        ("So it lies between 3 and 8.", "8", 0),
        ("The sides are 3 cm and 8 cm.", "3, 8", 1),
        ("The arcs are 3π cm and 8π cm.", "3π, 8π", 1),
        ("所以结果是$3或8$。", "3或8", 1),
        ("The corners are A(-3, 5) and B(0, 8).", "(-3, 5)\n(0, 8)", 1),
        ("The perimeter is **18** and the area is **8**.", "18\n8", 1),
        ("The values go from 18 to 80: [18, 80]", "[18,80]", 1),
        ("Therefore, we get 2.5e3.", "2500", 1),
    ],
    "a quantity of several names": [
        ("So m = 3 and n = 5, giving m + n = 8.", "8", 1),
        ("The sum of the roots is -b/a = 5/2.", "2.5", 1),
        (r"\boxed{2x = 8}", "8", 0),
        (r"\boxed{8}", "x + 2y = 8", 0),
    ],
    "a remark after the answer": [
        ("The answer is 8. However, if we count the hidden one, it would be 18.", "8", 1),
        ("The answer is 8. Wait, that counts the hidden one. It is 18.", "18", 1),
    ],
    "an answer in lines": [
        ("**Answer:** 18\n8", "18\n8", 1),
        ("<answer>18 m\n8 m²</answer>", "18 m\n8 m²", 1),
        ("Final answer:\n1. 18\n2. 8", "(1) 18 (2) 8", 1),
        ("9 + 9 = 18\n18 - 10 = 8", "8", 1),
    ],
    "sizes of brackets and spaces": [
        (r"\boxed{\left(1\right)\left(4\right)}", "(1)(4)", 1),
        (r"\boxed{\left(1\right) 18 \left(2\right) 8}", "(1)$$18$$ (2)$$8$$", 1),
        (r"\boxed{(1,2)\rightarrow(3,8)}", "(1,2)→(3,8)", 1),
        ("It takes 3  1/4 hours.", "13/4", 1),
    ],
    "times of day": [
        ("He arrives at 7:45 a.m.", "7:45", 1),
        (r"\boxed{7:45 \text{ p.m.}}", "7:45 am", 0),
        (r"\boxed{3:00}", "3:00", 1),
        (r"\boxed{6:00}", "3:00", 0),
        (r"\boxed{6:08}", "3:04", 0),
        (r"\boxed{6:8}", "3:4", 1),
    ],
    "symbols and words around a value": [
        ("It costs €14.", "14", 1),
        ("The total is 3.5 million.", "3500000", 1),
        (r"\boxed{\text{14 units}}", "14", 1),
        (r"\boxed{\text{Answer: }14}", "14", 1),
        (r"\boxed{\boxed{14}}", "14", 1),
        (r"\boxed{\cos 60^\circ}", "0.5", 1),
        ("The answer is 14!", "14", 1),
        (r"\boxed{4!}", "24", 1),
        ("The answer is <b>14</b>.", "14", 1),
        *((f"14{token}", "14", 1) for token in ("<|im_end|>", "<|endoftext|>", "</s>")),
    ],
    "a bracket after the answer": [
        ("The answer is **14** (6 + 8 = 14).", "14", 1),
        ("The answer is 14 (6 + 8).", "14", 1),
        ("14 (14.0)", "14", 1),
        ("14 (6 red and 8 green)", "14", 1),
        ("There are 14 apples (6 + 8).", "14", 1),
        ("It weighs 3.5 kg (3500 g).", "3.5", 1),
        ("It weighs 3.5 kg (3500 g).", "3500", 0),
        ("There are 12 (7 + 5 = 12) apples.", "12", 1),
        ("There are 12 (7 + 5 = 12) apples.", "7", 0),
        ("The next one is 36 (6²).", "36", 1),
        ("12 (m)", "12 cm", 0),
        ("The answer is 2 (x + 3).", "2x+6", 1),
        ("14 cm (140 mm)", "14 cm", 1),
        ("3 (π + 2)", r"3\pi + 6", 1),
        (r"\boxed{14 (6 + 8)}", "14", 0),
        ("(1) (4)", "(1)(4)", 1),
    ],
    "a second number after the answer": [
        ("The area of the triangle is 12 cm², which is half of the rectangle's 24 cm².", "12", 1),
        ("The area is $12$, which is half of the rectangle's 24.", "12", 1),
        ("The probability is 1/6, which is about 0.167.", "1/6", 1),
        ("The remainder is 12 when the number is divided by 17.", "12", 1),
        ("The median of the data is 12, while the mean is 7.", "12", 1),
        ("The speed of the car is 60 km/h, i.e. 16.67 m/s.", "60 km/h", 1),
        ("It weighs 3.5 kg, i.e., 3500 g.", "3.5", 1),
        ("It takes 2 weeks, i.e. 14 days.", "14", 1),
        ("There are 12 blocks: 7 red and 5 blue.", "12", 1),
        ("x = 12\n\nCheck: 12 + 5 = 17 ✓", "12", 1),
        ("So $x = 12$. We can check: $12 + 5 = 17$.", "12", 1),
        ("The answer is 12, which is half of 24.", "12", 1),
        ("The area is l*w, which is 12.", "12", 1),
        ("The perimeter is 2a + 4, which is 12.", "12", 1),
        ("The value of 3x when x = 4 is 12.", "12", 1),
        ("Subtract 8 from 20, which is 12.", "12", 1),
        ("The perimeter is 4 times 3, which is 12.", "12", 1),
        ("There are 4 sides, which is 12 in total.", "12", 1),
        ("The price was 10 when it opened and is 12 now.", "12", 1),
        ("The cost is $12, which is $3 more than last year.", "12", 1),
        ("The area of 3 squares when the side is 2 is 12.", "12", 1),
        ("The sum is 5 + 7, which is 12.", "12", 1),
        ("The value of the digit is 7 tens, i.e. 70", "70", 1),
        ("We have x + 5 = 17, which is equivalent to x = 12.", "12", 1),
        ("The check: 5 + 7 = 12", "12", 1),
    ],
    "named parts in lines": [
        ("(1) a = 8\n(2) S = 15", "(1) 8; (2) 15", 1),
        ("(1) a = 15\n(2) S = 8", "(1) 8; (2) 15", 0),
        ("1. a = 8\n2. S = 15", "(1) 8; (2) 15", 1),
        ("Answers:\n(1) $x = 8$\n(2) $y = 15$", "(1) 8; (2) 15", 1),
        ("The answers are:\n1. x = 8\n2. y = 15", "(1) 8; (2) 15", 1),
        ("1. a = 8 + 7 = 15\n2. S = 2 × 15 = 30", "30", 1),
    ],
    "systems of equations": [
        (r"\boxed{\begin{cases} x=8 \\ y=15 \end{cases}}", "x=8, y=15", 1),
        (r"\boxed{\begin{cases} x=15 \\ y=8 \end{cases}}", "x=8, y=15", 0),
        (r"\boxed{\left\{\begin{array}{l}x=8\\y=15\end{array}\right.}", "x=8, y=15", 1),
        ("$\\boxed{\\begin{aligned} x &= 8, \\\\\n y &= 15 \\end{aligned}}$", "x=8, y=15", 1),
        ("The solution is\n\\[\n\\begin{cases}\nx = 8 \\\\\ny = 15\n\\end{cases}\n\\]", "x=8, y=15", 1),
        ("x=8, y=15", r"\begin{cases} x=8 \\ y=15 \end{cases}", 1),
        ("x=15, y=8", r"$\left\{\begin{array}{l}x=8\\y=15\end{array}\right.$", 0),
        ("\\[\n\\begin{aligned}\nx + 5 &= 17 \\\\\nx &= 12\n\\end{aligned}\n\\]", "12", 1),
        (r"$$\begin{aligned} S &= 3 \cdot 4 \\[2pt] &= 12 \end{aligned}$$", "12", 1),
    ],
    "units with powers, and signs after figures": [
        *(
            (written, gold, 1)
            for written in (
                r"\boxed{10\,\mathrm{m\,s^{-2}}}",
                r"\boxed{10\ \text{m s}^{-2}}",
                "10 m·s⁻²",
                r"\boxed{10\ m\cdot s^{-2}}",
                r"The acceleration is $10\,\mathrm{m\,s^{-2}}$.",
                "The acceleration is 10 m s^-2.",
                "The acceleration is 10 m·s⁻² at first.",
            )
            for gold in ("10 m/s^2", "10")
        ),
        ("10 m·s⁻¹", "10 m/s^2", 0),
        (r"\boxed{10\,\mathrm{m\,s^{-1}}}", "10 m/s^2", 0),
        ("2x¹⁰", "2x^{10}", 1),
        (r"\boxed{\text{3.5kg}}", "3.5", 1),
        (r"\boxed{\text{3.5kg}}", "3.5 cm", 0),
        ("3 x 10^2", "300", 1),
        ("It is about 3.2 x 10⁻² m.", "0.032", 1),
        (r"\boxed{3x}", "3x", 1),
        (r"$\lim_{x \to 2} f(x) = 5$", "5", 1),
        (r"\boxed{\lim_{x \to 2} (x + 3) = 5}", "5", 1),
        (r"\boxed{\lim_{x \to 2} (x + 3) = 5}", "2", 0),
    ],
    "one name written in two ways": [
        ("a_{n}-2", "a_n-2", 1),
        ("a_{m}-2", "a_n-2", 0),
        (r"\boxed{\frac{m_{1}}{m_{2}}}", r"\frac{m_1}{m_2}", 1),
        ("m₁/m₂", r"\frac{m_1}{m_2}", 1),
        ("m₂/m₁", r"\frac{m_1}{m_2}", 0),
        ("2v₀", "2v_{0}", 1),
        ("v₀", "0", 0),
        ("x₁₂ = 7", "7", 1),
        ("log₂8", "3", 1),
        ("mg cosθ", r"mg\cos\theta", 1),
        ("mg sinθ", r"mg\cos\theta", 0),
        ("The angle is α+β.", r"\alpha+\beta", 1),
        ("The angle is α-β.", r"\alpha+\beta", 0),
        *((letter, command, 1) for letter, command in [("λ", r"\lambda"), ("ω", r"\omega")]),
        (r"\boxed{\sqrt\lambda}", "√(λ)", 1),
        ("Δx/Δt", r"\frac{\Delta x}{\Delta t}", 1),
        (r"\boxed{\Delta x = 7}", "7", 1),
    ],
    "a box for each part": [
        *(
            (response, gold, 1)
            for gold in ("96\n376", "96, 376", "(1)$$96$$ (2)$$376$$")
            for response in (
                r"\boxed{96},\ \boxed{376}",
                r"$\boxed{96},\quad \boxed{376}$",
                r"\boxed{96} \text{ and } \boxed{376}",
                r"\boxed{96}\\ \boxed{376}",
                r"$BM = \boxed{96}$, $DN = \boxed{376}$",
            )
        ),
        ("(1) $a=\\boxed{0.04}$\n\n(2) The number is $\\boxed{440}$", "(1)$$0.04$$ (2)$$440$$", 1),
        ("(1) $a=\\boxed{440}$\n\n(2) The number is $\\boxed{0.04}$", "(1)$$0.04$$ (2)$$440$$", 0),
        (r"The wire is \boxed{96} cm and the paper is \boxed{376} cm².", "96\n376", 1),
        (r"The wire is \boxed{96} cm and the paper is \boxed{376} cm².", "96", 0),
        (r"First \boxed{96, 1}. Wait, it is \boxed{96, 376}.", "96\n376", 1),
    ],
    "parts in prose and in labeled lines": [
        ("Mother ate 8 strawberries and Little Monkey ate 4 strawberries.", "8\n4", 1),
        ("Mother ate 8 strawberries and Little Monkey ate 4 strawberries.", "4\n8", 0),
        ("Mother ate 8 strawberries and Little Monkey ate 4 strawberries.", "8", 0),
        ("BM equals 12, while DN equals 6.", "12\n6", 1),
        ("周长14米，面积10平方米", "14 m\n10 m²", 1),
        ("Perimeter: 14 m\nArea: 10 m²", "14 m\n10 m²", 1),
        ("Perimeter: 10 m\nArea: 14 m²", "14 m\n10 m²", 0),
        ("One row: 12\nAll rows: 48", "48", 1),
        ("- Pencils: 30\n- Pens: 45", "30\n45", 1),
        ("First blank: **30**\nSecond blank: **45**", "30\n45", 1),
        ("点B(3，6)，点D(7，8)", "(3,6)\n(7,8)", 1),
        ("点B(7，8)，点D(3，6)", "(3,6)\n(7,8)", 0),
    ],
    "a quantity of any name whose value has letters": [
        (r"\boxed{DE = \frac a2}", r"\frac{a}{2}", 1),
        (r"\boxed{DE = \frac a3}", r"\frac{a}{2}", 0),
        (r"\boxed{PQ=\frac{2\sqrt2}{3}a}", r"\frac{2\sqrt{2}}{3}a", 1),
        (r"\boxed{OA_n=(\sqrt2)^n}", r"\sqrt{2^n}", 1),
        (r"\boxed{S_{\triangle ABC}=\frac{\sqrt3}{2}a^2}", r"\frac{\sqrt{3}}{2}a^2", 1),
        (r"\boxed{\text{Area} = 2a^2}", "2a^2", 1),
        (r"\boxed{\angle BAC = 180^\circ - 2\alpha}", r"180^\circ-2\alpha", 1),
        (r"\overrightarrow{PG} = 2\vec{a}+\vec{b}", r"2\overrightarrow{a}+\overrightarrow{b}", 1),
        (r"\boxed{EF=\frac{OE}{4}}", "OE=4EF", 1),
        (r"\boxed{EF=4OE}", "OE=4EF", 0),
        ("x = y/2", "y=2x", 1),
        ("z = 2x", "y=2x", 0),
        (r"\boxed{AE + EC + AC = a+b}", "a+b", 1),
        (r"\boxed{3+2(n-1)=2n+1}", "2n+1", 1),
        (r"\boxed{S = 3 \cdot 2a \cdot a = 6a^2}", "6a^2", 1),
        (r"\boxed{2x = 2y+1}", "2y+1", 0),
        (r"\boxed{S_{\triangle DBE}:S_{\triangle ADC}=9:10}", "9:10", 1),
        (r"\boxed{S_{\triangle DBE}:S_{\triangle ADC}=10:9}", "9:10", 0),
        (r"$A_{5}(6,0)$, $A_{2018}(0,-2018)$", "(6,0)\n(0,-2018)", 1),
        (r"The point is $A_{2023}(15, 0)$.", "(15,0)", 1),
        ("P(X ≥ 2) = 0.3", "0.3", 1),
        (r"$P(\text{red}) = \frac35$", "3/5", 1),
        ("x(x+1) = 6", "6", 0),
        ("f(-1) = 6", "6", 1),
        (r"\boxed{32 \le PA^2+PB^2 \le 52}", "[32,52]", 1),
        (r"\boxed{-1 < 2x+1 < 3}", "(-1,3)", 0),
    ],
    "a formula of any letters in a sentence": [
        (r"So the area is $ab - bc - ac + c^2$.", "ab-bc-ac+c^2", 1),
        (r"So the area is $ab - bc - ac + c^2$.", "2", 0),
        (r"Thus the area is $\pi r^2$.", r"\pi r^2", 1),
        (r"Thus the area is \(\pi r^2\).", r"\pi r^2", 1),
        (r"Thus the area is $\pi r^2$.", r"\pi", 0),
        ("The perimeter is $2a+c$.", "2a+c", 1),
        ("The perimeter is $2a+c$.", "2a", 0),
        (r"The perimeter is $C_{\triangle AEC} = a+b$.", "a+b", 1),
        ("We need $BD = CE$.", "BD=CE", 1),
        ("We need $BD = CE$.", "BD=AE", 0),
        ("In triangle $ABC$, the side $AC$ is 5.", "5", 1),
        ("So 5 is the distance to the line $l_1$.", "5", 1),
        ("It costs $5 and sells for $7.", "5\n7", 1),
        ("It needs $3 + 2(n-1) = 2n+1$ sticks.", "2n+1", 1),
        ("It needs $3 + 2(n-1) = 2n+1$ sticks.", "5", 0),
    ],
    "letters and signs in Chinese": [
        ("所求式子为x+3", "x+3", 1),
        ("所求式子为x+3", "3", 0),
        ("周长等于a+b", "a+b", 1),
        ("100，200", "100\n200", 1),
        ("169，555，671", "169 555 671", 1),
        ("根号5", r"\sqrt{5}", 1),
        ("根号5", "5", 0),
    ],
    "signs of order": [
        ("i <= 10", r"i \le 10", 1),
        (r"\boxed{x>=2}", r"x \ge 2", 1),
        (r"\boxed{x>=2}", "x > 2", 0),
        ("1<=x<3", "[1,3)", 1),
        ("$a > b$", ">", 1),
        ("$a < b$", ">", 0),
        ("$S_A = S_B$", "=", 1),
        ("$S_A > S_B$", "=", 0),
    ],
    "where a formula holds": [
        (r"\boxed{y=-3x+18 \ (0\le x\le 6)}", "y=-3x+18", 1),
        (r"$y=\frac9x$ ($x>0$)", r"y=\frac{9}{x}", 1),
        ("2n+1 (n∈N*)", "2n+1", 1),
        ("2n+1（n为正整数）", "2n+1", 1),
        ("2n+1 (n is a positive integer)", "2n+1", 1),
        ("2n+1 (n∈N*)", "2n", 0),
    ],
    "letters in other type": [
        (r"\boxed{\frac{1}{4(2n-1)}}", r"\frac{1}{4(2\text{n}-1)}", 1),
        (r"\boxed{2\mathrm{x}+1}", "2x+1", 1),
        (r"\boxed{2\vec a-\vec{b}}", r"2\boldsymbol{a}-\mathbf{b}", 1),
        (r"\boxed{\vec{b}-2\vec{a}}", r"2\boldsymbol{a}-\mathbf{b}", 0),
    ],
    "powers in plain text": [  # answers of chat models, MM-K12
        ("3 × 10⁸ m/s", r"3\times10^8", 1),
        (r"\boxed{1.2×10⁵千克}", "1.2×10^5 kg", 1),
        ("10⁵", "105", 0),
        ("The area is 36 cm2.", "36", 1),
        (r"\boxed{36 cm2}", "36 cm²", 1),
        (r"\boxed{36 cm2}", "36 m²", 0),
        ("5 m/s2", "5", 1),
        (r"\boxed{36}", r"$$\unit{36cm^{2}}$$", 1),
        ("x**2 + 1", "x^2+1", 1),
        ("1**2", "12", 0),
        ("10 000 m", "10000", 1),
        ("It costs 1,000.99€", "1000.99", 1),
    ],
    "fractions in words": [  # xVerify
        ("Three quarters of them.", "3/4", 1),
        ("three quarters", "3", 0),
        ("The answer is two-thirds.", "2/3", 1),
        ("It is one half.", "1", 0),
    ],
    "letters of a plain formula": [  # OlympiadBench, Minerva
        ("So we get f(x) = x + 1.", "f(x)=x+1", 1),
        ("So z = 1 - i", "1-i", 1),
        ("So z = 1 - i", "1", 0),
        ("The expression simplifies to 2ab - b².", "2ab-b^2", 1),
        ("So we get \\frac{v_0}{10}", r"\frac{v_{0}}{10}", 1),
        ("sin A = 3/5", "3/5", 1),
        ("So (c) is 5.", "5", 1),
        ("Part c: 5 cm", "5", 1),
        ("It's 5, e.g. at 5 p.m.", "5", 1),
        ("There are 25 squares, 10 of which are black.", "25", 1),
    ],
    "sets and what a parameter is taken from": [  # GAOKAO
        ("The solution set is {x | -2 ≤ x < 3}.", "[-2,3)", 1),
        (r"\{x\in\mathbb{R}\mid x>1\}", "x>1", 1),
        (r"\boxed{2k\pi+\frac{\pi}{3}}", r"$2k\pi+\frac{\pi}{3},k\in Z$", 1),
        (r"\boxed{2k\pi+\frac{\pi}{3}, k\in\mathbb{Z}}", r"$2k\pi+\frac{\pi}{3},k\in Z$", 1),
        (r"\boxed{k\pi+\frac{\pi}{3}, k\in\mathbb{Z}}", r"$2k\pi+\frac{\pi}{3},k\in Z$", 0),
        (r"\boxed{2\cdot\mathbf{b}}", "2b", 1),
        ("The solution is x != 5", r"x \neq 5", 1),
        (r"\boxed{①③④}", r"$\textcircled{1}\textcircled{3}\textcircled{4}$", 1),
        (r"\boxed{①③}", r"$\textcircled{1}\textcircled{3}\textcircled{4}$", 0),
        (r"\boxed{\left( \frac{1}{5}, 2 \right)}", r"$\\left(\\frac{1}{5},2\\right)$", 1),  # Math-Verify
    ],
    "letters and times in upright type": [  # MATH, MARIO_EVAL
        (r"\boxed{\text{(C)}}", "C", 1),
        (r"\boxed{\text{A, C, F}}", r"\text{A,C,F}", 1),
        (r"\boxed{\text{A, C}}", r"\text{A,C,F}", 0),
        (r"\boxed{4:30}", r"\text{4:30 p.m.}", 1),
        (r"\boxed{\text{4:30 a.m.}}", r"\text{4:30 p.m.}", 0),
        (r"\boxed{9\text{ a.m.}}", "9 a.m.", 1),
        (r"\boxed{9\text{ p.m.}}", "9 a.m.", 0),
    ],
    "last tokens and headings": [  # GAOKAO-Bench, DeepSeek
        ("【解析】略<eoe>\n【答案】$\\sqrt{8}$<eoa>", r"$2 \sqrt{2}$", 1),
        ("14<｜end▁of▁sentence｜>", "14", 1),
        ("【答案】\n首先，我们求$a$：\n$a+2=7$，$a=5$。\n最后，得到$S=20(1+4)=100$。", "100", 1),
        ("Answer: I cannot tell.\nThere may be 14.", "14", 0),
    ],
    "refusals": [
        ("I cannot tell without the 14 labels.", "14", 0),
        ("Without the figure I am unable to find f(0).", "0", 0),
    ],
}


@pytest.mark.parametrize(
    ("response", "gold", "score"),
    [pytest.param(*row, id=f"{kind}: {row[0]}") for kind in KINDS for row in KINDS[kind]],
)
def test_responses_are_scored_by_kind(response, gold, score):
    verdict = math(response, answer=gold)
    assert verdict.score == score


@pytest.mark.parametrize(
    "response", ["", "   ", "goose", r"\boxed{}", "I cannot answer this.", "<think>It is 4.</think>"]
)
def test_a_text_without_mathematics_has_no_answer(response):
    assert math(response, answer="4") == Verdict(0.0, None)


REFUSED = [
    *(
        "",
        "goose",
        "Yes",
        "No",
        "No solution",
        "the answer is seven apples",
        "goose and duck",
        "café",
        "-",
        "?",
    ),
    *(
        "2.5 (not unique)",
        "2.5 (The answer is not unique)",
        "$$AB=CD$$ (or $$AC=BD$$)",
        r"2 (满足 $1<e \leq \sqrt{5}$ 皆可)",
        r"$\frac{3}{10} \# \# 0.3$",
        r"$$x \geqslant 2$$(or $$x > 2$$)",
        "Because a = 3, the area is 9.",
        "square\ncircle",
        r"\begin{cases} x & x>0 \\ -x & x<0 \end{cases}",
        r"\begin{cases} x, x>0 \\ -x, x<0 \end{cases}",
        r"\begin{pmatrix} 1 \\ 2 \end{pmatrix}",
        r"\left[\begin{array}{c} 1 \\ 2 \end{array}\right]",
    ),
    *("\\frac{" * 3000, "(" * 2000, "1," * 900, "{" * 700),
]


@pytest.mark.parametrize("answer", REFUSED, ids=lambda text: text[:20])
def test_a_gold_that_is_not_mathematics_is_refused_quickly(answer):
    start = time.process_time()
    with pytest.raises(HarnessError, match="exact_word"):
        math("4", answer=answer)
    assert time.process_time() - start < 1.0


def test_a_long_gold_is_refused_by_its_length():
    with pytest.raises(HarnessError, match="an answer of 1,601 characters"):
        math("801", answer="1+" * 800 + "1")


NUMBERS = st.one_of(
    st.integers(-5000, 5000).map(str),
    st.tuples(st.integers(-500, 500), st.integers(1, 99)).map(lambda pair: f"{pair[0]}.{pair[1]:02d}"),
    st.tuples(st.integers(1, 99), st.integers(2, 99)).map(lambda pair: rf"\frac{{{pair[0]}}}{{{pair[1]}}}"),
    st.tuples(st.integers(2, 9), st.integers(2, 9)).map(lambda pair: rf"{pair[0]}\sqrt{{{pair[1]}}}"),
    st.integers(2, 60).map(lambda number: rf"{number}\pi"),
    st.tuples(st.integers(2, 9), st.integers(1, 9)).map(lambda pair: f"{pair[0]}x^2+{pair[1]}"),
)
SEPARATED = {
    "blocks": ("$${}$$", " "),
    "lines": ("${}$", "\n"),
    "commas": ("{}", ", "),
    "or": ("${}$", " or "),
}


@given(NUMBERS)
def test_a_restated_gold_is_right(gold):
    for written in (gold, f"${gold}$", f"$${gold}$$."):
        assert math(f"\\boxed{{{gold}}}", answer=written).score == 1.0
        assert math(f"So the answer is ${gold}$.", answer=written).score == 1.0


@given(st.lists(NUMBERS, min_size=2, max_size=4, unique=True), st.sampled_from(sorted(SEPARATED)))
@settings(deadline=None)
def test_all_parts_together_are_right_and_one_part_is_not(parts, how):
    form, between = SEPARATED[how]
    gold = between.join(form.format(part) for part in parts)
    assert math(f"\\boxed{{{', '.join(parts)}}}", answer=gold).score == 1.0
    for part in parts:
        assert math(f"\\boxed{{{part}}}", answer=gold).score == 0.0


@given(st.integers(-999, 999), st.integers(1, 999), st.integers(1, 12))
def test_equal_values_are_right_and_others_are_not(above, below, factor):
    value = Fraction(above, below)
    response = rf"\boxed{{\frac{{{above * factor}}}{{{below * factor}}}}}"
    assert math(response, answer=f"{value.numerator}/{value.denominator}").score == 1.0
    assert math(response, answer=f"{above + 1}/{below}").score == 0.0


@given(st.text(alphabet="0123456789abx+-*/^_={}()[]\\$%,.:;|<>!√π° \nfracsqrttext±∪①", max_size=60))
@settings(max_examples=400, deadline=2000)
def test_never_raises_and_never_takes_long(text):
    assert math(text, answer="7/2").score in (0.0, 1.0)
    assert math(f"\\boxed{{{text}}}", answer="$$3$$ $$4$$").score in (0.0, 1.0)
    try:
        math("3", answer=text)
    except HarnessError:
        pass


@pytest.mark.parametrize(
    "text",
    [
        "9^{9^{9^9}}",
        "(" * 3000,
        "\\frac{" * 3000,
        "\\sqrt{" * 200 + "2",
        "x!" * 200,
        "=1" * 900,
        "1:" * 900,
        "∪±" * 500,
        "is 1: 2 when " * 300,
        "\n. Check:=" * 400,
        "1 (2" * 900,
    ],
    ids=lambda text: text[:12],
)
def test_expensive_expressions_are_read_in_bounded_time(text):
    start = time.process_time()
    for response in (text, f"\\boxed{{{text}}}", f"The answer is ${text}$."):
        assert math(response, answer="7").score == 0.0
    assert time.process_time() - start < 2.0


def test_a_megabyte_is_read_from_its_end():
    start = time.perf_counter()
    assert math("1 + " * 250_000 + " so the answer is 4.", answer="4").score == 1.0
    assert time.perf_counter() - start < 5.0


@pytest.mark.parametrize(
    ("text", "score"),
    [
        ("First 3, then 5. So it is 5", 0),
        ("<think>First 3, then 5", 0),
        ("5", 0),
        ("so \\boxed{5}, let me see", 1),
        ("so \\boxed{5", 0),
        ("<answer>5</answer> because", 1),
        ("<answer>5", 0),
    ],
)
def test_a_truncated_response_needs_a_closed_box_or_tag(text, score):
    assert math(text, answer="5", truncated=True).score == score


def test_several_responses_are_scored_as_if_alone():
    responses = ["5", r"\boxed{\frac{10}{2}}", "goose", r"\boxed{6}"]
    assert [one.score for one in SCORERS["math"].score_many(responses, answer="5")] == [1, 1, 0, 0]
    assert SCORERS["math"].score_many(["5", "5"], truncated=[False, True], answer="5")[1].extracted is None


def test_threads_get_the_verdicts_of_their_own_responses():
    with ThreadPoolExecutor(8) as pool:
        verdicts = list(pool.map(lambda n: math(f"The answer is {n}.", answer=n - n % 2), range(60)))
    assert [verdict.score for verdict in verdicts] == [float(n % 2 == 0) for n in range(60)]


@pytest.mark.parametrize(
    ("response", "score"), [(r"\boxed{\{5,2\}}", 1), ("{5, 2}", 1), ("2", 0), ("2, 5, 7", 0)]
)
def test_a_gold_in_plain_braces_is_a_set(response, score):
    assert math(response, answer="{2,5}").score == score


PREFIXED = "GB GW MB MN MW Wb dB lm lx mF mH mW nA nC nF ns pF μA μC μF μH μV μg μs".split()
UPRIGHT = ["H", "MΩ", "S", "T"]
"""Units that are names of things elsewhere."""


@pytest.mark.parametrize("unit", PREFIXED + UPRIGHT)
def test_a_unit_with_a_prefix_stands_behind_a_bare_value(unit):
    for text in (rf"\boxed{{5\text{{ {unit}}}}}", rf"\boxed{{5\,\mathrm{{{unit}}}}}"):
        assert math(text, answer="5").score == 1, text
    for text in (rf"\boxed{{5 {unit}}}", f"5 {unit}") if unit in PREFIXED else ():
        assert math(text, answer="5").score == 1, text


@pytest.mark.parametrize("scorer", ["math", "open_answer"])
@pytest.mark.parametrize(
    ("gold", "response", "score"),
    [
        ("5 mW", "5 MW", 0),
        ("5 mW", "0.005 W", 1),
        ("20 MV", "20 mV", 0),
        ("1.5 kΩ", "1500 Ω", 1),
        ("2 μF", "2 mF", 0),
        ("2 μF", "2000 nF", 1),
    ],
)
def test_the_case_of_a_prefix_counts(scorer, gold, response, score):
    assert SCORERS[scorer](response, answer=gold).score == score
