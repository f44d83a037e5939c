"""Checks that several modules' tests share."""

from runs.command_line import explain


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def one_line(error):
    """Checks that an error reads `what; expected; to do` in one line, as it is told; gives it."""
    message = explain(error)
    assert message.splitlines() == [message]
    assert message.count("; ") >= 2 and "; expected " in message
    return message
