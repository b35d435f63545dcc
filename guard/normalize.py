"""Views of a text: the ways in which one string can be read by a person but not by a model.

People hide words with zero-width characters, look-alike letters, "l33t", or an encoding. Each view undoes one family
of such tricks; the classifier judges every view that differs from the text itself, and the worst verdict wins. A view
is only ever judged in addition to the text, so what a view destroys (it may misread honest text) cannot hide
anything.
"""

from __future__ import annotations

import base64
import binascii
import html
import re
import string
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum
from urllib.parse import unquote


class ViewKind(Enum):
    """Which reading of a text a view is."""

    RAW = "raw"
    #: NFKC, no invisible or stacked combining characters, look-alike letters as the letters they look like.
    NORMALIZED = "normalized"
    #: The normalized text with digits and signs inside words as letters, and spelled-out words joined.
    DELEETED = "deleeted"
    #: What base64, hex, percent or HTML encoded parts say.
    DECODED = "decoded"


@dataclass(frozen=True)
class View:
    """One reading of a text."""

    kind: ViewKind
    text: str


def views(text: str) -> tuple[View, ...]:
    """``text`` itself, then every other view of it that is different and not blank. Linear in its length."""
    normalized = normalize(text)
    found = [View(ViewKind.RAW, text)]
    for kind, other in (
        (ViewKind.NORMALIZED, normalized),
        (ViewKind.DELEETED, deleet(normalized)),
        (ViewKind.DECODED, decode(normalized)),
    ):
        if other.strip() and all(other != view.text for view in found):
            found.append(View(kind, other))
    return tuple(found)


# ---------------------------------------------------------------------------------------------------- normalized

#: Invisible characters outside the general category Cf: fillers, joiners, variation selectors (Unicode's
#: Default_Ignorable_Code_Point, DerivedCoreProperties.txt); and strokes through and rings around the letter before
#: them, which no orthography writes as marks (those of signs like "≠" NFKC has composed).
_IGNORABLE = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u180b-\u180f\u3164\ufe00-\ufe0f\uffa0\U000e0000-\U000e0fff"
    "\u0334-\u0338\u20d2\u20d3\u20d8-\u20e5\u20ea\u20eb]"
)
_MARK = "[\u0300-\u036f\u1ab0-\u1aff\u1dc0-\u1dff\u20d0-\u20ff]"
_MARKS = re.compile(_MARK)
#: More marks on one letter than any orthography uses ("Zalgo").
_STACKED_MARKS = re.compile(_MARK + "{3}")

#: Letters of other alphabets to the Latin letters they are drawn like. NFKC has done fullwidth, mathematical and
#: circled ones.
_DRAWN_LIKE = {
    "a": "аαɑᴀ", "b": "ʙƅ", "c": "сϲᴄ", "d": "ԁᴅժ", "e": "еҽᴇ", "f": "ꜰ", "g": "ɡցɢ", "h": "һհʜ", "i": "іιɩɪ", "j":
    "јϳᴊ", "k": "кκᴋ", "l": "ӏʟ", "m": "мᴍ", "n": "ոηɴ", "o": "оοօᴏ", "p": "рρᴘ", "q": "ԛ", "r": "гʀ", "s": "ѕꜱ", "t":
    "тτᴛ", "u": "υսᴜʋ", "v": "ѵνᴠ", "w": "ԝωѡᴡ", "x": "хχ", "y": "уγʏ", "z": "ᴢ", "A": "АΑᎪ", "B": "ВΒᏴ", "C": "СϹᏟ",
    "D": "Ꭰ", "E": "ЕΕᎬ", "G": "ԌᏀ", "H": "НΗᎻ", "I": "ІΙӀ", "J": "ЈᎫ", "K": "КΚᏦ", "L": "Ꮮ", "M": "МΜᎷ", "N": "Ν",
    "O": "ОΟ", "P": "РΡᏢ", "S": "ЅᏚ", "T": "ТΤᎢ", "V": "Ꮩ", "W": "ԜᏔ", "X": "ХΧ", "Y": "ҮΥ", "Z": "ΖᏃ",
}  # fmt: skip
_LOOK_ALIKES = {ord(alike): latin for latin, alikes in _DRAWN_LIKE.items() for alike in alikes} | {
    start + index: letter
    for start in (0x1F150, 0x1F170)  # white on black, in circles and squares: NFKC leaves these
    for index, letter in enumerate(string.ascii_uppercase)
}
_WORD = re.compile(r"\w+")
_LATIN = re.compile(r"[A-Za-z]")


