"""What hypothesis draws: damage to files, words for options, odd images. Knows no file of vitune.

Every draw is a list [name, parameters...] of plain values, which `damage.py`, `images.py` and
`cases.py` carry out. Drawn in a process that has not imported vitune: hypothesis also tries the
constants of the modules it finds loaded, so the draws would depend on them.
"""

from __future__ import annotations

import math
from typing import Any

from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st

Draw = list[Any]

SHARE = st.floats(0, 1, allow_nan=False)
PICK = st.integers(0, 2**31)

VALUES: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(
        [None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63) - 1, 10**400, 1e308, -0.5, math.nan,
         math.inf, -math.inf, "", " ", "nan", "missing", ".", "/", "\x00", "é" * 300, [], {}, [[]],
         [None], {"a": {}}, [1, "a"]]
    ),
    st.integers(-5, 5),
    st.floats(),
    st.text(max_size=8),
    st.lists(st.integers() | st.text(max_size=3), max_size=3),
)  # fmt: skip
"""What a value in JSON or YAML is replaced by."""

DAMAGE = st.one_of(
    st.tuples(st.just("truncate"), SHARE),
    st.tuples(st.just("flip"), st.lists(SHARE, min_size=1, max_size=20), st.integers(0, 7)),
    st.tuples(st.just("insert"), SHARE, st.binary(min_size=1, max_size=40).map(list)),
    st.tuples(st.just("text"), st.text(max_size=40)),
    st.tuples(st.just("repeat"), st.integers(2, 5)),
    st.tuples(
        st.sampled_from(
            ["delete", "empty", "folder", "dangling", "loop", "other_file", "fifo", "forbidden",
             "deep", "socket"]
        )
    ),
    st.tuples(st.just("replace"), PICK, VALUES),
    st.tuples(st.just("replace"), PICK, VALUES),
    st.tuples(st.just("replace"), PICK, VALUES),
    st.tuples(st.just("replace"), PICK, VALUES),
    st.tuples(st.just("remove"), PICK),
    st.tuples(st.just("rename"), PICK, st.text(min_size=1, max_size=8)),
    st.tuples(st.just("swap"), PICK, PICK),
)  # fmt: skip
"""What happens to a file."""

ODD_WORDS = [
    "", " ", "0", "-1", "-0", "1e999", "nan", "inf", "-inf", "1e-400", "0x10", "١٢", "9" * 30,
    "2147483648", "-9223372036854775809", "1" * 5000, "true", "None", "null", "[]", "{}", "a=b",
    "=", "r=", "r=-1", "r=100000", "r=nan", "=3", "rank=1e9", "--", "-h", "\x1b[31m", "\u202e",
    "é" * 300, "x" * 5000, "1,2,,", ",", "1;2", "%s%n", "{0}", "[bold]", "[/]", "$HOME", "~",
    "~nobody/x", ".", "photos", "photos/blue/0.png", "run", "run/adapter", "study", "merged",
    "missing", "missing/deeper", "notes.txt", "notes.txt/x", "photos.csv", "train.yaml", "a\nb",
    "\udcff", "\x7f", "demo:", "demo:digits?train=-1", "demo:x", "vtab:", "vtab:photos/x", "hf:",
    "hf:a/b", "torchvision:", "vitune/", "x@y", "@", "linear", "linear,linear", "rlrr,", "cpu",
    "cuda", "1", "2", "0.5", "fp16", "adamw", "tpe", "honest", "csv", "both", "test", "all", "link",
]  # fmt: skip

WORD = st.one_of(
    st.sampled_from(ODD_WORDS),
    st.sampled_from(ODD_WORDS),
    st.integers(-3, 3).map(str),
    st.floats().map(str),
    st.text(st.characters(codec="utf-8", exclude_characters="\x00"), max_size=12),
)
"""What is given to an option."""

IMAGE = st.one_of(
    st.tuples(st.just("truncate"), SHARE),
    st.tuples(st.just("flip"), st.lists(SHARE, min_size=1, max_size=20), st.integers(0, 7)),
    st.tuples(st.just("insert"), SHARE, st.binary(min_size=1, max_size=40).map(list)),
    st.tuples(st.just("text"), st.text(max_size=40)),
    st.tuples(st.just("size"), st.sampled_from([0, 1, 65535, 2**31 - 1, 2**32 - 1, 12000])),
    st.tuples(st.just("header"), st.integers(0, 63), st.integers(0, 255)),
    st.tuples(st.just("other_kind"), PICK),
    st.tuples(
        st.just("mode"),
        st.sampled_from(["1", "L", "LA", "P", "PA", "RGBA", "CMYK", "YCbCr", "I", "I;16", "F"]),
    ),
    st.tuples(st.just("shape"), st.sampled_from([(1, 1), (1, 4000), (4000, 1), (3, 2)])),
    st.tuples(st.sampled_from(["empty", "delete", "folder", "dangling", "loop", "fifo", "exif"])),
)
"""What is odd about an image."""

CELL = st.one_of(
    st.sampled_from(["", " ", '"', "\x00", ",", "a,b", "\n", "..", "/", "train", "VAL", "x" * 400]),
    st.text(max_size=6),
)
TABLE = st.one_of(
    DAMAGE,
    st.tuples(st.just("cell"), PICK, PICK, CELL),
    st.tuples(st.just("cell"), PICK, PICK, CELL),
    st.tuples(st.just("column"), PICK, st.sampled_from(["int", "float", "bytes", "list", "null"])),
)
"""What happens to a list of images."""

FLAGS = st.tuples(st.booleans(), PICK)
"""Whether a case takes a further step (a second option, no checksums), and a free choice."""


def draw(strategy: st.SearchStrategy[Any], count: int, start: int) -> list[Any]:
    """`count` values of a strategy, the same ones for the same `start`."""
    found: list[Any] = []

    @seed(start)
    @settings(
        max_examples=count + 50, phases=[Phase.generate], database=None, deadline=None,
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip
    @given(strategy)
    def collect(value: Any) -> None:
        found.append(value)

    collect()
    found = found[1:] or found  # hypothesis begins with the simplest value
    return [found[index % len(found)] for index in range(count)]


def drawn(counts: dict[str, int], start: int) -> dict[str, list[Any]]:
    """What every case of every kind does."""
    strategies = {
        "file": st.tuples(DAMAGE, FLAGS),
        "option": st.tuples(WORD, WORD, FLAGS),
        "image": st.tuples(IMAGE, FLAGS),
        "table": st.tuples(TABLE, FLAGS),
    }
    return {kind: draw(strategies[kind], count, start) for kind, count in counts.items()}
