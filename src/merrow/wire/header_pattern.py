"""Which headers are forwarded: the regular expressions of `--http-header-forward-pattern` and its gRPC counterpart.

The syntax is RE2's, as Triton has it, and so is the promise: a search takes time in proportion to the name, whatever
the pattern, because names come from clients. Python's own `re` promises no such thing. The case of letters does not
matter, and a pattern may match anywhere in a name.

    parse     text -> fragments of an automaton: `_Parser`, one method for each level of the grammar
    search    sets of its states are found as they are needed, and remembered: `HeaderPattern._step`

A character is its ASCII code, or 128 for any other; what matches one is a set of these, as the bits of an integer.

Source: RE2, doc/syntax.txt. Unicode classes (\\p) are not known here: names are ASCII.
"""

import re
import string
from collections.abc import Callable

MAX_NAME_LENGTH = 4096
"""No name longer than that is forwarded."""

_OTHER = 128
_ALL = (1 << 129) - 1
_NEWLINE = 1 << ord("\n")
_MAX_REPEAT = 1000
_MAX_INSTRUCTIONS = 10_000
_MAX_DEPTH = 100
_MAX_KEPT_STEPS = 64 * 1024

_END = -1
_ACCEPTED = -1


class HeaderPatternError(ValueError):
    """A pattern cannot be used; the text says why."""


def _mask(characters: str) -> int:
    mask = 0
    for character in characters:
        mask |= 1 << min(ord(character), _OTHER)
    return mask


_DIGITS = _mask(string.digits)
_WORD = _mask(string.ascii_letters + string.digits + "_")
_SPACES = _mask("\t\n\f\r ")
_PERL_CLASSES = {"d": _DIGITS, "D": _ALL ^ _DIGITS, "s": _SPACES, "S": _ALL ^ _SPACES, "w": _WORD, "W": _ALL ^ _WORD}
_CLASSES = {
    "alnum": _mask(string.ascii_letters + string.digits),
    "alpha": _mask(string.ascii_letters),
    "ascii": (1 << 128) - 1,
    "blank": _mask("\t "),
    "cntrl": (1 << 32) - 1 | 1 << 127,
    "digit": _DIGITS,
    "graph": _mask(string.ascii_letters + string.digits + string.punctuation),
    "lower": _mask(string.ascii_lowercase),
    "print": _mask(string.ascii_letters + string.digits + string.punctuation + " "),
    "punct": _mask(string.punctuation),
    "space": _mask("\t\n\v\f\r "),
    "upper": _mask(string.ascii_uppercase),
    "word": _WORD,
    "xdigit": _mask(string.hexdigits),
}
_CONTROL_ESCAPES = {"a": "\a", "f": "\f", "n": "\n", "r": "\r", "t": "\t", "v": "\v"}
_OCTAL_DIGITS = tuple("01234567")
_UPPER_SHIFT = ord("a") - ord("A")
_UPPER = _CLASSES["upper"]
_LOWER = _CLASSES["lower"]


def _fold(mask: int) -> int:
    """With the other case of each letter."""
    return mask | (mask & _UPPER) << _UPPER_SHIFT | (mask & _LOWER) >> _UPPER_SHIFT


# What an assertion says of the characters before and after; _END where there is none.
_Assertion = Callable[[int, int], bool]


def _is_word(character: int) -> bool:
    return character != _END and bool(_WORD >> character & 1)


_ASSERTIONS: dict[str, _Assertion] = {
    "text start": lambda before, after: before == _END,
    "text end": lambda before, after: after == _END,
    "line start": lambda before, after: before in (_END, ord("\n")),
    "line end": lambda before, after: after in (_END, ord("\n")),
    "boundary": lambda before, after: _is_word(before) != _is_word(after),
    "no boundary": lambda before, after: _is_word(before) == _is_word(after),
}


class _Instruction:
    """One state of the automaton: it takes a character, or holds for a place, or leads on to several others."""

    __slots__ = ("assertion", "mask", "targets")

    def __init__(self, mask: int = 0, assertion: _Assertion | None = None) -> None:
        self.mask = mask
        self.assertion = assertion
        self.targets: list[int] = []


# A part of the automaton: where it begins, and the instruction at which it ends, which leads nowhere yet.
_Fragment = tuple[int, int]


