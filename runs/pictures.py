"""Pictures and pages that go with a run: drawn in a style of their own, and never at its cost."""

from utils import ExpectedError, StoppedError, atomic_write, say


def draw_picture(path, draw, dpi=100):
    """Writes the Figure that `draw()` gives in matplotlib's own style; says so where that fails.

    What writes its own file, as a page, gives None. Tells whether it could be drawn.
    """
    try:
        import matplotlib  # slow to import, and --help must answer at once

        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # somebody's matplotlibrc may ask for LaTeX
            matplotlib.rcParams["text.parse_math"] = False  # a name may have $ in it
            if figure := draw():
                with atomic_write(path) as temporary:
                    figure.savefig(temporary, dpi=dpi)
    except StoppedError:
        raise
    except Exception as error:  # whatever is wrong with it, the run goes on
        kind = "" if isinstance(error, ExpectedError) else f"{type(error).__name__}: "
        say(f"{path}: not drawn: {kind}{' '.join(str(error).split())[:160]}")
        return False
    return True
