"""The embedded digits suite: real digits, three task families and a real, tiny checkpoint.

The digits are the UCI optical recognition set (1,797 handwritten digits, 8x8, 0..16) that ships
inside scikit-learn, so nothing is downloaded. Every image is drawn from real digits by a seeded
generator; the splits are disjoint in the real digits, not only in the drawings.
"""
