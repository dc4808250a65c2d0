"""The errors that users see."""


class InputError(ValueError):
    """Input from a user cannot be used: one line saying what, where, and what was expected.

    The command line prints the message and exits with code 2; nothing has been created by then.
    """


class Failure(RuntimeError):
    """Something outside the program failed for good: one line saying what, and how to go on.

    The command line prints the message and exits with its code; what was done until then is kept.

    Attributes:
        code: Of the exit.
        stuck: A thread is left behind that waits for ever, on which Python's own shutdown would crash.
    """

    code = 1
    stuck = False
