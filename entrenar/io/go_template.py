"""Chat templates in Go's text/template language, as Ollama runs them, from the Jinja template that a model comes with.

The Jinja template is rendered on conversations whose texts are marks, what stands between the marks becomes the Go
template, and that is compared with the Jinja template on further conversations: where they differ there is none.
Source: Ollama, docs/template.md and template/template.go (`Execute`, `collate`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from entrenar.errors import EntrenarError

Messages = Sequence[Mapping[str, str]]
Render = Callable[[Messages, bool], str]  # of messages, with or without the beginning of an answer

SYSTEM, USER, ASSISTANT = "system", "user", "assistant"
MARKS = {
    "s": "qzSystemzq",
    "u": "qzAskzq",
    "a": "qzAnswerzq",
    "v": "qzAskAgainzq",
    "b": "qzAnswerAgainzq",
    "w": "qzLastzq",
}
ROLES = {"s": SYSTEM, "u": USER, "a": ASSISTANT, "v": USER, "b": ASSISTANT, "w": USER}
# Conversations that end with a request, a letter a message, by MARKS and ROLES.
PROBES = ("u", "uav", "uavbw", "su", "suav", "suavbw")
TEXTS = {  # in place of the marks: a template may look into a text
    "s": 'Be brief.\nUse {{ words }} and "quotes".',
    "u": "What is 2 + 2?\n\nAnd 3?",
    "a": "4\n5",
    "v": "Wirklich? Ja \u00e9\u4e2d",
    "b": "It's 4; [INST]",
    "w": "x",
}
LAST = "eq (len (slice $.Messages $i)) 1"  # no message follows
FIRST = "or (eq $i 0) (and (eq $i 1) $.System)"  # none stands before, or the system message alone


@dataclass(frozen=True)
class GoTemplate:
    """What stands around the messages of a conversation, the token that begins a text left out.

    A user message follows `first` where it is the first message, `after_system` where the system message alone stands
    before it, else `later`; `before_answer` follows it, or `prompt` where it is the last. `after_answer` follows an
    assistant's message that is not the last. `before_system` is None where the template takes no system message;
    with `system_last` that stands in the last user message instead of the beginning.
    """

    first: str
    later: str
    before_answer: str
    after_answer: str
    prompt: str
    before_system: str | None = None
    after_system: str = ""
    system_last: bool = False

    def render(self, messages: Messages) -> str:
        """The prompt for messages whose roles take turns, the system message first, the user's last."""
        has_system = messages[0]["role"] == SYSTEM
        text, turns = "", messages[has_system:]
        if has_system and not self.system_last:
            text = f"{self.before_system}{messages[0]['content']}{self.after_system}"
        for index, message in enumerate(turns):
            last = index == len(turns) - 1
            if message["role"] == ASSISTANT:
                text += message["content"] + ("" if last else self.after_answer)
                continue
            if index:
                text += self.later
            elif self.system_last or not has_system:
                text += self.first
            if self.system_last and last and has_system:
                text += f"{self.before_system}{messages[0]['content']}{self.after_system}"
            text += message["content"] + (self.prompt if last else self.before_answer)
        return text

    def text(self) -> str:
        """The template as Ollama reads it. No action trims, so that every space stands for itself."""
        ask = (
            f"{self._before_user()}{{{{ .Content }}}}{_either(LAST, self.prompt, self.before_answer)}"
            f'{{{{ else if eq .Role "{ASSISTANT}" }}}}{{{{ .Content }}}}{_unless_last(self.after_answer)}'
        )
        if self.before_system is None or self.system_last:
            body = f'{{{{ if eq .Role "{USER}" }}}}{ask}'
        else:
            body = (
                f'{{{{ if and (eq .Role "{SYSTEM}") (eq $i 0) }}}}{literal(self.before_system)}{{{{ .Content }}}}'
                f'{literal(self._system_end())}{{{{ else if eq .Role "{USER}" }}}}{ask}'
            )
        return f"{{{{ range $i, $_ := .Messages }}}}{body}{{{{ end }}}}{{{{ end }}}}"

    def _system_end(self) -> str:
        """What the system message itself is followed by: the rest is what stands before any later request."""
        return self.after_system.removesuffix(self.later) if self._ends_alike else ""

    @property
    def _ends_alike(self) -> bool:
        return self.after_system.endswith(self.later)

    def _before_user(self) -> str:
        if self.before_system is None or self.system_last:
            before = _either(FIRST, self.first, self.later)
        elif self._ends_alike:
            if self.first.endswith(self.later):
                start = literal(self.first.removesuffix(self.later))
                before = f"{{{{ if eq $i 0 }}}}{start}{{{{ end }}}}" * bool(start) + literal(self.later)
            else:
                before = _either("eq $i 0", self.first, self.later)
        else:
            before = (
                f"{{{{ if eq $i 0 }}}}{literal(self.first)}{{{{ else if and (eq $i 1) $.System }}}}"
                f"{literal(self.after_system)}{{{{ else }}}}{literal(self.later)}{{{{ end }}}}"
            )
        if self.system_last:
            system = f"{literal(self.before_system or '')}{{{{ $.System }}}}{literal(self.after_system)}"
            before += f"{{{{ if and $.System ({LAST}) }}}}{system}{{{{ end }}}}"
        return before


