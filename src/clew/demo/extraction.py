"""Finding the telling sentences and the keywords of a text, by how often its words occur. Deterministic, for any script."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from dataclasses import dataclass
from typing import Final

_PARAGRAPH: Final = re.compile(r"\n\s*\n")
_SENTENCE_END: Final = re.compile(r"(?<=[.!?…])[\"'”’)\]]*\s+(?=[\"'“‘(\[]?[^\W\d_a-zß-öø-ÿ])|(?<=[。！？])")
_RULE: Final = re.compile(r"^\s*([*=\-~^#\"'])\1{2,}\s*$", re.MULTILINE)
_WORD: Final = re.compile(r"[^\W\d][\w'’-]*", re.UNICODE)
_POSSESSIVE: Final = re.compile(r"['’]s$")
_TOKEN: Final = re.compile(r"\w+|[^\w\s]", re.UNICODE)
# Scripts that put no spaces between words: Chinese, Japanese
_UNSPACED: Final = re.compile(r"[぀-ヿ㐀-䶿一-鿿]{2,}")

# Japanese writes its particles and endings in it, which say little
_HIRAGANA: Final = re.compile(r"[぀-ゟ]")

_MIN_SENTENCE_WORDS: Final = 4
_MIN_PHRASE_COUNT: Final = 3

STOP_WORDS: Final = frozenset(
    # As a text: three hundred quoted words could not be read
    """
    a about above after again against all also although always am among an and any are aren't as at be because been before being
    below between both but by can can't cannot could couldn't did didn't do does doesn't doing don't done down due during each
    either else etc even every example few first for form forms from further given gives had has hasn't have haven't having he her
    here hers him his how however i if in instead into is isn't it it's its itself just last later less let like made make makes
    many may me might more most much must my need neither new no nor not note now of off often on once one only or other others
    otherwise our out over own per possible rather same second see several shall she should since so some such than that that's
    the their them then there therefore these they this those though three through thus to too two under unless until up upon us
    use used uses using usually very was we well were what when where whether which while who whose why will with within without
    would yet you your

    aber als am an auch auf aus bei bis das dass dem den der des die doch du durch ein eine einem einen einer er es für hat ich ihr
    im in ist ja kann man mit nach nicht noch nur oder ohne sein sich sie sind so um und uns von vor war wenn wie wir wird zu zum
    zur au aux avec ce ces dans de du elle en est et il ils la le les leur mais ne nous ou par pas pour qui que se ses son sur un
    une vous como con del el ella en es esta este las lo los más muy no para pero por que se si sin su sus un una y
    """.split()  # noqa: SIM905 - see above
)


@dataclass(frozen=True, kw_only=True)
class Keyword:
    """A word or phrase that says what a text is about.

    Attributes:
        name: in lower case, as it stands in the text.
        weight: how often it occurs, against the most frequent one: above 0, at most 1.
    """

    name: str
    weight: float


def sentences(text: str) -> list[str]:
    r"""Return the sentences of a text, in order, each on one line; rules under headings are left out.

    Example:
        >>> sentences("One thread.\nIt goes far! 一本の糸。")
        ['One thread.', 'It goes far!', '一本の糸。']
    """
    found = []
    for paragraph in _PARAGRAPH.split(_RULE.sub("\n", text)):
        line = " ".join(paragraph.split())
        found += [part for piece in _SENTENCE_END.split(line) if (part := piece.strip())]
    return found


def words(text: str) -> list[str]:
    """Return the words of a text in lower case; of unspaced scripts, each pair of neighbouring characters.

    Example:
        >>> words("Ein Knäuel, don't panic: 糸玉")
        ['ein', 'knäuel', "don't", 'panic', '糸玉']
    """
    found: list[str] = []
    for match in _WORD.finditer(text):
        word = _POSSESSIVE.sub("", match.group().lower()).strip("'’-")
        if _UNSPACED.fullmatch(word):
            pairs = (word[index : index + 2] for index in range(len(word) - 1))
            found += [pair for pair in pairs if not _HIRAGANA.search(pair)]
        elif word:
            found.append(word)
    return found


def count_tokens(text: str) -> int:
    """Return how many words and signs a text has: what the stand-in bills.

    Example:
        >>> count_tokens("One thread, end to end.")
        7
    """
    return sum(1 for _ in _TOKEN.finditer(text))


def keywords(text: str, most: int = 8) -> list[Keyword]:
    """Return what a text is about, the weightiest first: single words, and pairs of words that keep occurring together.

    Args:
        text: in any script.
        most: at most so many.

    Example:
        >>> [keyword.name for keyword in keywords("The thread. A long thread, a labyrinth.", most=2)]
        ['thread', 'labyrinth']
    """
    folded = " ".join(text.lower().split())
    in_order = [words(sentence) for sentence in sentences(text)]
    counts = Counter(word for sentence in in_order for word in sentence if _is_telling(word))
    pairs = Counter(
        f"{left} {right}"
        for sentence in in_order
        for left, right in itertools.pairwise(sentence)
        if left != right and _is_telling(left) and _is_telling(right)
    )
    for pair, count in pairs.items():
        if count >= _MIN_PHRASE_COUNT and pair in folded:
            # What the pair says its words need not say again
            for word in pair.split():
                counts[word] -= count
            counts[pair] = count + 1
    ranked = sorted(
        ((count, name) for name, count in counts.items() if count > 0), key=lambda item: (-item[0], item[1])
    )
    top = ranked[0][0] if ranked else 1
    return [Keyword(name=name, weight=round(count / top, 4)) for count, name in ranked[:most]]


def summary(text: str, most: int = 3) -> list[str]:
    """Return the sentences that say most of what a text is about, in their order in the text.

    Args:
        text: in any script.
        most: at most so many.

    Example:
        >>> summary("A clew is a ball of thread. Yes. The thread led him out of the maze.", most=1)
        ['A clew is a ball of thread.']
    """
    candidates = sentences(text)
    counts = Counter(word for word in words(text) if _is_telling(word))

    def score(sentence: str) -> float:
        in_sentence = words(sentence)
        if not in_sentence:
            return 0.0
        # The square root keeps long sentences from winning by length alone; a fragment says little
        weight: float = sum(counts[word] for word in set(in_sentence)) / len(in_sentence) ** 0.5
        return weight if len(in_sentence) >= _MIN_SENTENCE_WORDS else weight / 4

    ranked = sorted(range(len(candidates)), key=lambda index: (-score(candidates[index]), index))
    return [candidates[index] for index in sorted(ranked[:most])]


def _is_telling(word: str) -> bool:
    return len(word) > 1 and word.replace("’", "'") not in STOP_WORDS
