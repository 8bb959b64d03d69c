"""A small language for captions of scenes: generate captions, parse them, check if they are true.

::

    caption  = relation | place | listing | counting | naming
    relation = np "is" relator np
    place    = np "is" "in" "the" spot  |  "in" "the" spot "there" "is" np
    listing  = item { "," item } "and" item  |  group
    item     = np  |  group
    counting = "there" ("is" | "are") group { "and" group }
    naming   = "the" [color] shape "is" size  |  "the" [size] shape "is" color
    np       = ("a" | "the") [size] [color] shape
    group    = ("one" | "two" | "three" | "four") [size] [color] noun
    noun     = shape | shape "s"    ("one circle", "two circles"; no "one" in a listing)
    relator  = "left" "of" | "right" "of" | "above" | "below"
    spot     = ("top" | "bottom") ("left" | "right") | "middle"

A caption is true if all of its claims are true of the scene. The objects that a caption names are
different objects. "the" means that exactly one object of the scene matches. Counts are exact.
Relations and spots refer to the centers of objects.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from .draw import COLORS, SHAPES, SIDE, SIZES, Scene, Shape

NUMBERS = ("one", "two", "three", "four")
RELATIONS = ("left of", "right of", "above", "below")
SPOTS = ("top left", "top right", "bottom left", "bottom right", "middle")

_ANY = "shape"
_PLURAL = {kind: kind + ("es" if kind.endswith("s") else "s") for kind in (*SHAPES, _ANY)}
_SINGULAR = {plural: kind for kind, plural in _PLURAL.items()}
_APART = 2.0
"""Smallest distance in pixels at which one center is left of (above, ...) another."""
_MIDDLE = SIDE / 6
"""Largest distance in pixels from the center of the image that counts as "in the middle"."""


@dataclass(frozen=True)
class Thing:
    """A description of an object.

    Attributes
    ----------
    kind, color, size : str or None
        Its properties; None matches any.
    definite : bool
        Whether exactly one object must match ("the"). Default False.
    """

    kind: str | None = None
    color: str | None = None
    size: str | None = None
    definite: bool = False

    def fits(self, shape: Shape) -> bool:
        """Return whether a shape matches, leaving `definite` aside."""
        return (
            self.kind in (None, shape.kind)
            and self.color in (None, shape.color)
            and self.size in (None, shape.size)
        )

    def found_in(self, scene: Scene) -> list[Shape]:
        """Return the shapes that match; none if `definite` and the match is not unique."""
        found = [shape for shape in scene.shapes if self.fits(shape)]
        return [] if self.definite and len(found) != 1 else found


@dataclass(frozen=True)
class Relation:
    """The claim "`first` is `relation` `second`"."""

    first: Thing
    relation: str
    second: Thing

    def holds(self, scene: Scene) -> bool:
        """Return whether two different shapes of the scene are in this relation."""
        return any(
            a is not b and related(a, self.relation, b)
            for a in self.first.found_in(scene)
            for b in self.second.found_in(scene)
        )


@dataclass(frozen=True)
class Place:
    """The claim "`thing` is in the `spot`"."""

    thing: Thing
    spot: str

    def holds(self, scene: Scene) -> bool:
        """Return whether the center of a matching shape is in the spot."""
        return any(within(shape, self.spot) for shape in self.thing.found_in(scene))


@dataclass(frozen=True)
class Listing:
    """The claim "`things[0]` , `things[1]` and ...": the scene contains all of them."""

    things: tuple[Thing, ...]

    def holds(self, scene: Scene) -> bool:
        """Return whether the things can be matched with different shapes of the scene."""
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
    """The claim "there are `number` `thing`s": exactly as many."""

    thing: Thing
    number: int

    def holds(self, scene: Scene) -> bool:
        """Return whether exactly `number` shapes of the scene match."""
        return len(self.thing.found_in(scene)) == self.number


@dataclass(frozen=True)
class Naming:
    """The claim "the `thing` is `quality`", with a color or a size as the quality."""

    thing: Thing
    quality: Thing

    def holds(self, scene: Scene) -> bool:
        """Return whether the only matching shape has the quality."""
        return any(self.quality.fits(shape) for shape in self.thing.found_in(scene))


Claim = Relation | Place | Listing | Count | Naming


def related(a: Shape, relation: str, b: Shape) -> bool:
    """Return whether `a` is left of (right of, above, below) `b`, by at least 2 pixels."""
    gap = {"left of": b.x - a.x, "right of": a.x - b.x, "above": b.y - a.y, "below": a.y - b.y}
    return gap[relation] >= _APART


def within(shape: Shape, spot: str) -> bool:
    """Return whether the center of `shape` is in a quarter or in the middle of the image."""
    dx, dy = shape.x - SIDE / 2, shape.y - SIDE / 2
    if spot == "middle":
        return float(np.hypot(dx, dy)) <= _MIDDLE
    upper, left = spot.split()
    return (dy < 0) == (upper == "top") and (dx < 0) == (left == "left")


# -- Parsing


class _Parser:
    """A recursive descent parser with a cursor over the words of a caption."""

    def __init__(self, caption: str):
        self.words = caption.split()
        self.position = 0

    def error(self, wanted: str) -> ValueError:
        got = self.words[self.position] if self.position < len(self.words) else "the end"
        caption = " ".join(self.words)
        return ValueError(f"word {self.position + 1} of {caption!r} is {got!r}; expected {wanted}")

    def peek(self, *words: str) -> bool:
        return self.position < len(self.words) and self.words[self.position] in words

    def take(self, *words: str) -> str | None:
        if not self.peek(*words):
            return None
        self.position += 1
        return self.words[self.position - 1]

    def expect(self, *words: str) -> str:
        word = self.take(*words)
        if word is None:
            raise self.error(" or ".join(words))
        return word

    def end(self) -> None:
        if self.position < len(self.words):
            raise self.error("the end")

    def spot(self) -> str:
        first = self.expect("top", "bottom", "middle")
        return first if first == "middle" else f"{first} {self.expect('left', 'right')}"

    def noun_phrase(self) -> Thing:
        article = self.expect("a", "the")
        size, color = self.take(*SIZES), self.take(*COLORS)
        kind = self.expect(*SHAPES, _ANY)
        return Thing(None if kind == _ANY else kind, color, size, article == "the")

    def group(self) -> Count:
        number = 1 + NUMBERS.index(self.expect(*NUMBERS))
        size, color = self.take(*SIZES), self.take(*COLORS)
        kind = self.expect(*_PLURAL) if number == 1 else _SINGULAR[self.expect(*_SINGULAR)]
        return Count(Thing(None if kind == _ANY else kind, color, size), number)


def _listing(parser: _Parser, first: Thing | Count) -> tuple[Claim, ...]:
    """Parse the rest of a listing that begins with `first`."""
    items = [first]

    def item() -> Thing | Count:
        return parser.group() if parser.peek(*NUMBERS) else parser.noun_phrase()

    while parser.take(","):
        items.append(item())
    if len(items) > 1 or isinstance(first, Thing) or parser.peek("and"):
        parser.expect("and")
        items.append(item())
    if any(isinstance(item, Count) and item.number == 1 for item in items):
        raise ValueError('a listing has "one"; expected "a"')
    counts = [item for item in items if isinstance(item, Count)]
    # Counted objects take part in the matching too: the other things are different objects.
    things = [item for item in items if isinstance(item, Thing)]
    things += [count.thing for count in counts for _ in range(count.number)]
    return (Listing(tuple(things)), *counts)


def parse_caption(caption: str) -> tuple[Claim, ...]:
    """Parse a caption into its claims.

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
        If the caption is not grammatical; the message names the first wrong word.
    """
    parser = _Parser(caption)
    claims: tuple[Claim, ...]
    if parser.take("there"):
        verb = parser.expect("is", "are")
        if (verb == "is") != parser.peek("one"):
            raise parser.error("a number that agrees with the verb")
        counts = [parser.group()]
        while parser.take("and"):
            counts.append(parser.group())
        claims = tuple(counts)
    elif parser.take("in"):
        parser.expect("the")
        spot = parser.spot()
        parser.expect("there")
        parser.expect("is")
        if parser.peek("the"):
            raise parser.error("a")
        claims = (Place(parser.noun_phrase(), spot),)
    elif parser.peek(*NUMBERS):
        claims = _listing(parser, parser.group())
    else:
        first = parser.noun_phrase()
        if parser.take("is"):
            if parser.take("in"):
                parser.expect("the")
                claims = (Place(first, parser.spot()),)
            elif parser.peek(*SIZES, *COLORS):
                if not first.definite:
                    raise parser.error("a relation or a place")
                size = parser.take(*SIZES)
                color = None if size else parser.expect(*COLORS)
                if (size and first.size) or (color and first.color):
                    raise ValueError(f"{caption!r} has a property twice; expected it once")
                claims = (Naming(first, Thing(color=color, size=size)),)
            else:
                relation = parser.expect("left", "right", "above", "below")
                if relation in ("left", "right"):
                    relation += " " + parser.expect("of")
                claims = (Relation(first, relation, parser.noun_phrase()),)
        else:
            claims = _listing(parser, first)
    parser.end()
    return claims


def caption_is_true(caption: str, scene: Scene) -> bool:
    """Return whether a caption is grammatical and true of a scene."""
    try:
        claims = parse_caption(caption)
    except ValueError:
        return False
    return all(claim.holds(scene) for claim in claims)


# -- Generating


class _Generator:
    """Generates true captions of a scene, with a method for each kind of caption.

    A method returns None if the scene has no caption of its kind.
    """

    def __init__(self, scene: Scene, rng: np.random.Generator):
        self.scene = scene
        self.rng = rng

    def shuffled(self) -> list[Shape]:
        return [self.scene.shapes[i] for i in self.rng.permutation(len(self.scene.shapes))]

    def phrase(self, shape: Shape, definite: bool | None = None) -> str:
        """Return a noun phrase with color and kind, and half of the time with the size."""
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
        # As people do, use the axis along which the two are farther apart.
        if abs(b.x - a.x) >= abs(b.y - a.y):
            relation = "left of" if a.x < b.x else "right of"
        else:
            relation = "above" if a.y < b.y else "below"
        return f"{self.phrase(a)} is {relation} {self.phrase(b)}"

    def place(self) -> str | None:
        for shape in self.shuffled():
            off_center = [abs(shape.x - SIDE / 2), abs(shape.y - SIDE / 2)]
            if max(off_center) < _MIDDLE / 2:
                spot = "middle"
            elif min(off_center) < SIDE / 8:
                continue  # too close to the border between two quarters
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
        """Count the objects by kind or by color."""
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
    """Generate true captions of a scene, of as many different kinds as possible.

    Parameters
    ----------
    scene : Scene
        A scene with at least one shape.
    rng : numpy.random.Generator
        Source of randomness.
    number : int, optional
        Number of captions. Default 5.

    Returns
    -------
    list of str
        Lowercase words separated by spaces. `caption_is_true` returns True for each.
    """
    generator = _Generator(scene, rng)
    ways = [generator.relation, generator.place, generator.listing, generator.relation]
    captions: list[str] = []
    while len(captions) < number:
        for way in [*ways, generator.counting if rng.random() < 0.5 else generator.naming]:
            caption = way()
            if caption is not None and len(captions) < number:
                captions.append(caption)
    return captions


def words_of_the_language() -> list[str]:
    """Return every word that captions can contain, in alphabetical order."""
    words = {"a", "and", "the", "is", "are", "in", "there", "of", ",", *NUMBERS, *SHAPES}
    words |= {*COLORS, *SIZES, *_PLURAL, *_SINGULAR}
    words |= {word for phrase in (*RELATIONS, *SPOTS) for word in phrase.split()}
    return sorted(words)