def _either(condition: str, then: str, otherwise: str) -> str:
    if then == otherwise:
        return literal(then)
    return f"{{{{ if {condition} }}}}{literal(then)}{{{{ else }}}}{literal(otherwise)}{{{{ end }}}}"


def _unless_last(text: str) -> str:
    return f"{{{{ if not ({LAST}) }}}}{literal(text)}{{{{ end }}}}" if text else ""


def literal(text: str) -> str:
    """A Go template that writes this text, as it can stand in a Modelfile between three quotation marks.

    Ollama's parser drops what is not printable, and two braces, also one before an action's, begin one in Go.
    """
    pieces, index = [], 0
    while index < len(text):
        if text.startswith('"""', index):
            pieces.append('{{ "\\"\\"\\"" }}')
            index += 3
            continue
        character = text[index]
        kept = character != "{" and (character.isprintable() or character in "\n\t")
        pieces.append(character if kept else f'{{{{ "{_go_escape(character)}" }}}}')
        index += 1
    return "".join(pieces)


def _go_escape(character: str) -> str:
    code = ord(character)
    if character == "{":
        return character
    return f"\\u{code:04x}" if code < 1 << 16 else f"\\U{code:08x}"


# ---------------------------------------------------------------------- from a Jinja template
def derive(render: Render, bos: str) -> GoTemplate | None:
    """The Go template that writes what `render` does, `bos` at the beginning left out; None where there is none.

    `render` may raise EntrenarError for a conversation that its template refuses.
    """

    def probe(letters: str, texts: Mapping[str, str] = MARKS, answer: bool = True) -> str | None:
        try:
            text = render([{"role": ROLES[letter], "content": texts[letter]} for letter in letters], answer)
        except EntrenarError:
            return None
        return text.removeprefix(bos)

    found = _taken_apart(probe)
    if found is None:
        return None
    for letters in PROBES:
        if letters[0] == "s" and found.before_system is None:
            continue
        for texts in (MARKS, TEXTS):
            made = found.render([{"role": ROLES[letter], "content": texts[letter]} for letter in letters])
            if made != probe(letters, texts):
                return None
    return found


def _taken_apart(probe: Callable[..., str | None]) -> GoTemplate | None:
    one, two = _between(probe("u"), "u"), _between(probe("uav"), "uav")
    if one is None or two is None:
        return None
    first, prompt = one
    _, before_answer, turn, _ = two
    ended = _between(probe("ua", answer=False), "ua")
    end = "" if ended is None else ended[-1]
    # A conversation reads the same wherever a turn is cut in two: at what begins the first request, if that stands here
    after_answer = turn.removesuffix(first)
    if after_answer == turn or not end.startswith(after_answer):
        after_answer = _common_start(end, turn)
    plain = GoTemplate(first, turn.removeprefix(after_answer), before_answer, after_answer, prompt)
    with_system = probe("su")
    if with_system is None or MARKS["s"] not in with_system:
        return plain  # a template that drops the system message, or refuses it
    around = _between(with_system, "su")
    if around is None:
        return None
    before, after, _ = around
    turns = probe("suav")
    at_the_end = turns is not None and turns.find(MARKS["s"]) > turns.find(MARKS["a"])
    if at_the_end:
        before = before.removeprefix(first)
    fields = {**vars(plain), "before_system": before, "after_system": after, "system_last": at_the_end}
    return GoTemplate(**fields)


def _between(text: str | None, letters: str) -> list[str] | None:
    """What stands before, between and after the marks, each of which must be there once and in this order."""
    pieces = []
    for letter in letters:
        if text is None or text.count(MARKS[letter]) != 1:
            return None
        before, _, text = text.partition(MARKS[letter])
        pieces.append(before)
    return None if text is None else [*pieces, text]


def _common_start(one: str, other: str) -> str:
    length = next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
    return one[:length]
