"""The language of the scenes: spoken, parsed, and held against what was drawn.

::

    caption  = relation | place | listing | counting | naming
    relation = np "is" relator np
    place    = np "is" "in" "the" spot  |  "in" "the" spot "there" "is" np
    listing  = item { "," item } "and" item  |  group
    item     = np  |  group
    counting = "there" ("is" | "are") group { "and" group }
    naming   = "the" [colour] shape "is" size  |  "the" [size] shape "is" colour
    np       = ("a" | "the") [size] [colour] shape
    group    = ("one" | "two" | "three" | "four") [size] [colour] noun
    noun     = shape | shape "s" (as the number asks; "one" is not said in a listing)
    relator  = "left" "of" | "right" "of" | "above" | "below"
    spot     = ("top" | "bottom") ("left" | "right") | "middle"

What a caption claims: things named in one caption are different things; "the" says that just one
thing in the scene fits; a count is exact; relations and spots are about centres. Number agrees
("one cross", "two crosses").
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from .scenes import COLORS, SHAPES, SIDE, SIZES, Scene, Shape

NUMBERS = ("one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
SPOTS = ("top left", "top right", "bottom left", "bottom right", "middle")

_ANY = "shape"
_PLURAL = {kind: kind + ("es" if kind.endswith("s") else "s") for kind in (*SHAPES, _ANY)}
_SINGULAR = {plural: kind for kind, plural in _PLURAL.items()}
_APART = 2.0
"""Pixels by which centres must differ before one thing is left of (above, ...) another."""
_MIDDLE = SIDE / 6
"""Pixels from the centre of the picture within which a thing is "in the middle"."""


@dataclass(frozen=True)
class Thing:
    """A description: None leaves a property open; `definite` where just one thing must fit."""

    kind: str | None = None
    color: str | None = None
    size: str | None = None
    definite: bool = False

    def fits(self, shape: Shape) -> bool:
        """Whether the description holds of `shape`."""
        return (
            self.kind in (None, shape.kind)
            and self.color in (None, shape.color)
            and self.size in (None, shape.size)
        )

    def found_in(self, scene: Scene) -> list[Shape]:
        """The shapes that fit; none if `definite` and there is not exactly one."""
        found = [shape for shape in scene.shapes if self.fits(shape)]
        return [] if self.definite and len(found) != 1 else found


@dataclass(frozen=True)
class Relation:
    """ "`first` is `relation` `second`"."""

    first: Thing
    relation: str
    second: Thing

    def holds(self, scene: Scene) -> bool:
        """Whether two different shapes stand so."""
        return any(
            a is not b and related(a, self.relation, b)
            for a in self.first.found_in(scene)
            for b in self.second.found_in(scene)
        )


@dataclass(frozen=True)
class Place:
    """ "`thing` is in the `spot`"."""

    thing: Thing
    spot: str

    def holds(self, scene: Scene) -> bool:
        """Whether a shape that fits has its centre there."""
        return any(within(shape, self.spot) for shape in self.thing.found_in(scene))


@dataclass(frozen=True)
class Listing:
    """ "`things[0]` , `things[1]` and ...": all are there, each a different one."""

    things: tuple[Thing, ...]

    def holds(self, scene: Scene) -> bool:
        """Whether the things can be matched one to one with shapes."""
        found = [thing.found_in(scene) for thing in self.things]
        return any(
            all(
                any(shape is other for other in fitting)
                for shape, fitting in zip(chosen, found, strict=True)
            )
            for chosen in permutations(scene.shapes, len(found))
        )


@dataclass(frozen=True)
class Count:
    """ "there are `number` `thing`s": exactly as many."""

    thing: Thing
    number: int

    def holds(self, scene: Scene) -> bool:
        """Whether just that many shapes fit."""
        return len(self.thing.found_in(scene)) == self.number


@dataclass(frozen=True)
class Naming:
    """ "the `thing` is `quality`"."""

    thing: Thing
    quality: Thing

    def holds(self, scene: Scene) -> bool:
        """Whether the one shape that fits has the quality."""
        return any(self.quality.fits(shape) for shape in self.thing.found_in(scene))


Claim = Relation | Place | Listing | Count | Naming


def related(a: Shape, relation: str, b: Shape) -> bool:
    """Whether `a` is left of (right of, above, below) `b`, by 2 pixels at least."""
    gap = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    return gap[relation] >= _APART


def within(shape: Shape, spot: str) -> bool:
    """Whether the centre of `shape` is in that quarter, or in the middle, of the picture."""
    dx, dy = shape.x - SIDE / 2, shape.y - SIDE / 2
    if spot == "middle":
        return float(np.hypot(dx, dy)) <= _MIDDLE
    upper, left = spot.split()
    return (dy < 0) == (upper == "top") and (dx < 0) == (left == "left")


# -- listening


class _Reader:
    """A cursor over the words of a caption."""

    def __init__(self, caption: str):
        self.words = caption.split()
        self.at = 0

    def fail(self, wanted: str) -> ValueError:
        got = self.words[self.at] if self.at < len(self.words) else "the end"
        caption = " ".join(self.words)
        return ValueError(f"word {self.at + 1} of {caption!r} is {got!r}, not {wanted}")

    def sees(self, *words: str) -> bool:
        return self.at < len(self.words) and self.words[self.at] in words

    def take(self, *words: str) -> str | None:
        if not self.sees(*words):
            return None
        self.at += 1
        return self.words[self.at - 1]

    def need(self, *words: str) -> str:
        word = self.take(*words)
        if word is None:
            raise self.fail(" or ".join(words))
        return word

    def done(self) -> None:
        if self.at < len(self.words):
            raise self.fail("the end")

    def spot(self) -> str:
        first = self.need("top", "bottom", "middle")
        return first if first == "middle" else f"{first} {self.need('left', 'right')}"

    def noun_phrase(self) -> Thing:
        article = self.need("a", "the")
        size, color = self.take(*SIZES), self.take(*COLORS)
        kind = self.need(*SHAPES, _ANY)
        return Thing(None if kind == _ANY else kind, color, size, article == "the")

    def group(self) -> Count:
        number = 1 + NUMBERS.index(self.need(*NUMBERS))
        size, color = self.take(*SIZES), self.take(*COLORS)
        kind = self.need(*_PLURAL) if number == 1 else _SINGULAR[self.need(*_SINGULAR)]
        return Count(Thing(None if kind == _ANY else kind, color, size), number)


def _listing(reader: _Reader, first: Thing | Count) -> tuple[Claim, ...]:
    """The rest of a listing that begins with `first`."""
    items = [first]

    def item() -> Thing | Count:
        return reader.group() if reader.sees(*NUMBERS) else reader.noun_phrase()

    while reader.take(","):
        items.append(item())
    if len(items) > 1 or isinstance(first, Thing) or reader.sees("and"):
        reader.need("and")
        items.append(item())
    if any(isinstance(item, Count) and item.number == 1 for item in items):
        raise ValueError('a listing says "a", not "one"')
    counts = [item for item in items if isinstance(item, Count)]
    # What is counted is also there to be matched: the rest are other things than those.
    things = [item for item in items if isinstance(item, Thing)]
    things += [count.thing for count in counts for _ in range(count.number)]
    return (Listing(tuple(things)), *counts)


def parse_caption(caption: str) -> tuple[Claim, ...]:
    """What a caption claims.

    Parameters
    ----------
    caption : str
        Words separated by spaces, without ``<START>`` and ``<END>``.

    Returns
    -------
    tuple of Relation, Place, Listing, Count or Naming

    Raises
    ------
    ValueError
        If the caption is not in the grammar of this module, naming the word at fault.
    """
    reader = _Reader(caption)
    claims: tuple[Claim, ...]
    if reader.take("there"):
        verb = reader.need("is", "are")
        if (verb == "is") != reader.sees("one"):
            raise reader.fail("a number that agrees with the verb")
        counts = [reader.group()]
        while reader.take("and"):
            counts.append(reader.group())
        claims = tuple(counts)
    elif reader.take("in"):
        reader.need("the")
        spot = reader.spot()
        reader.need("there")
        reader.need("is")
        if reader.sees("the"):
            raise reader.fail("a")
        claims = (Place(reader.noun_phrase(), spot),)
    elif reader.sees(*NUMBERS):
        claims = _listing(reader, reader.group())
    else:
        first = reader.noun_phrase()
        if reader.take("is"):
            if reader.take("in"):
                reader.need("the")
                claims = (Place(first, reader.spot()),)
            elif reader.sees(*SIZES, *COLORS):
                if not first.definite:
                    raise reader.fail("a relation or a place")
                size = reader.take(*SIZES)
                color = None if size else reader.need(*COLORS)
                if (size and first.size) or (color and first.color):
                    raise ValueError(f"{caption!r} names the same property twice")
                claims = (Naming(first, Thing(color=color, size=size)),)
            else:
                relation = reader.need("left", "right", "above", "below")
                if relation in ("left", "right"):
                    relation += " " + reader.need("of")
                claims = (Relation(first, relation, reader.noun_phrase()),)
        else:
            claims = _listing(reader, first)
    reader.done()
    return claims


def caption_is_true(caption: str, scene: Scene) -> bool:
    """Whether a caption is grammatical and all that it claims holds of the scene."""
    try:
        claims = parse_caption(caption)
    except ValueError:
        return False
    return all(claim.holds(scene) for claim in claims)


# -- speaking


class _Speaker:
    """Says one true thing about a scene in one of several ways."""

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene = scene
        self.rng = rng

    def shuffled(self) -> list[Shape]:
        return [self.scene.shapes[i] for i in self.rng.permutation(len(self.scene.shapes))]

    def phrase(self, shape: Shape, definite: bool | None = None) -> str:
        """Name a shape by colour and kind, and by its size half of the time."""
        size: str | None = shape.size
        if self.rng.random() < 0.5:
            size = None
        thing = Thing(shape.kind, shape.color, size, definite=True)
        if definite is None:
            definite = bool(thing.found_in(self.scene)) and self.rng.random() < 0.35
        words = [word for word in (size, shape.color, shape.kind) if word]
        article = "the" if definite else "a"
        return " ".join([article, *words])

    def relation(self) -> str | None:
        if len(self.scene.shapes) < 2:
            return None
        a, *others = self.shuffled()
        others = [b for b in others if b.color != a.color]
        if not others:
            return None
        b = others[0]
        # People name the axis along which the two lie farther apart.
        if abs(b.x - a.x) >= abs(b.y - a.y):
            relation = "left of" if a.x < b.x else "right of"
        else:
            relation = "above" if a.y < b.y else "below"
        return f"{self.phrase(a)} is {relation} {self.phrase(b)}"

    def place(self) -> str | None:
        for shape in self.shuffled():
            off_centre = [abs(shape.x - SIDE / 2), abs(shape.y - SIDE / 2)]
            if max(off_centre) < _MIDDLE / 2:
                spot = "middle"
            elif min(off_centre) < SIDE / 8:
                continue  # near the line between two quarters: nobody would name either
            else:
                spot = ("top " if shape.y < SIDE / 2 else "bottom ") + (
                    "left" if shape.x < SIDE / 2 else "right"
                )
            if self.rng.random() < 0.5:
                return f"{self.phrase(shape)} is in the {spot}"
            return f"in the {spot} there is {self.phrase(shape, definite=False)}"
        return None

    def listing(self) -> str | None:
        groups: dict[tuple[str, str, str], list[Shape]] = {}
        for shape in self.shuffled():
            groups.setdefault((shape.size, shape.color, shape.kind), []).append(shape)
        phrases = []
        for (size, color, kind), alike in groups.items():
            if len(alike) == 1:
                phrases.append(self.phrase(alike[0], definite=False))
            else:
                sized = [size] if self.rng.random() < 0.5 else []
                phrases.append(" ".join([NUMBERS[len(alike) - 1], *sized, color, _PLURAL[kind]]))
        if len(phrases) == 1:
            return phrases[0] if len(self.scene.shapes) > 1 else None
        return " , ".join(phrases[:-1]) + " and " + phrases[-1]

    def counting(self) -> str:
        """Count the things by kind or by colour."""
        sort: Callable[[Shape], str]
        by_kind = self.rng.random() < 0.5
        sort = (lambda shape: shape.kind) if by_kind else (lambda shape: shape.color)
        groups: dict[str, int] = {}
        for shape in self.shuffled():
            groups[sort(shape)] = groups.get(sort(shape), 0) + 1
        if len(groups) > 2:
            return f"there are {NUMBERS[len(self.scene.shapes) - 1]} shapes"
        phrases = []
        for name, number in sorted(groups.items(), key=lambda group: -group[1]):
            kind = name if by_kind else _ANY
            words = [NUMBERS[number - 1], *([] if by_kind else [name])]
            phrases.append(" ".join([*words, kind if number == 1 else _PLURAL[kind]]))
        return f"there {'is' if max(groups.values()) == 1 else 'are'} " + " and ".join(phrases)

    def naming(self) -> str | None:
        for shape in self.shuffled():
            if self.rng.random() < 0.5:
                if Thing(shape.kind, shape.color, definite=True).found_in(self.scene):
                    return f"the {shape.color} {shape.kind} is {shape.size}"
            elif Thing(shape.kind, definite=True).found_in(self.scene):
                return f"the {shape.kind} is {shape.color}"
        return None


def describe(scene: Scene, rng: np.random.Generator, number: int = 5) -> list[str]:
    """True captions of a scene, of as many different kinds as it has to offer.

    Parameters
    ----------
    scene : Scene
        With at least one shape.
    rng : numpy.random.Generator
    number : int
        How many captions.

    Returns
    -------
    list of str
        Lower-case words separated by spaces; :func:`caption_is_true` of each.
    """
    speaker = _Speaker(scene, rng)
    ways = [speaker.relation, speaker.place, speaker.listing, speaker.relation]
    captions: list[str] = []
    while len(captions) < number:
        for way in [*ways, speaker.counting if rng.random() < 0.5 else speaker.naming]:
            caption = way()
            if caption is not None and len(captions) < number:
                captions.append(caption)
    return captions


def words_of_the_language() -> list[str]:
    """Every word that a caption can hold, in alphabetical order."""
    words = {"a", "and", "the", "is", "are", "in", "there", "of", ",", *NUMBERS, *SHAPES}
    words |= {*COLORS, *SIZES, *_PLURAL, *_SINGULAR}
    words |= {word for phrase in (*RELATIONS, *SPOTS) for word in phrase.split()}
    return sorted(words)
