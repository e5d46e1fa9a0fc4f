"""Answers are read out of the ways in which models write them."""

from __future__ import annotations

import pytest

from symposia_shared.answers import AnswerKind, canonical, code_digest, compared, extract, kind_of
from symposia_shared.errors import BadInput

NUMBERS = [
    ("The answer is 42.", "42"),
    ("The final answer is $1,234.50.", "1234.5"),
    ("5 * 3 = 15\n#### 15", "15"),
    ("#### 3/4", "0.75"),
    ("The bill is $40.00 + $17.00 = $57.00.", "57"),
    ("She earned $9.00 in all over the two-week period.", "9"),
    ("**Answer:** 12 hours", "12"),
    ("Thus he pays \\boxed{\\$12} and $3 of tip were included.", "12"),
    ("$$\\boxed{1{,}000}$$", "1000"),
    ("He drove 5,00,000 steps.", "500000"),
    ("The answer is 3 1/2", "3.5"),
    ("A: 1.5 million", "1500000"),
    ("−7", "-7"),
    ("5 - 2 leaves 3, and 2500 - 200", "200"),
    ("There are 5 boxes of 12, that is 60 eggs. The answer is 60 eggs in 5 boxes.", "60"),
    ('{"reasoning": "16 + 20 = 36", "answer": "20 + 16 = 36 candles"}', "36"),
    ('{"answer": 42.0}', "42"),
    ('{"answer": "60.909 meters per second"}', "60.909"),
    ('{\n "reasoning": "he said "9" and $\\frac{1}{2}$",\n "answer": "7"\n}', "7"),
    ('{"answer": "5"}\nThat was wrong. The correct answer is:\n{"answer": "8"}', "8"),
    ('{"answer": "5"}\n\n## Question: more?\n{"answer": "___"}\n', "5"),
    ('{"answer": "5"}\n\n## Question: more?\n{"answer": "16"}\n', "5"),
    ("Answer: 17\n\nQuestion: what is 3 + 4?\nAnswer: 7", "17"),
    ("<think>3? or 4?</think>It is 9.", "9"),
    ("The answer is 8.</s></s></s>", "8"),
    ('{"reasoning": "7 of 9", "answer": null}', None),
    ("<think>it may be 3", None),
    ("The answer is 12/0", None),
    ("I do not know.", None),
    ("", None),
]
CHOICES = [
    ("The answer is (D).", "D"),
    ("B", "B"),
    ("B) Paris", "B"),
    ("**Answer: C**", "C"),
    ("The correct choice is: A", "A"),
    ("My answer is $\\textbf{(E)}\\ 12$", "E"),
    ("\\boxed{\\text{(C)}}", "C"),
    ('{"answer": "B"}', "B"),
    ("I thought of A, but the answer is D", "D"),
    ("The answer is not A. The answer is B.", "B"),
    ("The answer is A because it is big.", "A"),
    ("The value fits none exactly, but the closest one is (F).", "F"),
    ("The passage says so, as stated in option H.", "H"),
    ("## Answer\nB", "B"),
    ("The answer is (B).\n\nThe answer is (J).\n\nThe answer is (C).\n", "C"),
    (" Limited liability. The answer is (B).\n\nQuestion:\nWhich next?\nAnswer: The answer is (H).", "B"),
    ("Let us now consider each choice in turn:\n(A) means that one thing follows. (B) means that anoth", None),
    ("The answer is a tricky one.", None),
    ("It could be (A) or (B).", None),
    ("A good question. I cannot say.", None),
    ("Answer: None of the above", None),
]
FORMULAS = [
    ("\\boxed{\\frac{1}{2}}", "0.5"),
    ("\\boxed{\\dfrac{\\sqrt{3}}{2}}", "(sqrt(3))/2"),
    ("\\boxed{\\frac12}", "0.5"),
    ("\\boxed{1\\frac{9}{10}}", "1.9"),
    ("\\boxed{\\frac{16}{81}}", "0.197531"),
    ("\\boxed{x = 5}", "5"),
    ("\\boxed{\\left(1, 2\\right)}", "(1,2)"),
    ("\\boxed{30^\\circ}", "30"),
    ("\\boxed{12\\text{ square cm}}", "12"),
    ("\\boxed{3,\\!250}", "3250"),
    ("\\boxed{50\\%}", "50"),
    ("\\boxed{\\text{Evelyn}}", "evelyn"),
    ("\\boxed{\\{1,2,3\\}}", "1,2,3"),
    ("\\boxed{5\\text{ and }7}", "5,7"),
    ("\\boxed{\\frac{\\frac{a}{b}}{c}}", "(a/b)/c"),
    ("\\boxed{2^{10}}", "2^(10)"),
    ("\\boxed{\\begin{pmatrix} 1 \\\\ 2 \\end{pmatrix}}", "\\begin{pmatrix}1\\\\2\\end{pmatrix}"),
    ("First \\boxed{3}, no: \\boxed{4}", "4"),
    ("The answer is $x=\\frac{2}{3}$, as shown.", "0.666667"),
    ('{"answer": "\\frac{3}{4}"}', "0.75"),
    ('{"answer": "\\\\frac{3}{4}"}', "0.75"),
    ('"reasoning": "...\n\nAnswer: "23"\n}', '"23"'),
    ("\\boxed{2 \\times 3}", "2*3"),
    ("\\boxed{", None),
    ("", None),
]
LITERALS = [
    ("'abc'", "abc"),
    ('"  7  "', "  7  "),
    ("[1, 2,3]", "[1, 2, 3]"),
    ("['a', \"b\"]", "['a', 'b']"),
    ("{3, 1, 2}", "{1, 2, 3}"),
    ("true", "True"),
    ("5.0", "5.0"),
    ('"a\\nb"', "a\\nb"),
    ("[ANSWER]assert f(1) == [5][/ANSWER]", "[5]"),
    ("assert f(3) == (1,)", "(1,)"),
    ("So the output is `{'w': 3}`.", "{'w': 3}"),
    ('{"answer": "{\'w\': 3, \'wi\': 10}"}', "{'w': 3, 'wi': 10}"),
    ('{"reasoning": "an "odd" one", "answer": "False"}', "False"),
    ('{"answer": [1, 2]}', "[1, 2]"),
    ('{"answer": ""}', ""),
    ('{"answer": " a"}', " a"),
    ('{"answer": "___"}', None),
    ("0" * 5000, None),
    ("[" * 200 + "]" * 200, "[" * 200 + "]" * 200),
    ("", None),
]


