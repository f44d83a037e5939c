"""Pictures and pages that go with a run: drawn in a style of their own, and never at its cost."""

from utils import ExpectedError, StoppedError, atomic_write, say


def is_drawn(path, draw):
    """Draws a picture or page in matplotlib's own style; says so and gives False where that fails.

    Args:
        path: what is drawn.
        draw: function without arguments that draws and writes it.
    """
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
    """Draws a picture; tells whether it could be drawn.

    Args:
        path: of the picture.
        draw: function without arguments that gives a matplotlib Figure.
        dpi: dots per inch.
    """

    def write():
        figure = draw()
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=dpi)

    return is_drawn(path, write)
