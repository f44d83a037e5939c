"""Pictures and pages that go with a run: drawn in a style of their own, and never at its cost."""

from utils import ExpectedError, StoppedError, atomic_write, say


def is_drawn(path, draw):
    """Lets `draw()` write a picture or page in matplotlib's own style; says so where that fails."""
    try:
        import matplotlib  # slow to import, and --help must answer at once

        with matplotlib.rc_context():
            matplotlib.rcdefaults()  # somebody's matplotlibrc may ask for LaTeX
            matplotlib.rcParams["text.parse_math"] = False  # a name may have $ in it
            draw()
    except StoppedError:
        raise
    except Exception as error:  # whatever is wrong with it, the run goes on
        kind = "" if isinstance(error, ExpectedError) else f"{type(error).__name__}: "
        say(f"{path}: not drawn: {kind}{' '.join(str(error).split())[:160]}")
        return False
    return True


def draw_picture(path, draw, dpi=100):
    """Writes the matplotlib Figure of `draw()` as a picture; tells whether it could be drawn."""

    def write():
        figure = draw()
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=dpi)

    return is_drawn(path, write)