@pytest.mark.parametrize(("text", "expected"), NUMBERS)
def test_a_number_is_read_as_it_is_meant(text: str, expected: str | None) -> None:
    assert extract(text, "number") == expected


@pytest.mark.parametrize(("text", "expected"), CHOICES)
def test_a_choice_is_one_letter_or_none(text: str, expected: str | None) -> None:
    assert extract(text, "choice") == expected


@pytest.mark.parametrize(("text", "expected"), FORMULAS)
def test_latex_comes_to_one_normal_form(text: str, expected: str | None) -> None:
    assert extract(text, "latex") == expected


@pytest.mark.parametrize(("text", "expected"), LITERALS)
def test_a_literal_is_compared_as_a_value(text: str, expected: str | None) -> None:
    assert extract(text, "python_literal") == expected


@pytest.mark.parametrize(("text", "expected"), [
    ('{"b": 1, "a": 2.0}', '{"a":2,"b":1}'),
    ('Here:\n```json\n{"a": [1, 2]}\n```\nDone.', '{"a":[1,2]}'),
    ('First {"a": 1}, better {"b": 2}', '{"b":2}'),
    ('{"a": NaN}', None),
    ("[" * 100_000, None),
    ("no object", None),
])
def test_json_is_compared_as_a_value(text: str, expected: str | None) -> None:
    assert extract(text, "json") == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Positive", "positive"),
    ("The sentiment is **positive**.", "positive"),
    ('{"label": "neutral"}', "neutral"),
    ("It is not positive but negative.", "negative"),
    ("I first thought positive.\nAnswer: negative", "negative"),
    ("positive or negative?", None),
    ("It is not positive.", None),
    ("", None),
])
def test_a_label_is_one_of_those_given(text: str, expected: str | None) -> None:
    assert extract(text, "label", labels=("positive", "negative", "neutral")) == expected