class HeaderPattern:
    """A pattern, ready to be searched for.

    Raises:
        HeaderPatternError: it is no pattern, or one that is not supported.
    """

    def __init__(self, pattern: str) -> None:
        self._instructions, self._start, self._match = _Parser(pattern).parse()
        # States are sets of instructions that are reached, with the character before; they are numbered.
        self._numbers: dict[tuple[frozenset[int], int], int] = {}
        self._states: list[tuple[frozenset[int], int]] = []
        self._steps: dict[tuple[int, int], int] = {}

    def is_found_in(self, name: str) -> bool:
        """Whether any part of the name matches."""
        if len(name) > MAX_NAME_LENGTH:
            return False
        if len(self._steps) > _MAX_KEPT_STEPS:
            self._numbers.clear()
            self._states.clear()
            self._steps.clear()
        state = self._number(frozenset((self._start,)), _END)
        steps = self._steps
        for letter in name:
            character = min(ord(letter), _OTHER)
            target = steps.get((state, character))
            if target is None:
                target = steps[state, character] = self._step(state, character)
            if target == _ACCEPTED:
                return True
            state = target
        return self._step(state, _END) == _ACCEPTED

    def _number(self, reached: frozenset[int], before: int) -> int:
        state = (reached, before)
        number = self._numbers.get(state)
        if number is None:
            number = self._numbers[state] = len(self._states)
            self._states.append(state)
        return number

    def _step(self, number: int, character: int) -> int:
        """The state after a character, _END for the end of the name; _ACCEPTED once the pattern has matched."""
        reached, before = self._states[number]
        pending, seen = list(reached), set(reached)
        # A match may begin at every character.
        following = {self._start}
        while pending:
            index = pending.pop()
            if index == self._match:
                return _ACCEPTED
            instruction = self._instructions[index]
            if instruction.mask:
                if character != _END and instruction.mask >> character & 1:
                    following.update(instruction.targets)
            elif instruction.assertion is None or instruction.assertion(before, character):
                for target in instruction.targets:
                    if target not in seen:
                        seen.add(target)
                        pending.append(target)
        return self._number(frozenset(following), character)


class _Flags:
    """What `(?i)` and its like have set."""

    __slots__ = ("is_dot_all", "is_multiline", "is_raw_case")

    def __init__(self, is_raw_case: bool = False, is_multiline: bool = False, is_dot_all: bool = False) -> None:
        self.is_raw_case = is_raw_case
        self.is_multiline = is_multiline
        self.is_dot_all = is_dot_all

    def copy(self) -> "_Flags":
        return _Flags(self.is_raw_case, self.is_multiline, self.is_dot_all)


