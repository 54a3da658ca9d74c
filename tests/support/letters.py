"""A list of pictures for tests of the demo's world."""

import itertools

from demo.world.pictures import STYLES, Picture


def letters() -> list[Picture]:
    """a in both styles, b in one, c held out."""
    kinds = itertools.chain(itertools.product("a", STYLES), [("b", "flat")], itertools.product("c", STYLES))
    return [
        Picture(code, code, style, f"letter {code}", "symbol", f"{style}/{code}.png", code == "c")
        for code, style in kinds
    ]