@pytest.mark.parametrize(("text", "expected"), [
    ("Sure:\n```python\ndef f(x):\n    return x\n```\nUse it so:\n```python\nprint(f(1))\n```", "def f(x):\n    return x\n"),
    ("```python\ndef f(x):\n    return 1\n```\nBetter:\n```python\ndef f(x):\n    return 2\n```", "def f(x):\n    return 2\n"),
    ("    return x\n", "    return x\n"),
    ("def f(:", None),
    ("Yes", None),
    ("I cannot do that.", None),
])
def test_a_program_is_taken_as_it_was_written(text: str, expected: str | None) -> None:
    assert extract(text, "code") == expected


def test_programs_that_differ_in_names_and_comments_only_are_the_same() -> None:
    one = 'def f(x):\n    "Adds."\n    total = x + 1  # one\n    return total\n'
    other = "def f(number: int) -> int:\n    y = number + 1\n    return y\n"
    assert code_digest(one) == code_digest(other)
    assert code_digest(one) != code_digest(one.replace("+ 1", "+ 2"))


@pytest.mark.parametrize(("texts", "question", "kind"), [
    (["A: 42", "So it is 41.", '{"answer": "42"}'], None, "number"),
    (["The answer is (A).", "The answer is (B).", "no idea"], None, "choice"),
    (["\\boxed{\\sqrt{2}}", "\\boxed{3}", "\\boxed{2}"], None, "latex"),
    (["[1, 2]", "[2, 1]", "5"], None, "python_literal"),
    (["5", "6"], "def f(x):\n    return x\nassert f(5) == ??", "python_literal"),
    (["```python\ndef f():\n    pass\n```", "    return 1\n"], None, "code"),
    (['{"a": 1}', '{"a": 2}'], None, "json"),
    (['{"a": 1}', "{'a': 1}"], None, "python_literal"),
    (["Well, it depends on many things, such as the weather.", "That is a matter of taste and of upbringing."], None, "text"),
    ([], None, "text"),
])
def test_the_kind_is_found_out_from_the_answers(texts: list[str], question: str | None, kind: AnswerKind) -> None:
    assert kind_of(texts, question=question) == kind
    assert kind_of(texts[::-1], question=question) == kind


def test_labels_make_the_kind_a_label() -> None:
    assert kind_of(["5", "6"], labels=("5", "6")) == "label"


def test_a_gold_answer_is_put_in_the_same_form_as_an_extracted_one() -> None:
    assert canonical("\\dfrac{11}{13}", "latex") == extract("so \\boxed{\\frac{11}{13}}", "latex") == "0.846154"
    assert canonical("1,000.0", "number") == extract("It is $1000.", "number") == "1000"


def test_what_an_answer_holds_can_always_be_written_as_utf_8() -> None:
    found = extract("'\\ud800'", "python_literal")
    assert found is not None
    assert found.encode() == b"?"


def test_a_kind_that_does_not_exist_is_refused_with_a_remedy() -> None:
    with pytest.raises(BadInput, match="Choose one of"):
        extract("5", "sonnet")  # type: ignore[arg-type]


@pytest.mark.parametrize(("text", "shown", "means"), [
    ('{"reasoning": "so it is 9", "answer": "9"}', "9", "9"),
    ("{'answer': '9'}", "9", "9"),
    ('{"reasoning": "so it is 9.\n\n**answer**: "9"\n}', '"9"', "9"),
    ('{"reasoning": "so it is 9.\n\nAnswer: "9"\n}\n```', '"9"', "9"),
    ('Answer: "\\dfrac{1}{2}"', '"1/2"', "0.5"),
    ('Answer: "No solution exists."', '"Nosolutionexists."', "nosolutionexists"),
    ("The answer is 9.", "9", "9"),
])
def test_quotation_marks_in_prose_stay_in_a_latex_answer_those_of_json_do_not_and_neither_is_compared(text: str, shown: str, means: str) -> None:
    found = extract(text, "latex")
    assert found == shown
    assert compared(found, "latex") == means


def test_quotation_marks_do_not_stay_in_answers_of_other_kinds() -> None:
    assert extract('**answer**: "9"', "number") == "9"
    assert extract('**answer**: "B"', "choice") == "B"
    assert extract('**answer**: "abc"', "python_literal") == "abc"