def normalize(text: str) -> str:
    """The text as it looks: compatibility forms, invisible and stacked characters, look-alike letters resolved."""
    text = unicodedata.normalize("NFKC", text)
    text = _IGNORABLE.sub("", "".join(character for character in text if unicodedata.category(character) != "Cf"))
    decomposed = unicodedata.normalize("NFD", text)
    if _STACKED_MARKS.search(decomposed):
        text = _MARKS.sub("", decomposed)
    return _resolve_look_alikes(text)


def _resolve_look_alikes(text: str) -> str:
    """Look-alikes inside words that also have Latin letters; in mostly Latin texts, also words made of look-alikes
    alone.

    A Russian or Greek text is left as it is: there the same letters are themselves.
    """
    letters = sum(character.isalpha() for character in text)
    mostly_latin = len(_LATIN.findall(text)) * 2 > letters

    def resolve(match: re.Match[str]) -> str:
        word = match[0]
        latin = word.translate(_LOOK_ALIKES)
        if latin == word or not (mostly_latin or _LATIN.search(word)):
            return word
        return latin if latin.isascii() or _LATIN.search(word) else word

    return _WORD.sub(resolve, text)


# ---------------------------------------------------------------------------------------------------- deleeted

_LEET = str.maketrans({
    "0": "o", "1": "i", "3": "e", "4": "a", "5": "s", "7": "t", "8": "b", "@": "a", "$": "s", "!": "i", "|": "l", "€":
    "e",
})  # fmt: skip
#: A sign with a letter after it: "MD5" and "flight LH123" are no disguises, and neither is "10th".
_LEET_WORD = re.compile(
    r"(?<!\w)(?!\d+(?:st|nd|rd|th)\b)(?=\w*[0134578@$!|€]+[A-Za-z])[A-Za-z0134578@$!|€]{3,20}(?!\w)"
)
#: Single letters with one and the same separator between them: "k-i-l-l", "k i l l".
_SPELLED = re.compile(r"(?<!\w)[A-Za-z]([ ._*\-])(?:[A-Za-z]\1){2,}[A-Za-z](?!\w)")


def deleet(text: str) -> str:
    """Digits and signs inside words as the letters they stand for, spelled-out words joined."""
    joined = _SPELLED.sub(lambda match: match[0].replace(match[1], ""), text)
    return _LEET_WORD.sub(_letters_for_signs, joined)


def _letters_for_signs(match: re.Match[str]) -> str:
    word = match[0]
    # At least half letters: a word in disguise, not a number or a hash with some.
    return word.translate(_LEET) if len(_LATIN.findall(word)) * 2 >= len(word) else word


# ---------------------------------------------------------------------------------------------------- decoded

_BASE64 = re.compile(r"(?<![A-Za-z0-9+/_-])[A-Za-z0-9+/_-]{16,}={0,2}")
_HEX = re.compile(r"(?<![0-9A-Za-z])(?:0x)?((?:[0-9a-fA-F]{2}[ :]?){8,})(?![0-9A-Za-z])")
_PERCENT = re.compile(r"(?:%[0-9a-fA-F]{2}){2,}|(?:%[0-9a-fA-F]{2}[\w.~+-]*){3,}")


def decode(text: str) -> str:
    """``text`` with encoded parts replaced by what they say, if that is text; otherwise unchanged."""
    text = html.unescape(text) if "&" in text else text
    for pattern, read in ((_PERCENT, _from_percent), (_HEX, _from_hex), (_BASE64, _from_base64)):
        text = pattern.sub(_replacement(read), text)
    return text


def _replacement(read: Callable[[re.Match[str]], bytes]) -> Callable[[re.Match[str]], str]:
    def replace(match: re.Match[str]) -> str:
        try:
            decoded = read(match).decode()
        except (ValueError, binascii.Error):
            return match[0]
        return decoded if _is_readable(decoded) else match[0]

    return replace


def _from_percent(match: re.Match[str]) -> bytes:
    return unquote(match[0], errors="strict").encode()


def _from_hex(match: re.Match[str]) -> bytes:
    return bytes.fromhex(match[1].replace(":", " "))


def _from_base64(match: re.Match[str]) -> bytes:
    standard = match[0].rstrip("=").translate(str.maketrans("-_", "+/"))
    return base64.b64decode(standard + "=" * (-len(standard) % 4), validate=True)


def _is_readable(text: str) -> bool:
    """Text that a person wrote: printable, and mostly letters and spaces."""
    if not all(character.isprintable() or character.isspace() for character in text):
        return False
    return sum(character.isalpha() or character.isspace() for character in text) * 10 >= len(text) * 7
