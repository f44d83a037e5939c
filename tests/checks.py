"""Checks that several modules' tests share."""

from command_line import explain


def names_in(folder):
    return sorted(path.name for path in folder.iterdir())


def one_line(error):
    """Checks that a message reads `what; expected; to do` in one line, and gives it."""
    message = explain(error)
    assert message.splitlines() == [message]
    assert message.count("; ") >= 2 and "; expected " in message
    return message
