"""jsonargparse's account of what is wrong with a configuration, in one line that names the key."""

import re

_KEY = re.compile(r"""^(?:-\s*)?(?:Parser key|Group key) ["']([^"']+)["']:?\s*(.*)""")
_REASON = re.compile(
    r"(Option '.*' is not accepted|Expected .*Got value.*|Key .*not.*|.*is required.*)"
)
_GIVEN = re.compile(r"Given value: (.*)")


def one_line(message: str) -> str:
    r"""Shorten a report on all types that a value was tried as to the one that came nearest.

    Args:
        message: Of jsonargparse; of several lines where a value may be of several types.

    Returns:
        The key and what is wrong with its value; a message of one line as it is.

    Example:
        >>> print(
        ...     one_line(
        ...         "Parser key \"trainer.max_steps\":\n  Expected a <class 'int'>. Got value: x"
        ...     )
        ... )
        trainer.max_steps: expected int. Got value: x
    """
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    if len(lines) < 2:
        return message.strip()
    keys: list[str] = []
    for line in lines:
        found = _KEY.match(line)
        if found:
            keys.append(found[1])
            line = found[2]
        if reason := _REASON.search(line):
            told = _plain(reason[1])
            return f"{'.'.join(keys)}: {told}" if keys else told
    expected = [_plain(line) for line in lines if line.startswith("- Expected")]
    given = [found[1] for line in lines if (found := _GIVEN.match(line))]
    kinds = list(dict.fromkeys(words.removeprefix("expected ") for words in expected))
    told = f"expected {' or '.join(kinds)}" if kinds else " ".join(lines[1:])
    told = f"{told}. Got value: {given[0]}" if given else told
    return f"{'.'.join(keys)}: {told}" if keys else f"{lines[0]} {told}"


def _plain(words: str) -> str:
    """Types as YAML has them."""
    words = re.sub(r"<class '(?:\w+\.)*(\w+)'>", r"\1", words.removeprefix("- "))
    words = words.replace("typing.Literal", "one of ").replace("NoneType", "null")
    return re.sub(r"^Expected (an? )?", "expected ", words)
