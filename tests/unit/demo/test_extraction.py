"""What a text is about, found by counting words."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clew.demo.corpus import documentation
from clew.demo.extraction import count_tokens, keywords, sentences, summary, words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        (" \n\n\t", []),
        ("***\n===", []),
        ("One. Two? Three!", ["One.", "Two?", "Three!"]),
        (
            "A heading\n*********\n\nIt is e.g. lower case after a dot.",
            ["A heading", "It is e.g. lower case after a dot."],
        ),
        ("一本の糸。迷宮の糸。", ["一本の糸。", "迷宮の糸。"]),
        ('He said "Go." She went.', ['He said "Go.', "She went."]),
    ],
)
def test_sentences(text, expected):
    assert sentences(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Größe ÉTÉ don’t __init__ 42 x1", ["größe", "été", "don’t", "__init__", "x1"]),
        ("the thread's end", ["the", "thread", "end"]),
        ("迷宮の糸玉", ["迷宮", "糸玉"]),
        ("🧵🧵 -- ''", []),
    ],
)
def test_words(text, expected):
    assert words(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", []),
        ("the of and to", []),
        ("Faden, Faden, Knäuel", ["faden", "knäuel"]),
        # Two words that keep occurring together are one keyword, and not three
        ("A context manager. Some context manager! This context manager?", ["context manager"]),
        # Those of one count go by the alphabet, so that the answer is always the same
        ("pear apple", ["apple", "pear"]),
    ],
)
def test_keywords(text, expected):
    assert [keyword.name for keyword in keywords(text)] == expected


def test_a_summary_keeps_the_order_of_the_text_and_prefers_what_says_most():
    text = "Yes. The thread leads through the maze. It rained. The thread of the maze is the thread of Ariadne. Done."
    assert summary(text, 2) == [
        "The thread leads through the maze.",
        "The thread of the maze is the thread of Ariadne.",
    ]
    assert summary("") == []


def test_real_documentation_has_topics_that_stand_in_it():
    texts = documentation()
    assert len(texts) > 70
    for text in texts:
        found = keywords(text.text)
        plain = " ".join(text.text.lower().split())
        assert found, text.title
        assert summary(text.text), text.title
        assert [keyword.name for keyword in found if keyword.name not in plain] == [], text.title


def test_a_few_texts_are_spread_over_all():
    assert [text.title for text in documentation(3)] == [documentation()[index].title for index in (0, 26, 52)]


@given(st.text())
def test_any_text_can_be_read(text):
    found = keywords(text)
    assert all(0 < keyword.weight <= 1 for keyword in found)
    assert found == keywords(text)
    assert len(summary(text, 3)) <= 3
    assert count_tokens(text) >= 0