class _Parser:
    """Reads a pattern once, from left to right."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._position = 0
        self._depth = 0
        self._flags = _Flags()
        self._instructions: list[_Instruction] = []

    def parse(self) -> tuple[list[_Instruction], int, int]:
        """The automaton, where it starts, and the instruction that says that it has matched."""
        start, end = self._alternatives()
        if self._position < len(self._text):
            raise HeaderPatternError(f"unexpected ): {self._text}")
        return self._instructions, start, end

    def _alternatives(self) -> _Fragment:
        self._depth += 1
        if self._depth > _MAX_DEPTH:
            raise HeaderPatternError("pattern is nested too deeply")
        fragments = [self._sequence()]
        while self._takes("|"):
            fragments.append(self._sequence())
        self._depth -= 1
        if len(fragments) == 1:
            return fragments[0]
        fork, join = self._add(), self._add()
        for start, end in fragments:
            self._link(fork, start)
            self._link(end, join)
        return fork, join

    def _sequence(self) -> _Fragment:
        start = end = self._add()
        while self._position < len(self._text) and self._text[self._position] not in "|)":
            fragment = self._repeated()
            self._link(end, fragment[0])
            end = fragment[1]
        return start, end

    def _repeated(self) -> _Fragment:
        """An atom and its repetition. What is repeated a number of times is read as often."""
        begin, flags = self._position, self._flags.copy()
        fragment = self._atom()
        operator = self._position
        bounds = self._bounds()
        if bounds is None:
            return fragment
        after = self._position
        if self._bounds() is not None:
            raise HeaderPatternError(f"bad repetition operator: {self._text[operator : self._position]}")
        minimum, maximum = bounds
        start = end = self._add()
        if maximum == 0:
            return start, end
        for number in range(max(minimum, 1) if maximum is None else maximum):
            if number:
                self._position = begin
                self._flags = flags.copy()
                fragment = self._atom()
            self._link(end, fragment[0])
            if number >= minimum:
                # This one and those after it may be left out.
                skip = self._add()
                self._link(end, skip)
                end = skip
            else:
                end = self._add()
            self._link(fragment[1], end)
        if maximum is None:
            self._link(end, fragment[0])
        self._position = after
        return start, end

    def _bounds(self) -> tuple[int, int | None] | None:
        """The repetition at this place; None if there is none. Whether it is greedy makes no difference."""
        if self._takes("*"):
            bounds: tuple[int, int | None] = (0, None)
        elif self._takes("+"):
            bounds = (1, None)
        elif self._takes("?"):
            bounds = (0, 1)
        else:
            counts = self._counts()
            if counts is None:
                return None
            bounds = counts
        self._takes("?")
        return bounds

    def _counts(self) -> tuple[int, int | None] | None:
        """`{n}`, `{n,}` or `{n,m}`; None, and an ordinary brace, if it is none of these."""
        end = self._text.find("}", self._position)
        if end < 0 or not self._text.startswith("{", self._position):
            return None
        first, comma, last = self._text[self._position + 1 : end].partition(",")
        if not _is_number(first) or (last and not _is_number(last)):
            return None
        minimum = int(first)
        maximum = minimum if not comma else int(last) if last else None
        if minimum > _MAX_REPEAT or (maximum is not None and not minimum <= maximum <= _MAX_REPEAT):
            raise HeaderPatternError(f"bad repetition operator: {self._text[self._position : end + 1]}")
        self._position = end + 1
        return minimum, maximum

    def _atom(self) -> _Fragment:
        character = self._take()
        if character == "(":
            return self._group()
        if character == "[":
            return self._character(self._class())
        if character == ".":
            return self._character(_ALL if self._flags.is_dot_all else _ALL ^ _NEWLINE)
        if character == "^":
            return self._assertion("line start" if self._flags.is_multiline else "text start")
        if character == "$":
            return self._assertion("line end" if self._flags.is_multiline else "text end")
        if character in "*+?{":
            self._position -= 1
            if self._bounds() is not None:
                raise HeaderPatternError(f"no argument for repetition operator: {character}")
            self._position += 1
        if character != "\\":
            return self._character(self._folded(_mask(character)))
        escape = self._take()
        named = {"A": "text start", "z": "text end", "b": "boundary", "B": "no boundary"}.get(escape)
        if named is not None:
            return self._assertion(named)
        if escape == "C":
            return self._character(_ALL)
        if escape == "Q":
            return self._literal()
        return self._character(self._escaped(escape))

    def _group(self) -> _Fragment:
        """What is in parentheses; the first has been taken. Flags hold until the end of the group around them."""
        outer = self._flags.copy()
        if self._takes("?"):
            if self._takes("P<") or (not self._text.startswith(("<=", "<!"), self._position) and self._takes("<")):
                name, separator, _ = self._text[self._position :].partition(">")
                if not separator or not name or name[0].isdigit() or not all(_is_word(min(ord(c), 128)) for c in name):
                    raise HeaderPatternError(f"invalid named capture group: {name}")
                self._position += len(name) + 1
            elif self._read_flags():
                # They are for what comes after, not for a group, and nothing that can be repeated.
                operator = self._position
                if self._bounds() is not None:
                    raise HeaderPatternError(f"no argument for repetition operator: {self._text[operator]}")
                empty = self._add()
                return empty, empty
        fragment = self._alternatives()
        if not self._takes(")"):
            raise HeaderPatternError(f"missing ): {self._text}")
        self._flags = outer
        return fragment

    def _read_flags(self) -> bool:
        """`i`, `m`, `s` and `U`, set or, after a minus, cleared; whether that is all there is in the parentheses."""
        is_set, start = True, self._position
        self._flags = self._flags.copy()
        while True:
            letter = self._take()
            if letter == "i":
                self._flags.is_raw_case = not is_set
            elif letter == "m":
                self._flags.is_multiline = is_set
            elif letter == "s":
                self._flags.is_dot_all = is_set
            elif letter == "-" and is_set:
                is_set = False
            elif letter in ":)":
                return letter == ")"
            elif letter != "U":
                raise HeaderPatternError(
                    f"invalid perl operator: (?{self._text[start : self._position]} (RE2 has no look-around)"
                )

    def _class(self) -> int:
        """What is in brackets; the first has been taken."""
        is_negated = self._takes("^")
        mask, is_first = 0, True
        while is_first or not self._takes("]"):
            is_first = False
            if self._takes("[:"):
                name, separator, _ = self._text[self._position :].partition(":]")
                mask |= self._named_class(name if separator else "")
                self._position += len(name) + 2
                continue
            low = self._class_character()
            if isinstance(low, int):
                mask |= low
                continue
            high = low
            if self._text.startswith("-", self._position) and not self._text.startswith("-]", self._position):
                self._position += 1
                bound = self._class_character()
                if isinstance(bound, int) or ord(bound) < ord(low):
                    raise HeaderPatternError(f"invalid character class range: {low}-")
                high = bound
            for code in range(min(ord(low), _OTHER), min(ord(high), _OTHER) + 1):
                mask |= 1 << code
        mask = self._folded(mask)
        return _ALL ^ mask if is_negated else mask

    def _named_class(self, name: str) -> int:
        known = _CLASSES.get(name.removeprefix("^"))
        if known is None:
            raise HeaderPatternError(f"invalid character class range: [:{name}:]")
        return _ALL ^ known if name.startswith("^") else known

    def _class_character(self) -> str | int:
        """A character in brackets, or a class (as its mask)."""
        character = self._take("missing ]")
        if character != "\\":
            return character
        escape = self._take("missing ]")
        if escape in _PERL_CLASSES:
            return _PERL_CLASSES[escape]
        return self._escaped_character(escape)

    def _escaped(self, escape: str) -> int:
        if escape in _PERL_CLASSES:
            return _PERL_CLASSES[escape]
        return self._folded(_mask(self._escaped_character(escape)))

    def _escaped_character(self, escape: str) -> str:
        """The character that an escape stands for; its backslash and first letter have been taken."""
        if escape in _CONTROL_ESCAPES:
            return _CONTROL_ESCAPES[escape]
        digits = ""
        if escape == "x":
            if self._takes("{"):
                digits, _, _ = self._text[self._position :].partition("}")
                self._position += len(digits) + 1
            else:
                digits = self._text[self._position : self._position + 2]
                self._position += 2
                digits = digits if len(digits) == 2 else ""
            if digits and len(digits) <= 6 and all(digit in string.hexdigits for digit in digits):
                code = int(digits, 16)
                if code <= 0x10FFFF:
                    return chr(code)
        elif escape in _OCTAL_DIGITS:
            # One digit alone would refer to a group, which RE2 does not do.
            digits = escape
            while len(digits) < 3 and self._text[self._position : self._position + 1] in _OCTAL_DIGITS:
                digits += self._take()
            if len(digits) > 1 or escape == "0":
                return chr(int(digits, 8))
        elif not escape.isalnum() and escape.isascii():
            return escape
        raise HeaderPatternError(f"invalid escape sequence: \\{escape}")

    def _literal(self) -> _Fragment:
        """The first character of what comes before `\\E`, or the end, as it stands; the others get escapes."""
        begin = self._position - 2
        text, _, rest = self._text[self._position :].partition("\\E")
        self._text = self._text[:begin] + re.escape(text) + rest
        self._position = begin
        if text:
            return self._atom()
        empty = self._add()
        return empty, empty

    def _folded(self, mask: int) -> int:
        return mask if self._flags.is_raw_case else _fold(mask)

    def _takes(self, text: str) -> bool:
        if self._text.startswith(text, self._position):
            self._position += len(text)
            return True
        return False

    def _take(self, fault: str = "missing argument at the end of the pattern") -> str:
        if self._position == len(self._text):
            raise HeaderPatternError(f"{fault}: {self._text}")
        self._position += 1
        return self._text[self._position - 1]

    def _add(self, mask: int = 0, assertion: _Assertion | None = None) -> int:
        if len(self._instructions) == _MAX_INSTRUCTIONS:
            raise HeaderPatternError("pattern too large - compile failed")
        self._instructions.append(_Instruction(mask, assertion))
        return len(self._instructions) - 1

    def _link(self, source: int, target: int) -> None:
        self._instructions[source].targets.append(target)

    def _character(self, mask: int) -> _Fragment:
        """Takes one character; the mask of a class that is empty has no bit, and such a fragment leads nowhere."""
        start, end = self._add(mask), self._add()
        if mask:
            self._link(start, end)
        return start, end

    def _assertion(self, name: str) -> _Fragment:
        start, end = self._add(assertion=_ASSERTIONS[name]), self._add()
        self._link(start, end)
        return start, end


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 9
