"""The palette: methods that colour-blind readers tell apart, a marker for each, and no hue for two things."""

from itertools import combinations

import numpy as np
import pytest

from replication.analysis import palette
from replication.analysis.arms import ARMS, DENSE_HEAD, OURS
from replication.bench.ratios import SIGNS, TINT, look

# Linear RGB as dichromats see it: Machado, Oliveira and Fernandes (2009), severity 1.
SEEN = {
    "all colours": np.eye(3),
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
TO_XYZ = [[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]]
WHITE = [0.9505, 1, 1.089]


def lab(shade, seen="all colours"):
    """CIE L*a*b* of a colour as somebody sees it."""
    rgb = np.array([int(shade[place : place + 2], 16) / 255 for place in (1, 3, 5)])
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    xyz = np.array(TO_XYZ) @ np.clip(np.array(SEEN[seen]) @ linear, 0, 1) / WHITE
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * f[1] - 16, 500 * (f[0] - f[1]), 200 * (f[1] - f[2])])


def hue(shade):
    """Degrees; None of a grey."""
    _, a, b = lab(shade)
    return np.degrees(np.arctan2(b, a)) % 360 if np.hypot(a, b) > 12 else None


def test_lab_of_white_black_and_red_is_the_known_one():
    assert lab("#ffffff") == pytest.approx([100, 0, 0], abs=0.1) and lab("#000000") == pytest.approx([0, 0, 0], abs=0.1)
    assert lab("#ff0000") == pytest.approx([53.2, 80.1, 67.2], abs=0.2)
    red, green = (lab(shade, "deuteranopia") for shade in ("#ff0000", "#a0a000"))
    assert np.linalg.norm(red[1:] - green[1:]) < np.linalg.norm(lab("#ff0000")[1:] - lab("#a0a000")[1:]) / 2


@pytest.mark.parametrize("seen", SEEN)
def test_methods_are_told_apart_by_everybody(seen):
    for one, other in combinations(palette.METHODS.values(), 2):
        assert np.linalg.norm(lab(one, seen) - lab(other, seen)) > 16, (one, other)


def test_every_method_has_a_marker_of_its_own():
    assert set(palette.METHODS) == set(palette.MARKERS) == set(OURS)
    shapes = [*palette.MARKERS.values(), *palette.OTHER_MARKERS, *set(palette.SHAPES.values())]
    assert len(set(shapes)) == len(shapes)


@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_looks_like_its_method(arm):
    method = arm.partition("_")[0]
    assert palette.marker(arm) in {palette.MARKERS[method], palette.SHAPES.get(arm.removesuffix(DENSE_HEAD))}
    theirs, own = hue(palette.METHODS[method]), hue(palette.colour(arm))
    assert theirs is own is None or abs(theirs - own) < 22  # tints differ a little in hue


@pytest.mark.parametrize("seen", SEEN)
def test_dense_arms_with_one_marker_are_told_apart_by_their_grey(seen):
    dense = [arm for arm in ARMS if arm.startswith("dense")]
    assert all(hue(palette.colour(arm)) is None for arm in dense)
    for one, other in combinations(dense, 2):
        if palette.marker(one) == palette.marker(other):
            greys = [lab(palette.colour(arm), seen) for arm in (one, other)]
            assert np.linalg.norm(greys[0] - greys[1]) > 11, (one, other)


def test_a_user_s_own_dense_arm_is_grey_and_not_dense_itself():
    assert palette.colour("dense_wide") == palette.OTHER_DENSE != palette.METHODS["dense"]
    assert palette.marker("dense_wide") == "o"


def test_no_hue_of_a_method_means_another_thing():
    others = [*palette.OTHER_COLOURS, palette.BAND, *palette.PHASES.values(), *palette.PATTERNS.values()]
    others += [shade for _, shade in palette.GROUPS.values()]
    methods = [angle for shade in palette.METHODS.values() if (angle := hue(shade)) is not None]
    assert len(methods) == 5
    for shade in others:
        angle = hue(shade)
        apart = [abs((angle - of + 180) % 360 - 180) for of in methods] if angle is not None else [360]
        assert min(apart) > 24, shade


def test_the_bench_has_the_same_palette():
    assert look("dense fp32")["color"] == palette.METHODS["dense"] and look("dense fp32")["marker"] == "o"
    for contender in ("MST bf16", "unstructured fp32", "MST ultra, auto"):
        assert (look(contender)["color"], look(contender)["marker"]) == (palette.METHODS["mst"], "*")
    assert look("block22 fp32")["color"] == look("MST 2×2 blocks bf16")["color"] == TINT
    for contender in ("torch.sparse CSR fp32", "sparselab fp32"):
        assert look(contender)["color"] in palette.OTHER_COLOURS
    signs = [(shade, shape) for name, (shade, shape) in SIGNS.items() if name != "unstructured"]
    assert len(set(signs)) == len(signs)
